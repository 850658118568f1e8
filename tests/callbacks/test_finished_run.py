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

"""A run that was killed between its last checkpoint and its ``.nemo``."""

import os
from types import SimpleNamespace

import pytest
import torch
from nemo.utils.callbacks.nemo_model_checkpoint import NeMoModelCheckpoint

from nemo_mshubert.callbacks import finished_run
from nemo_mshubert.callbacks.finished_run import FinishedRun
from nemo_mshubert.data.pretraining_dataset import collate
from nemo_mshubert.models.loading import restore_model
from nemo_mshubert.parallel.registration import register
from tests.models.fixed_update import train, utterance
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit


def run(config, folder, updates=3, resume=None, **options):
    checkpoints = NeMoModelCheckpoint(
        dirpath=folder, prefix="run", filename="run-{step}", save_last=True, save_top_k=-1, every_n_train_steps=1
    )
    batches = [[collate([utterance(n)]) for n in range(3)]] * 2
    callbacks = [FinishedRun(), checkpoints]
    return train(config, batches, updates, resume=resume, callbacks=callbacks, enable_checkpointing=True, **options)


@pytest.fixture
def config(model_config):
    return model_config()


def test_the_same_command_writes_what_is_missing(config, tmp_path):
    """Else every restart ends at once, well, and without a model."""
    run(config, tmp_path)
    path = tmp_path / "run.nemo"
    expected = restore_model(path).state_dict()
    path.unlink()
    (last,) = tmp_path.glob("*last.ckpt")
    run(config, tmp_path, resume=last)
    assert all(torch.equal(value, expected[name]) for name, value in restore_model(path).state_dict().items())
    written = path.stat().st_mtime_ns
    run(config, tmp_path, resume=last)
    assert path.stat().st_mtime_ns == written and len(list(tmp_path.glob("*.nemo"))) == 1


def test_a_model_of_fewer_updates_is_not_taken_for_that_of_all(config, tmp_path):
    """A finished run was given more updates, and killed before it wrote its ``.nemo``: the same command ended well,
    with that of the first updates."""
    run(config, tmp_path)
    path = tmp_path / "run.nemo"
    expected = restore_model(path).state_dict()
    (last,) = tmp_path.glob("*last.ckpt")
    path.write_text("of two updates")
    os.utime(path, (1, 1))
    run(config, tmp_path, resume=last)
    assert all(torch.equal(value, expected[name]) for name, value in restore_model(path).state_dict().items())
    assert len(list(tmp_path.glob("*.nemo"))) == 1


def test_so_do_ranks_that_share_a_model(config, tmp_path):
    """They have left their groups when it is noticed: every restart ended in an error of megatron-core."""
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    config.encoder.transformer_backend = "megatron"

    def trained(resume=None):
        register()
        run(config, tmp_path, resume=resume, devices=2, strategy="megatron_tp2")

    run_on_ranks(2, trained)
    path = tmp_path / "run.nemo"
    expected = restore_model(path).state_dict()
    path.unlink()
    (last,) = tmp_path.glob("*last.ckpt")
    run_on_ranks(2, trained, last)
    assert all(torch.equal(value, expected[name]) for name, value in restore_model(path).state_dict().items())


@pytest.mark.parametrize(
    "begun_at, max_steps, is_told", [(0, 3, False), (3, 3, True), (None, 3, True), (3, -1, False)]
)
def test_a_run_that_trains_nothing_says_so(monkeypatch, begun_at, max_steps, is_told):
    """The same name with another learning rate: the results would be taken for those of the new one."""
    warnings = []
    monkeypatch.setattr(finished_run.logging, "warning", warnings.append)
    trainer = SimpleNamespace(max_steps=max_steps, global_step=begun_at, checkpoint_callback=None)
    finished = FinishedRun()
    if begun_at is not None:
        finished.on_train_start(trainer, None)
    trainer.global_step = 3
    finished.on_fit_end(trainer, None)
    assert [warning.partition(":")[0] for warning in warnings] == ["Nothing was trained"] * is_told


def written_at_the_end(
    folder, best="best.ckpt", broadcast=lambda value: value, ckpt_path="last.ckpt", updates=3, model=None, **options
):
    """``(checkpoint, .nemo)`` that split ranks write when a run of three updates ends behind ``updates``."""
    checkpoints = NeMoModelCheckpoint(dirpath=folder, prefix="run", monitor="val_loss", **options)
    checkpoints.best_model_path = best
    trainer = SimpleNamespace(
        max_steps=3,
        global_step=updates,
        checkpoint_callback=checkpoints,
        ckpt_path=ckpt_path,
        strategy=SimpleNamespace(broadcast=broadcast),
    )
    written = []
    split = SimpleNamespace(is_split=True, save_checkpoint_to=lambda source, target: written.append((source, target)))
    FinishedRun().on_fit_end(trainer, model or split)
    return written


@pytest.mark.parametrize(
    "save_best, best, expected",
    [(True, "best.ckpt", "best.ckpt"), (False, "best.ckpt", "last.ckpt"), (True, "", "last.ckpt")],
)
def test_the_missing_model_of_split_ranks_is_the_best_one(tmp_path, save_best, best, expected):
    """Where the ``.nemo`` is of the best checkpoint, a run that was killed before it must not end with the last; one
    without a validation has no best."""
    assert written_at_the_end(tmp_path, best, save_best_model=save_best) == [(expected, str(tmp_path / "run.nemo"))]


def test_a_model_that_is_not_wanted_is_not_written(tmp_path):
    """Nor that of a run that was preempted, which has seconds to end in."""
    assert not written_at_the_end(tmp_path, save_nemo_on_train_end=False)
    assert not written_at_the_end(tmp_path, updates=2)


def test_a_model_of_nemo_is_written_by_nemo(tmp_path, monkeypatch):
    """Fine-tunings train those, which do not know of ranks that share a model."""
    written = []
    monkeypatch.setattr(NeMoModelCheckpoint, "on_train_end", lambda self, trainer, model: written.append(model))
    model = SimpleNamespace()
    assert not written_at_the_end(tmp_path, model=model) and written == [model]


def test_rank_0_says_whether_the_model_is_there(tmp_path):
    """They write it together: where another node's file system does not show it yet, its ranks would wait for the
    others for ever."""
    assert not written_at_the_end(tmp_path, broadcast=lambda _: True)


def test_the_checkpoint_that_a_run_went_on_from_may_be_gone(tmp_path):
    """A later one has taken its place: all resumed runs ended in a FileNotFoundError."""
    (tmp_path / "run.nemo").touch()
    assert not written_at_the_end(tmp_path, ckpt_path=str(tmp_path / "gone.ckpt"))
