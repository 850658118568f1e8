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

"""Numbers among the options of a training that are none, or beyond what they may be."""

import copy

import pytest
from omegaconf import OmegaConf

from nemo_mshubert.models.number_options import NULLABLE, SECTIONS, check_numbers
from tests.conftest import load_config
from tests.test_configs import EXPERIMENTS

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def composed():
    return {group: load_config(group, name) for group, name in (("pretrain", "mshubert_tiny"), ("finetune", "tiny"))}


@pytest.fixture
def changed(composed):
    """``changed("pretrain", "model.swap", None)``: the config of the smallest experiment with an option changed."""

    def change(group, option, value):
        config = copy.deepcopy(composed[group])
        OmegaConf.set_struct(config, False)
        OmegaConf.update(config, option, value)
        return config

    return change


@pytest.mark.parametrize("group, name", EXPERIMENTS)
def test_all_experiments_have_numbers_that_may_be(group, name):
    check_numbers(load_config(group, name))


def test_every_number_is_one_of_an_experiment(composed):
    """A misspelt name would leave the option unchecked; the rest are NeMo's, which a user may add."""
    added = {"batch_size", "max_duration", "truncate_duration", "min_duration", "hold_steps", "save_top_k"}
    for section, kinds in SECTIONS.items():
        for option in kinds:
            path = f"{section}.{option}".lstrip(".")
            assert option in added or any(
                OmegaConf.select(config, path) is not None for config in composed.values()
            ), path


@pytest.mark.parametrize("value", ["abc", True, -2, float("nan"), None])
def test_what_is_no_number_of_its_kind_is_named(changed, value):
    """PyTorch compared it with another in the first update, or trained: a negative clip turned all gradients round."""
    for section, kinds in SECTIONS.items():
        for option in kinds:
            if (option, value) == ("min_duration", -2) or (value is None and option in NULLABLE):
                continue
            name = f"{section}.{option}".lstrip(".")
            with pytest.raises(ValueError, match=f"^{name}={'null' if value is None else value}: expected "):
                check_numbers(changed("pretrain", name, value))


@pytest.mark.parametrize(
    "option, value",
    [("model.optim.sched.power", -1), ("model.optim.sched.min_lr", None)]  # errors at the end of the warm-up
    + [("model.optim.sched.min_lr", -1e-4), ("model.loss.penalty_weight", -10)]  # the loss rises
    + [("model.encoder.layerdrop", 1), ("model.encoder.layerdrop", 2)]  # no block is trained
    + [("model.label_heads.temperature", 0), ("model.optim.eps", 0), ("model.optim.lr", 0)]
    + [("model.train_ds.max_duration", 0)]  # Lhotse searches for ever
    + [("seconds_per_update", float("inf")), ("model.masking.mask_length", 2.5)]
    + [("model.loss.penalty_weight", float("inf"))]
    + [("model.train_ds.seed", "randomized")],  # a resumed run would go on in the middle of another order
)
def test_what_would_train_something_else_is_refused(changed, option, value):
    with pytest.raises(ValueError, match=f"^{option}={'null' if value is None else value}: expected "):
        check_numbers(changed("pretrain", option, value))


@pytest.mark.parametrize(
    "option, value",
    [("exp_manager.checkpoint_callback_params.save_top_k", count) for count in (0, -1)]
    + [("model.train_ds.max_duration", float("inf")), ("model.train_ds.min_duration", -1)]  # NeMo's own defaults
    + [("model.train_ds.shuffle_buffer_size", None), ("model.optim.sched.warmup_ratio", 1.0)],
)
def test_the_ends_of_what_may_be_are_taken(changed, option, value):
    """A run that NeMo can do would be refused."""
    check_numbers(changed("finetune", option, value))


@pytest.mark.parametrize("option, value", [("final_lr_scale", 0), ("warmup_ratio", 1.5), ("hold_ratio", -0.1)])
def test_the_schedule_of_fine_tuning_is_looked_at(changed, option, value):
    """A decay to 0 by a factor was a math domain error, after half of the updates."""
    with pytest.raises(ValueError, match=f"^model.optim.sched.{option}={value}: expected a number "):
        check_numbers(changed("finetune", f"model.optim.sched.{option}", value))


def test_what_fine_tuning_has_in_its_first_level_is_looked_at(changed):
    with pytest.raises(ValueError, match="^max_nonfinite_steps=1.5: expected a whole number, 0 or above.$"):
        check_numbers(changed("finetune", "max_nonfinite_steps", 1.5))


def test_null_stands_for_a_default_where_there_is_one(changed):
    config = changed("pretrain", "model.optim.fused", None)
    for section, kinds in SECTIONS.items():
        for option in set(NULLABLE) & set(kinds):
            OmegaConf.update(config, f"{section}.{option}", None)
    check_numbers(config)
    config.model.train_ds.batch_size = 0
    with pytest.raises(ValueError, match="^model.train_ds.batch_size=0: expected a whole number above 0, or null.$"):
        check_numbers(config)
