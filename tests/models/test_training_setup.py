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

"""What a run finds of its checkpoints after a kill; the trainer is in tests/callbacks/test_updates_bar.py."""

import os
import time
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from nemo_mshubert.models import run_lock, training_setup
from nemo_mshubert.models.training_setup import (
    checkpoint_folder,
    claim_folder,
    keep_whole_checkpoints,
    num_ranks,
    plan_updates,
)

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path):
    """``folder(name, ...)``: what is left of checkpoints with these names, the last one the newest, and whose weights
    it has.

    ``!`` marks an unfinished one, ``?`` one that has lost its last byte.
    """

    def make(*names):
        for age, name in enumerate(reversed(names)):
            name, kind = name.rstrip("!?"), name[-1]
            path = tmp_path / f"{name}.ckpt"
            torch.save({"name": name}, path)
            if kind == "!":
                (tmp_path / f"{name}-unfinished").touch()
            if kind == "?":
                os.truncate(path, path.stat().st_size - 1)
            os.utime(path, (1e9 - age, 1e9 - age))
        in_order = training_setup._is_in_order(tmp_path, save_top_k=1)
        before = sorted(tmp_path.iterdir())
        keep_whole_checkpoints(tmp_path)
        assert in_order == (sorted(tmp_path.iterdir()) == before)
        assert training_setup._is_in_order(tmp_path, save_top_k=1)
        left = {path.name.removesuffix(".ckpt"): path for path in tmp_path.iterdir()}
        return {
            name: "damaged" if path.suffix == ".damaged" else torch.load(path)["name"] for name, path in left.items()
        }

    return make


def test_nothing_happens_to_whole_checkpoints(folder, tmp_path):
    assert folder("m-step=5", "m-step=6-last") == {"m-step=5": "m-step=5", "m-step=6-last": "m-step=6-last"}
    keep_whole_checkpoints(tmp_path / "not there yet")


def test_unfinished_last_checkpoint_gives_way_to_the_whole_one(folder):
    """NeMo stops where all last checkpoints are unfinished, and would start anew where they are removed by hand."""
    assert folder("m-step=5-last", "m-step=6-last!") == {"m-step=5-last": "m-step=5-last"}


def test_best_checkpoint_stands_in_for_the_last(folder):
    assert folder("m-step=3", "m-step=5", "m-step=6-last!") == {
        "m-step=3": "m-step=3",
        "m-step=5": "m-step=5",
        "m-step=5-last": "m-step=5",
    }


def test_a_metric_with_a_slash_puts_checkpoints_into_folders(folder, tmp_path):
    """As those of single label sets: they were not looked for there, and the run could not be started again."""
    below = tmp_path / "m--val_1000"
    below.mkdir()
    for age, name in enumerate(["accuracy=0.5-step=6-last", "accuracy=0.5-step=5", "accuracy=0.4-step=5-last"]):
        torch.save({"name": name}, below / f"{name}.ckpt")
        os.utime(below / f"{name}.ckpt", (1e9 - age, 1e9 - age))
    (below / "accuracy=0.5-step=6-last-unfinished").touch()
    assert not training_setup._is_in_order(tmp_path, save_top_k=1)
    keep_whole_checkpoints(tmp_path)
    assert {path.name for path in below.iterdir()} == {"accuracy=0.5-step=5.ckpt", "accuracy=0.4-step=5-last.ckpt"}
    assert training_setup._is_in_order(tmp_path, save_top_k=1)


def test_checkpoints_that_the_user_keeps_in_a_folder_are_left_alone(folder, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("m--val_loss=2.5-step=4-last", "m--val_loss=nan-step=3"):
        torch.save({}, kept / f"{name}.ckpt")
    torch.save({}, tmp_path / "m--val_loss=2.0-step=9-last.ckpt")
    keep_whole_checkpoints(tmp_path, save_top_k=0)
    assert len(list(kept.iterdir())) == 2 and training_setup._is_in_order(tmp_path, save_top_k=0)


def test_a_score_that_is_no_number_does_not_stop_a_resume(folder):
    """NeMo reads scores from the names of checkpoints, and of "nan" it ended in "could not convert string to float"."""
    left = folder("m--val_loss=nan-step=3", "m--val_loss=2.5-step=4", "m--val_loss=nan-step=5-last")
    assert set(left) == {"m--val_loss=nan-step=3.ckpt.nan", "m--val_loss=2.5-step=4", "m--val_loss=nan-step=5-last"}


def test_best_checkpoints_are_kept_where_none_are_wanted(folder, tmp_path):
    """A run goes on without validation: NeMo deleted the best weights, and ended in an IndexError."""
    folder("m--val_loss=2.5-step=4", "m--val_loss=2.5-step=5-last")
    assert not training_setup._is_in_order(tmp_path, save_top_k=0)
    keep_whole_checkpoints(tmp_path, save_top_k=0)
    assert {path.name for path in tmp_path.iterdir()} == {
        "m--val_loss=2.5-step=4.ckpt.best",
        "m--val_loss=2.5-step=5-last.ckpt",
    }


def test_killed_in_the_first_checkpoint_starts_anew(folder):
    assert folder("m-step=1-last!") == {}


def test_a_damaged_last_checkpoint_gives_way_to_the_newest_whole_one(folder, monkeypatch):
    """A copy that broke off: torch.load would end with a message that names no file. What is damaged is kept."""
    warnings = []
    monkeypatch.setattr(training_setup.logging, "warning", warnings.append)
    assert folder("m-step=3", "m-step=5", "m-step=6-last?") == {
        "m-step=3": "m-step=3",
        "m-step=5": "m-step=5",
        "m-step=5-last": "m-step=5",
        "m-step=6-last.ckpt.damaged": "damaged",
    }
    assert "m-step=6-last.ckpt: damaged" in warnings[0] and "m-step=5.ckpt: the newest whole" in warnings[1]


def test_a_damaged_last_checkpoint_and_the_whole_one_before_it(folder):
    """That would else be removed as the older of two."""
    assert folder("m-step=5-last", "m-step=6-last?") == {
        "m-step=5-last": "m-step=5-last",
        "m-step=6-last.ckpt.damaged": "damaged",
    }


def test_newest_of_two_last_checkpoints(folder):
    """Between writing one and removing the other; NeMo stops where there are two."""
    assert folder("m-step=5-last", "m-step=6-last") == {"m-step=6-last": "m-step=6-last"}


def test_other_ranks_wait_for_rank_0(tmp_path, monkeypatch):
    """A second run by mistake: its rank 0 is told of the first run, whose checkpoint the other ranks took for one that
    was left unfinished, and deleted while it was written."""
    torch.save({}, tmp_path / "m-step=6-last.ckpt")
    (tmp_path / "m-step=6-last-unfinished").touch()
    monkeypatch.setattr(training_setup, "PATIENCE_SECONDS", 0.0)
    rank_1, rank_0 = (SimpleNamespace(is_global_zero=is_zero) for is_zero in (False, True))
    with pytest.raises(RuntimeError, match="rank 0 has not set its checkpoints in order"):
        claim_folder(tmp_path, 1, rank_1)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(training_setup, "PATIENCE_SECONDS", 60.0)
    rank_0_acts = Thread(target=lambda: (time.sleep(0.5), claim_folder(tmp_path, 1, rank_0)))
    rank_0_acts.start()
    claim_folder(tmp_path, 1, rank_1)
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
    rank_0_acts.join()
    run_lock._held.pop().close()


def test_folder_is_that_of_exp_manager():
    config = {"exp_dir": "exp", "name": "run", "checkpoint_callback_params": {"save_top_k": 1}}
    assert str(checkpoint_folder(OmegaConf.create(config))) == "exp/run/checkpoints"
    assert str(checkpoint_folder(OmegaConf.create({**config, "explicit_log_dir": "logs"}))) == "logs/checkpoints"
    config["checkpoint_callback_params"] = {"dirpath": "/scratch/kept"}
    assert str(checkpoint_folder(OmegaConf.create(config))) == "/scratch/kept"


@pytest.mark.parametrize(
    "option, message",
    [
        ("+trainer.limit_train_batches=1000", "limit_train_batches=1000: the data would begin anew"),
        ("+trainer.limit_train_batches=1", "limit_train_batches=1: the data would begin anew"),
        ("+trainer.limit_train_batches=0.5", "limit_train_batches=0.5: the data would begin anew"),
        ("+trainer.overfit_batches=10", "overfit_batches=10: the data would begin anew"),
        ("trainer.log_every_n_steps=0", "log_every_n_steps=0: NeMo divides"),
        ("trainer.strategy=fsdp", "strategy=fsdp: .*by parallel=fsdp2"),
        ("trainer.strategy=deepspeed_stage_2", "strategy=deepspeed_stage_2: .*parallel=fsdp2"),
        ("trainer.strategy={_target_: lightning.pytorch.strategies.FSDPStrategy}", "FSDPStrategy.*: .*parallel=fsdp2"),
    ],
)
def test_options_that_would_train_something_else_are_refused(tiny_config, option, message):
    """The first thousand batches for ever, clipped by norms of parts, or a division by zero in the first batch."""
    with pytest.raises(ValueError, match=message):
        plan_updates(tiny_config(option))


@pytest.mark.parametrize(
    "option",
    ["max_updates=0", "max_updates=abc", "validate_every_updates=0", "seconds_per_update=-3"]
    + ["model.train_ds.batch_duration=-8", "validate_every_updates=1.5"],
)
def test_numbers_that_count_nothing_are_refused(tiny_config, option):
    """Zero updates between validations were a checkpoint after every update, -3 s of an update 8 s."""
    with pytest.raises(ValueError, match=f"{option}: expected a .*number above 0"):
        plan_updates(tiny_config(option))


@pytest.mark.parametrize(
    "option",
    [
        "+trainer.limit_train_batches=1.0",
        "trainer.strategy=fsdp2",
        "trainer.strategy={_target_: lightning.pytorch.strategies.DDPStrategy}",
    ],
)
def test_options_that_change_nothing_are_taken(tiny_config, option):
    plan_updates(tiny_config(option))


@pytest.mark.parametrize(
    "devices, count",
    [(2, 2), ("3", 3), ([0, 1], 2), ("0,1", 2), ("1,", 1), (-1, 1), ("-1", 1), ("auto", 1), (None, 1)],
)
def test_devices_are_counted_as_lightning_does(devices, count):
    """Another number is another share of the data, and another size of an update."""
    assert num_ranks(OmegaConf.create({"devices": devices, "accelerator": "cpu", "num_nodes": 3})) == 3 * count


def test_devices_that_are_none_are_named():
    with pytest.raises(ValueError, match="trainer.devices: expected how many, a list of GPUs, .* found 'two'"):
        num_ranks(OmegaConf.create({"devices": "two"}))


def test_torchrun_with_another_number_of_devices_is_refused(monkeypatch, tiny_config):
    """Each process would train a model of its own, all into one folder."""
    config = tiny_config()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun has started 2 processes.* make 1: set trainer.devices=2"):
        plan_updates(config)
    config.trainer.devices = 2
    plan_updates(config)


def test_a_slurm_job_with_another_number_of_tasks_is_refused(monkeypatch, tiny_config):
    """A job of one task and two GPUs: Lightning starts no second rank there, and the run trained on its half of the
    data, with updates half as large, without a word."""
    config = tiny_config("trainer.devices=2")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "run")
    with pytest.raises(ValueError, match="has 1 tasks, but .* make 2 processes.*srun.*unset SLURM_NTASKS"):
        plan_updates(config)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    plan_updates(tiny_config("trainer.devices=2"))
    monkeypatch.setenv("SLURM_NTASKS", "1")
    plan_updates(tiny_config("trainer.devices=1"))
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # interactive: Lightning starts the ranks
    plan_updates(tiny_config("trainer.devices=2"))
