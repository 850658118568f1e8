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

"""Options that a training takes and refuses."""

import copy
import re

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nemo_mshubert.models import training_options
from nemo_mshubert.models.training_setup import plan_updates
from tests.conftest import ASKED_FOR, CONF, load_config

pytestmark = pytest.mark.unit


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr(training_options.logging, "warning", messages.append)
    return messages


@pytest.mark.parametrize(
    "option, message",
    [
        ("+trainer.limit_train_batches=1000", "limit_train_batches=1000: the data would begin anew"),
        ("+trainer.limit_train_batches=1", "limit_train_batches=1: the data would begin anew"),
        ("+trainer.limit_train_batches=0.5", "limit_train_batches=0.5: the data would begin anew"),
        # an epoch of fine-tuning that is shorter than an update would never make one
        ("+trainer.limit_train_batches=1000000000", "limit_train_batches=1000000000: the data would begin anew"),
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
    for section in training_options.SECTIONS:
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
    pretraining, finetuning = load_config("pretrain", "mshubert_base"), load_config("finetune", "10h")
    for option in training_options.SWITCHES:
        config = copy.deepcopy(finetuning if option == "model.use_cer" else pretraining)
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
        (
            "exp_manager.disable_validation_on_resume=true",
            "disable_validation_on_resume=true: NeMo would also leave out one that was due",
        ),
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


@pytest.mark.parametrize("updates, expected", [(10000, 1), (10001, 0)])
def test_an_encoder_frozen_to_the_end_is_a_warning(warnings, updates, expected):
    plan_updates(load_config("finetune", "10h", f"max_updates={updates}"))
    assert sum("The encoder is never trained" in warning for warning in warnings) == expected


@pytest.mark.parametrize("updates, expected", [(32000, 1), (32001, 0)])
def test_a_run_within_its_warm_up_is_a_warning(warnings, updates, expected):
    """A short trial of a long recipe trains with a fraction of the rate that it seems to try."""
    plan_updates(load_config("pretrain", "mshubert_base", f"max_updates={updates}", "trainer.devices=32"))
    assert len(warnings) == expected
    assert not warnings or "rises for 32000 updates, and the run has 32000" in warnings[0]


@pytest.mark.parametrize("warmup_steps, expected", [(4, 1), (3, 0)])
def test_the_warm_up_of_fine_tuning_is_looked_at_too(warnings, warmup_steps, expected):
    """Where a number takes the place of the share of the updates."""
    schedule = ["~model.optim.sched.warmup_ratio", f"+model.optim.sched.warmup_steps={warmup_steps}"]
    plan_updates(
        load_config("finetune", "10h", "max_updates=4", "freeze_encoder_updates=0", "trainer.devices=8", *schedule)
    )
    assert len(warnings) == expected


def test_a_warm_up_that_is_all_of_the_updates_is_a_warning(warnings):
    plan_updates(load_config("finetune", "100h", "model.optim.sched.warmup_ratio=1.0", "trainer.devices=8"))
    (warning,) = warnings
    assert "rises for 80000 updates" in warning and "Lower model.optim.sched.warmup_ratio" in warning


@pytest.mark.parametrize(
    "group, option",
    [
        ("pretrain", "lr=1e-4"),
        ("pretrain", "max_update=10"),  # others refer to max_updates
        ("pretrain", "freeze_encoder_updates=10"),
        ("pretrain", "model.mask_prob=0.8"),
        ("finetune", "lr=1e-4"),
        ("finetune", "init_encoder=hubert.nemo"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(group, option):
    """Hydra's hint for a misspelt one is to put a plus before it: the run was made, with the option left out."""
    name = "mshubert_base" if group == "pretrain" else "10h"
    with pytest.raises(ValueError, match=f"^{re.escape(option.split('=')[0])}=.*: nothing reads this option"):
        plan_updates(load_config(group, name, f"+{option}"))


def test_an_option_that_others_refer_to_is_taken():
    """Such as a folder of the data that is named once."""
    options = ["+data=/corpora", "train_manifest='${data}/train.json'", "+model.width=512", "+folds.a=3"]
    options += ["model.encoder.d_inner='${model.width}'", "max_updates='${folds.a}'"]
    plan_updates(load_config("pretrain", "mshubert_base", *options))


@pytest.mark.parametrize("option", ["init_from_nemo_model=a.nemo", "init_from_ptl_ckpt=a.ckpt"])
def test_initial_weights_by_nemo_are_taken_in_pretraining(option):
    plan_updates(load_config("pretrain", "mshubert_base", f"+{option}"))


@pytest.mark.parametrize("group, name", [("pretrain", "mshubert_base"), ("finetune", "10h")])
def test_an_optimizer_without_a_name_is_refused(group, name):
    """NeMo trains with Adam then, not with the recipe's AdamW."""
    with pytest.raises(ValueError, match="^model.optim.name: expected an optimizer"):
        plan_updates(load_config(group, name, "model.optim.name=null"))
