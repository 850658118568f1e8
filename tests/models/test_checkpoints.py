# Copyright (c) 2026, The nemo_mshubert authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Checkpoints of pre-training: of which runs a run goes on, and what a full disk leaves."""

import resource

import pytest
import torch
from omegaconf import OmegaConf

from nemo_mshubert.data import resumable_loader
from nemo_mshubert.data.pretraining_dataset import collate
from tests.callbacks.short_runs import At, PerUpdate, last, train_updates
from tests.models.fixed_update import train, utterance
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit


@pytest.fixture
def config(model_config):
    return model_config("model.drop_label_sets=1", "model.encoder.layerdrop=0.3", optim={"name": "adamw", "lr": 1e-3})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"loss_views": "masked_stream"}, "last.ckpt: loss_views both, but the config says masked_stream"),
        ({"swap": False}, "last.ckpt: swap True, but the config says False"),
        ({"label_layers": {"1": 10, "2": 20, "3": 40}}, "last.ckpt: layers of label sets .*, but the config says"),
        (
            {"encoder": {"d_inner": 24}},
            r"last.ckpt: another architecture: misshapen tensors .* is \[.*\], expected \[24",
        ),
    ],
)
def test_a_run_does_not_go_on_as_another_one(config, tmp_path, change, message):
    """Heads that have learned one task would go on with another, without a word."""
    train_updates(config, tmp_path)
    assert config.loss_views == "both" and config.encoder.d_inner != 24
    with pytest.raises(ValueError, match=f"{message}.*another name="):
        train_updates(OmegaConf.merge(config, change), tmp_path / "other", resume=tmp_path / "last.ckpt")


def test_a_run_does_not_go_on_with_labels_of_another_maker(config, tmp_path):
    train_updates(config, tmp_path)
    checkpoint = last(tmp_path)
    checkpoint["task"]["label maker"] = "0123456789abcdef"
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="other.ckpt: label maker 0123456789abcdef, but the config says"):
        train_updates(config, tmp_path / "again", resume=tmp_path / "other.ckpt")
    del checkpoint["task"]  # of a fine-tuning with the same name=
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="other.ckpt: label maker None, but the config says.*another name="):
        train_updates(config, tmp_path / "again", resume=tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, []),
        ({"num_workers": 7}, []),  # of plain manifests
        ({"batch_duration": 6}, ["batch_duration was 12, is 6."]),
        ({"seed": 5, "shuffle": False}, ["seed was 1337, is 5; shuffle was True, is False."]),
    ],
    ids=str,
)
def test_a_resume_says_which_options_of_the_data_have_changed(config, tmp_path, monkeypatch, change, expected):
    """A smaller batch for a smaller GPU: the epoch does not go on exactly, and the user must not believe it."""
    warnings = []
    train_updates(config, tmp_path)
    monkeypatch.setattr(resumable_loader.logging, "warning", warnings.append)
    changed = OmegaConf.merge(config, {"train_ds": change})
    model = train_updates(changed, tmp_path / "on", resume=tmp_path / "last.ckpt")
    model.on_load_checkpoint(last(tmp_path))  # as NeMo restores the best one at the end: nothing goes on from it
    found = [warning for warning in warnings if "The data goes on" in warning]
    assert [warning.partition("interruption: ")[2] for warning in found] == expected


def test_updates_are_whole_where_a_resumed_run_accumulates_more(config, tmp_path):
    """Fewer GPUs: behind three updates of one micro-batch the next, of two, was made of the second one alone."""
    batches, counter = [[collate([utterance(n)]) for n in (0, 1, 2, 3)] * 4], PerUpdate()
    train(config, batches, 3).trainer.save_checkpoint(tmp_path / "three.ckpt")
    options = dict(accumulate_grad_batches=2, callbacks=[counter])
    train(config, batches, 6, resume=tmp_path / "three.ckpt", **options)
    assert counter.counts == [2, 2, 2, 0]


def test_full_disk_leaves_the_last_checkpoint_whole(config, tmp_path):
    """Files may grow no further from the fourth update on, as on a full disk; the error says so."""

    def rank():
        limit = (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        with pytest.raises(OSError) as error:
            train_updates(config, tmp_path, At(6, lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, limit)))
        return str(error.value)

    (message,) = run_on_ranks(1, rank)
    assert "File too large" in message
    assert last(tmp_path)["global_step"] == 2  # every second update writes one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt"]
