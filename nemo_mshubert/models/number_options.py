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

"""Checks the numbers among the options of a training run before it starts. Libraries meet them only when data are
loaded, in the first update or at the end of the warm-up. Their errors then name variables of their own, or they train
something else without a warning."""

import math
from dataclasses import dataclass
from typing import Any, Callable, Dict

from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class Kind:
    """What a number may be."""

    name: str
    is_whole: bool
    holds: Callable[[float], bool]

    def takes(self, value: Any) -> bool:
        kinds = int if self.is_whole else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and self.holds(value)


COUNT = Kind("a whole number above 0", True, lambda value: value > 0)
WHOLE = Kind("a whole number, 0 or above", True, lambda value: value >= 0)
KEPT = Kind("a whole number, or -1 for all", True, lambda value: value >= -1)
POSITIVE = Kind("a number above 0", False, lambda value: 0 < value < math.inf)
LONGEST = Kind("a number above 0", False, lambda value: value > 0)
WEIGHT = Kind("a number, 0 or above", False, lambda value: 0 <= value < math.inf)
CHANCE = Kind("a number from 0 to below 1", False, lambda value: 0 <= value < 1)
SHARE = Kind("a number from 0 to 1", False, lambda value: 0 <= value <= 1)
SECONDS = Kind("a number", False, lambda value: not math.isnan(value))  # NeMo's own min_duration is -1

DATA = {"batch_duration": POSITIVE, "batch_size": COUNT, "num_workers": WHOLE, "min_duration": SECONDS}
DATA.update(max_duration=LONGEST, truncate_duration=POSITIVE)
BUCKETS = {"num_buckets": COUNT, "num_cuts_for_bins_estimate": COUNT, "bucket_buffer_size": COUNT}
BUCKETS.update(shuffle_buffer_size=WHOLE, max_unreadable=WHOLE)
SIZES = ("d_model", "num_layers", "num_heads", "d_inner", "pos_conv_kernel", "pos_conv_groups")
CHANCES = ("dropout", "attention_dropout", "activation_dropout", "dropout_input", "layerdrop")

SECTIONS: Dict[str, Dict[str, Kind]] = {
    "": {
        "max_updates": COUNT,
        "validate_every_updates": COUNT,
        "seconds_per_update": POSITIVE,
        "freeze_encoder_updates": WHOLE,
        "max_nonfinite_steps": WHOLE,
    },
    "model": {"seed": WHOLE, "drop_label_sets": WHOLE, "unmasked_weight": WEIGHT, "max_nonfinite_steps": WHOLE},
    "model.masking": {"mask_prob": POSITIVE, "mask_length": COUNT},
    "model.encoder": {
        **dict.fromkeys(SIZES, COUNT),
        **dict.fromkeys(CHANCES, CHANCE),
        "feature_grad_mult": WEIGHT,
        "mask_prob": WEIGHT,
        "mask_length": WHOLE,
        "mask_channel_prob": WEIGHT,
        "mask_channel_length": WHOLE,
    },
    "model.label_heads": {"d_head": COUNT, "temperature": POSITIVE},
    "model.loss": {"penalty_weight": WEIGHT},
    "model.train_ds": {**DATA, **BUCKETS, "seed": WHOLE},  # with NeMo's "randomized", no run could be resumed
    "model.validation_ds": DATA,
    "model.optim": {"lr": POSITIVE, "eps": POSITIVE, "weight_decay": WEIGHT},
    "model.optim.sched": {
        "warmup_steps": WHOLE,
        "warmup_ratio": SHARE,
        "hold_steps": WHOLE,
        "hold_ratio": SHARE,
        "power": WEIGHT,
        "min_lr": WEIGHT,
        "init_lr_scale": WEIGHT,
        "final_lr_scale": POSITIVE,  # the rate decays to it by a factor per update, so it cannot be 0
    },
    "trainer": {"num_nodes": COUNT, "gradient_clip_val": WEIGHT, "log_every_n_steps": COUNT},
    "exp_manager.checkpoint_callback_params": {"save_top_k": KEPT},
}
NULLABLE = ("batch_duration", "batch_size", "min_duration", "max_duration", "truncate_duration", "shuffle_buffer_size")
NULLABLE += ("warmup_steps", "warmup_ratio", "hold_steps", "hold_ratio", "gradient_clip_val", "log_every_n_steps")


def check_numbers(cfg: DictConfig) -> None:
    """Raise ``ValueError`` if an option of a config of conf/pretrain or conf/finetune is not the kind of number that
    it must be. A missing option has its default; so does one in `NULLABLE` that is null."""
    for section, kinds in SECTIONS.items():
        options = OmegaConf.select(cfg, section) if section else cfg
        for option, kind in kinds.items():
            if not options or option not in options or (options[option] is None and option in NULLABLE):
                continue
            value = options[option]
            if not kind.takes(value):
                name = f"{section}.{option}".lstrip(".")
                found, or_null = "null" if value is None else value, ", or null" if option in NULLABLE else ""
                raise ValueError(f"{name}={found}: expected {kind.name}{or_null}.")
