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

"""Tri-stage learning rate of wav2vec 2.0 and HuBERT fine-tuning, as a NeMo schedule named ``TriStageAnnealing``."""

import math
from dataclasses import dataclass
from typing import List

from nemo.core.config.schedulers import WarmupHoldSchedulerParams
from nemo.core.optim.lr_scheduler import AVAILABLE_SCHEDULERS, WarmupHoldPolicy, register_scheduler

NAME = "TriStageAnnealing"


@dataclass
class TriStageAnnealingParams(WarmupHoldSchedulerParams):
    """Options of ``optim.sched``, in addition to NeMo's warm-up and hold."""

    init_lr_scale: float = 0.01
    final_lr_scale: float = 0.05


class TriStageAnnealing(WarmupHoldPolicy):
    """Linear warm-up from ``init_lr_scale`` x lr, hold, exponential decay to ``final_lr_scale`` x lr at ``max_steps``,
    but not below NeMo's ``min_lr``.

    Equals fairseq's ``tri_stage`` (phase ratios: ``warmup_ratio``, ``hold_ratio``, and the rest).
    """

    def __init__(
        self, optimizer, *, max_steps: int, init_lr_scale: float = 0.01, final_lr_scale: float = 0.05, **kwargs
    ):
        self.init_lr_scale = init_lr_scale
        self.final_lr_scale = final_lr_scale
        super().__init__(optimizer, max_steps=max_steps, **kwargs)

    def get_lr(self) -> List[float]:
        lowest = 0.0 if self.last_epoch < self.warmup_steps else self.min_lr
        return [max(lr * self.scale(self.last_epoch), lowest) for lr in self.base_lrs]

    def scale(self, step: int) -> float:
        """Learning rate at ``step`` (updates done so far) as a share of the peak."""
        end_of_hold = max(self.hold_steps, self.warmup_steps)  # NeMo's hold_steps includes the warm-up
        if step < self.warmup_steps:
            return self.init_lr_scale + (1 - self.init_lr_scale) * step / self.warmup_steps
        if step < end_of_hold:
            return 1.0
        decayed = min((step - end_of_hold) / max(self.max_steps - end_of_hold, 1), 1.0)
        return math.exp(math.log(self.final_lr_scale) * decayed)


if NAME not in AVAILABLE_SCHEDULERS:  # a notebook may load this module again, and NeMo takes a name only once
    register_scheduler(NAME, TriStageAnnealing, TriStageAnnealingParams)
