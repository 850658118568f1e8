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

"""Options that a training takes and refuses; the trainer is in tests/callbacks/test_updates_bar.py."""

import pytest
from omegaconf import OmegaConf

from nemo_mshubert.models.training_setup import num_ranks, plan_updates

pytestmark = pytest.mark.unit


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
