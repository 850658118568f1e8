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

import copy
import re

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.strategies import StrategyRegistry
from omegaconf import OmegaConf

from nemo_mshubert.models import training_setup
from nemo_mshubert.models.training_setup import make_trainer, num_ranks, plan_updates
from nemo_mshubert.parallel.registration import register
from nemo_mshubert.parallel.sharded import ShardedStrategy
from tests.conftest import ASKED_FOR, CONF, REPOSITORY, load_config

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


@pytest.mark.parametrize("gpus", [0, 3])
def test_all_devices_are_counted(monkeypatch, gpus):
    """`devices: -1` is the default: with three GPUs an update accumulates 11 times, on a CPU 32 times."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    config = load_config("pretrain", "mshubert_base")
    plan_updates(config)
    assert config.trainer.accumulate_grad_batches == (32 if gpus == 0 else 11)
    assert config.trainer.devices == (1 if gpus == 0 else -1)  # Lightning refuses -1 on a CPU


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
    config = load_config("pretrain", "mshubert_base")
    plan_updates(config)
    assert (config.trainer.accelerator, config.trainer.devices) == ("cpu", 1)


# --- The command line ------------------------------------------------------------------------------------------------


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


def test_a_section_of_options_that_is_nothing_is_named():
    """Who wants no masks sets model.masking=null: "NoneType has no attribute" deep in NeMo."""
    composed = load_config("pretrain", "mshubert_base")
    for section in training_setup.SECTIONS:
        config = copy.deepcopy(composed)
        OmegaConf.update(config, section, None)
        with pytest.raises(ValueError, match=f"^{section}=null: it holds other options"):
            plan_updates(config)


@pytest.mark.parametrize(
    "group, name, option",
    [
        ("pretrain", "mshubert_tiny", "label_maker=null"),
        ("pretrain", "mshubert_tiny", "train_manifest=[]"),
        ("finetune", "tiny", "init_model=null"),
    ],
)
def test_nothing_to_train_on_is_named(group, name, option):
    """It was a TypeError, or an attribute that the model is said not to have."""
    with pytest.raises(ValueError, match=f"^{re.escape(option)}: nothing to train on"):
        plan_updates(load_config(group, name, option))


def test_words_that_are_no_switch_are_refused():
    """Hydra reads "no" and "off" as words, which count as true."""
    composed = load_config("pretrain", "mshubert_base")
    for option in training_setup.SWITCHES:
        config = copy.deepcopy(composed)
        OmegaConf.update(config, option, "no")
        with pytest.raises(ValueError, match=f"^{option}=no: expected true or false."):
            plan_updates(config)


@pytest.mark.parametrize("option", ["trainer.max_steps", "model.optim.sched.max_steps"])
@pytest.mark.parametrize("steps", [-1, 5])
def test_another_number_of_updates_is_refused(option, steps):
    """Of the trainer it ended the run early or never, with all that is counted in updates set for another end; in the
    schedule it had no effect, since NeMo gives that the trainer's."""
    with pytest.raises(ValueError, match=f"^{option}={steps}: it follows from max_updates. Set that instead"):
        plan_updates(load_config("finetune", "tiny", f"{option}={steps}"))


@pytest.mark.parametrize("section", ["", "preprocessor.", "train_ds.", "validation_ds."])
def test_another_sample_rate_is_refused(section):
    """Fine-tuning trained on speech at twice its speed, and was validated on speech as it is; pre-training asked for
    new labels."""
    group, name = ("pretrain", "mshubert_tiny") if section in ("", "preprocessor.") else ("finetune", "tiny")
    option = f"model.{section}sample_rate=8000"
    with pytest.raises(ValueError, match=f"^{option}: the encoder hears 16000 samples a second"):
        plan_updates(load_config(group, name, option))


@pytest.mark.parametrize("betas", ["null", "0.9", "[0.9]", "[0.9,1.5]", "[0.9,null]"])
def test_betas_that_are_none_are_refused(betas):
    with pytest.raises(ValueError, match="^model.optim.betas=.*: expected numbers from 0 to below 1, as in"):
        plan_updates(load_config("pretrain", "mshubert_base", f"model.optim.betas={betas}"))


@pytest.mark.parametrize("option", ["~model.optim.betas", "model.optim.betas=[0.9,0.9,0.99]"])
def test_optimizers_with_other_betas_are_taken(option):
    """SGD has none, Adan three."""
    plan_updates(load_config("pretrain", "mshubert_base", option))


@pytest.mark.parametrize("phase", ["warmup", "hold"])
def test_a_phase_that_is_given_twice_is_refused(phase):
    """NeMo's "Either use particular number of step or ratio" says neither where they are nor how to remove one."""
    with pytest.raises(ValueError, match=f"both {phase}_steps and {phase}_ratio.*~model.optim.sched.{phase}_ratio"):
        plan_updates(load_config("finetune", "10h", f"+model.optim.sched.{phase}_steps=1000"))


@pytest.mark.parametrize("name", ["ExponentialLR", "ReduceLROnPlateau"])
def test_a_schedule_by_epochs_is_refused_in_pretraining(name):
    """It kept the rate at its peak to the end, since the only epoch has no end; epochs of fine-tuning have."""
    with pytest.raises(ValueError, match=f"sched.name={name}: it steps behind each epoch"):
        plan_updates(load_config("pretrain", "mshubert_base", f"model.optim.sched.name={name}"))
    plan_updates(load_config("finetune", "10h", f"model.optim.sched.name={name}"))


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


@pytest.mark.parametrize(
    "group, name", [("pretrain", "mshubert_base"), ("finetune", "10h"), ("finetune", "search_1h")]
)
def test_options_that_are_left_out_are_named_together(group, name):
    """OmegaConf names the first of them, under the name it has deep in the config."""
    with initialize_config_dir(str(CONF / group), version_base=None):
        config = compose(name)
    with pytest.raises(ValueError, match="The command line lacks " + "= ".join(ASKED_FOR[group]) + "=. conf/"):
        plan_updates(config)


def test_an_option_may_be_given_as_nothing():
    """A pre-training without validation."""
    plan_updates(load_config("pretrain", "mshubert_base", "validation_manifest=null"))


@pytest.mark.parametrize("group, name", [("pretrain", "mshubert_base"), ("finetune", "10h")])
def test_epochs_are_refused(group, name):
    """Lightning compares them with the interval of validation, which is None, and ends in a TypeError."""
    with pytest.raises(ValueError, match="trainer.max_epochs=1: training is counted in updates. Set max_updates"):
        plan_updates(load_config(group, name, "trainer.max_epochs=1"))


@pytest.mark.parametrize(
    "option, message",
    [
        (
            "+trainer.accumulate_grad_batches=4",
            "trainer.accumulate_grad_batches=4: it follows from seconds_per_update",
        ),
        ("+trainer.val_check_interval=100", "trainer.val_check_interval=100: it follows from validate_every_updates"),
        (
            "trainer.check_val_every_n_epoch=2",
            "trainer.check_val_every_n_epoch=2: it follows from validate_every_updates",
        ),
        (
            "exp_manager.checkpoint_callback_params.monitor=null",
            "exp_manager.checkpoint_callback_params.monitor=null: NeMo names checkpoints by it",
        ),
        ("model.train_ds.batch_duration=null", "model.train_ds.batch_duration: give seconds of audio"),
        ("trainer.precision=bf16-true", "trainer.precision=bf16-true: weights are kept in fp32"),
        ("+trainer.max_time=00:01:00:00", "Set exp_manager.max_time_per_run instead"),
        ("+exp_manager.ema.enable=true", "exp_manager.ema.enable=true: NeMo cannot load the checkpoints"),
        (
            "+exp_manager.checkpoint_callback_params.save_weights_only=true",
            "exp_manager.checkpoint_callback_params.save_weights_only=true: no run goes on from such a checkpoint",
        ),
        ("model.optim.sched=null", "model.optim.sched=null: for a constant rate remove it, ~model.optim.sched"),
        ("trainer.strategy=megatron_tp3", "2, 4, 8 as the number of ranks that share a model"),
    ],
)
def test_what_follows_from_other_options_is_refused(option, message):
    """It was overwritten without a word, or ended in an error of Lightning or NeMo, some at the end of training."""
    with pytest.raises(ValueError, match=re.escape(message)):
        plan_updates(load_config("pretrain", "mshubert_base", option))


@pytest.mark.parametrize(
    "option", ["validation_manifest=null", "validation_manifest=[]", "+trainer.limit_val_batches=0"]
)
def test_without_validation_checkpoints_are_written_all_the_same(option):
    """Else a run that is killed would start anew."""
    config = load_config("pretrain", "mshubert_base", option)
    plan_updates(config)
    assert config.exp_manager.checkpoint_callback_params.every_n_train_steps == config.validate_every_updates


@pytest.mark.parametrize("updates, expected", [(10000, 1), (10001, 0)])
def test_an_encoder_frozen_to_the_end_is_a_warning(monkeypatch, updates, expected):
    warnings = []
    monkeypatch.setattr(training_setup.logging, "warning", warnings.append)
    plan_updates(load_config("finetune", "10h", f"max_updates={updates}"))
    assert sum("The encoder is never trained" in warning for warning in warnings) == expected


@pytest.mark.parametrize("updates, expected", [(32000, 1), (32001, 0)])
def test_a_run_within_its_warm_up_is_a_warning(monkeypatch, updates, expected):
    """A short trial of a long recipe trains with a fraction of the rate that it seems to try."""
    warnings = []
    monkeypatch.setattr(training_setup.logging, "warning", warnings.append)
    plan_updates(load_config("pretrain", "mshubert_base", f"max_updates={updates}", "trainer.devices=32"))
    assert len(warnings) == expected
    assert not warnings or "rises for 32000 updates, and the run has 32000" in warnings[0]


@pytest.mark.parametrize("warmup_steps, expected", [(4, 1), (3, 0)])
def test_the_warm_up_of_fine_tuning_is_looked_at_too(monkeypatch, warmup_steps, expected):
    """Where a number takes the place of the share of the updates."""
    warnings = []
    monkeypatch.setattr(training_setup.logging, "warning", warnings.append)
    schedule = ["~model.optim.sched.warmup_ratio", f"+model.optim.sched.warmup_steps={warmup_steps}"]
    plan_updates(
        load_config("finetune", "10h", "max_updates=4", "freeze_encoder_updates=0", "trainer.devices=8", *schedule)
    )
    assert len(warnings) == expected


def test_a_warm_up_that_is_all_of_the_updates_is_a_warning(monkeypatch):
    warnings = []
    monkeypatch.setattr(training_setup.logging, "warning", warnings.append)
    plan_updates(load_config("finetune", "100h", "model.optim.sched.warmup_ratio=1.0", "trainer.devices=8"))
    (warning,) = warnings
    assert "rises for 80000 updates" in warning and "Lower model.optim.sched.warmup_ratio" in warning
