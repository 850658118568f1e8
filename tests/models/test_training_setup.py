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

"""Updates, ranks and checkpoints of a run; the trainer is in tests/callbacks/test_updates_bar.py."""

import re

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.strategies import StrategyRegistry
from omegaconf import OmegaConf

from nemo_mshubert.callbacks.configured_schedule import ConfiguredSchedule
from nemo_mshubert.callbacks.data_wait import DataWait
from nemo_mshubert.callbacks.finished_run import FinishedRun
from nemo_mshubert.callbacks.preemption import SaveWhenPreempted
from nemo_mshubert.callbacks.rank_watch import RankWatch
from nemo_mshubert.callbacks.saved_update import SavedUpdate
from nemo_mshubert.callbacks.unknown_score import UnknownScore
from nemo_mshubert.callbacks.validation_schedule import ValidationSchedule
from nemo_mshubert.models import training_setup
from nemo_mshubert.models.training_setup import make_trainer, num_ranks, plan_updates
from nemo_mshubert.parallel.registration import register
from nemo_mshubert.parallel.sharded import ShardedStrategy
from tests.conftest import REPOSITORY, load_config

pytestmark = pytest.mark.unit


# --- Updates from seconds --------------------------------------------------------------------------------------------


def test_a_strategy_by_its_class_shares_out_data_as_by_its_name():
    """The way to 16 GPUs to a model. Counted as data parallelism, an update would be of a sixteenth of the audio."""
    config = load_config("pretrain", "mshubert_large", "parallel=megatron_tp2")
    config.trainer.devices, config.trainer.num_nodes = 16, 4
    config.trainer.strategy = {
        "_target_": "nemo_mshubert.parallel.tensor_parallel.TensorParallelStrategy",
        "tensor_parallel_size": 16,
    }
    plan_updates(config)
    assert config.trainer.accumulate_grad_batches * 4 * config.model.train_ds.batch_duration == 7200


def test_a_strategy_may_be_given_by_its_class(tiny_config):
    """The line of docs/scaling.md for shards over other GPUs than a node's: NeMo blocks it as an unsafe target."""
    (documented,) = re.findall(r"'(trainer\.strategy=\{[^']*)'", (REPOSITORY / "docs" / "scaling.md").read_text())
    config = tiny_config(" ".join(documented.split()), "trainer.devices=1")
    register()
    plan_updates(config)
    strategy = make_trainer(config).strategy
    assert isinstance(strategy, ShardedStrategy) and strategy.shard_size == 16
    assert strategy._timeout == StrategyRegistry.get("fsdp2")._timeout
    config.trainer.strategy = {"_target_": "lightning.pytorch.strategies.DDPStrategy", "static_graph": True}
    assert make_trainer(config).strategy._ddp_kwargs == {"static_graph": True}  # those of Lightning as before


@pytest.mark.parametrize(
    "devices, num_nodes, accumulate", [(1, 1, 32), (8, 1, 4), (8, 4, 1), ([0, 1], 1, 16), (64, 1, 1), ("5", 1, 6)]
)
def test_an_update_sees_the_same_seconds_on_any_number_of_gpus(devices, num_nodes, accumulate):
    """One GPU accumulates what 32 do at once, or the learning rate would fit only one cluster."""
    config = load_config("pretrain", "mshubert_base")
    config.trainer.devices, config.trainer.num_nodes = devices, num_nodes
    plan_updates(config)
    assert config.trainer.accumulate_grad_batches == accumulate
    assert config.trainer.val_check_interval == 5000 * accumulate  # Lightning counts micro-batches
    if num_ranks(config.trainer) in (1, 8, 32):
        seconds = accumulate * num_ranks(config.trainer) * config.model.train_ds.batch_duration
        assert seconds == config.seconds_per_update


def test_fewer_ranks_than_share_a_model_are_left_to_the_strategy():
    """Which says what to change; a division by zero would not."""
    config = load_config("pretrain", "mshubert_base", "parallel=megatron_tp4", "trainer.devices=2")
    plan_updates(config)
    assert config.trainer.accumulate_grad_batches == 32


def test_finetuning_on_one_gpu_accumulates_eight():
    config = load_config("finetune", "10h", "trainer.devices=1")
    plan_updates(config)
    assert (config.trainer.accumulate_grad_batches, config.trainer.val_check_interval) == (8, 4000)


def test_a_run_shorter_than_the_interval_validates_at_its_end():
    """Otherwise it ends without a checkpoint: exp_manager writes them when validating."""
    config = load_config("pretrain", "mshubert_base", "max_updates=10", "trainer.devices=8")
    plan_updates(config)
    assert config.trainer.val_check_interval == 10 * 4


def test_seconds_that_cannot_be_met_are_a_warning(monkeypatch):
    """More GPUs than the recipe has: the batch is larger than the paper's, and the user is told."""
    warnings = []
    monkeypatch.setattr(training_setup.logging, "warning", warnings.append)
    for devices, expected in ((32, 0), (64, 1)):
        config = load_config("pretrain", "mshubert_base", f"trainer.devices={devices}")
        plan_updates(config)
        assert len(warnings) == expected
    assert "5600 s of audio instead of 2800 s" in warnings[0]


@pytest.mark.parametrize("options", [[], ["~trainer.devices"]], ids=["-1", "none"])
@pytest.mark.parametrize("gpus", [0, 3])
def test_all_devices_are_counted(monkeypatch, gpus, options):
    """`devices: -1` is the default, and what Lightning takes for none: with three GPUs an update accumulates 11 times,
    on a CPU 32 times."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    config = load_config("pretrain", "mshubert_base", *options)
    plan_updates(config)
    assert config.trainer.accumulate_grad_batches == (32 if gpus == 0 else 11)
    as_given = None if options else -1
    assert config.trainer.get("devices") == (1 if gpus == 0 else as_given)  # Lightning refuses -1 on a CPU


def test_the_processor_is_one_device(monkeypatch):
    """trainer.accelerator=cpu on a machine with GPUs, where devices=-1 means all of them; and Apple's GPUs, which have
    no float64."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    config = load_config("pretrain", "mshubert_base", "trainer.accelerator=cpu")
    plan_updates(config)
    assert config.trainer.devices == 1 and config.trainer.accumulate_grad_batches == 32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for given in ([], ["~trainer.accelerator"]):
        warnings = []
        monkeypatch.setattr(training_setup.logging, "warning", warnings.append)
        config = load_config("pretrain", "mshubert_base", *given)
        plan_updates(config)
        assert (config.trainer.accelerator, config.trainer.devices) == ("cpu", 1)
        assert warnings == ["Training runs on the CPU: Apple's GPUs lack float64."]


def test_every_run_has_its_callbacks(tiny_config):
    """Each is tested by itself. Without one a run goes on at another rate, counts an update twice or validates at
    other times, and says nothing."""
    of_a_run = [SaveWhenPreempted, DataWait, RankWatch, ConfiguredSchedule, UnknownScore, SavedUpdate]
    of_a_run += [ValidationSchedule, FinishedRun]
    config = tiny_config("+trainer.callbacks=[{_target_: lightning.pytorch.callbacks.Timer}]")
    found = [type(callback) for callback in make_trainer(config, [pl.Callback()]).callbacks]
    assert [kind for kind in found if kind in (Timer, pl.Callback, *of_a_run)] == [Timer, pl.Callback, *of_a_run]


@pytest.mark.parametrize(
    "gpus, options, expected",
    [
        (1, [], ["high"]),
        (1, ["trainer.precision=16-mixed"], ["high"]),
        (1, ["trainer.precision=32"], []),
        (1, ["trainer.accelerator=cpu"], []),
        (0, [], []),
    ],
)
def test_half_precision_takes_tensor_cores_for_all_products(gpus, options, expected, monkeypatch):
    """The label heads' products in full fp32 were 1.2 of 84 ms of base's kernels on an H200. Who trains in fp32, and
    on a CPU, gets fp32."""
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(training_setup.pl, "Trainer", lambda **given: given)
    assert make_trainer(load_config("pretrain", "mshubert_base", *options))["max_steps"] == 400000
    assert asked == expected


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
    monkeypatch.setenv("WORLD_SIZE", "4")  # two machines
    with pytest.raises(ValueError, match="has started 4 .* make 2: set trainer.devices=2 and trainer.num_nodes to"):
        plan_updates(tiny_config("trainer.devices=2"))


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
    for gpus, accelerator in ((0, "auto"), (8, "cpu")):  # all devices, where there is the processor alone
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        plan_updates(tiny_config("trainer.devices=-1", f"trainer.accelerator={accelerator}"))
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # interactive: Lightning starts the ranks
    plan_updates(tiny_config("trainer.devices=2"))


@pytest.mark.parametrize(
    "option", ["validation_manifest=null", "validation_manifest=[]", "+trainer.limit_val_batches=0"]
)
def test_without_validation_checkpoints_are_written_all_the_same(option):
    """Else a run that is killed would start anew."""
    config = load_config("pretrain", "mshubert_base", option)
    plan_updates(config)
    assert config.exp_manager.checkpoint_callback_params.every_n_train_steps == config.validate_every_updates
    config = load_config("pretrain", "mshubert_base", option, "max_updates=10")
    plan_updates(config)
    assert config.exp_manager.checkpoint_callback_params.every_n_train_steps == 10  # of a short run at its end
