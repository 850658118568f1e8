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

"""A resumed run follows the schedule and the optimizer of its config, from the update it has come to."""

from typing import Any, Dict

import lightning.pytorch as pl

# Of PyTorch's schedulers; all else of their state follows from the config.
PROGRESS = {"last_epoch", "_step_count", "_last_lr"}
# Of optimizers, besides the rate, which follows from the schedule.
OPTIONS = ("betas", "eps", "weight_decay")


class ConfiguredSchedule(pl.Callback):
    """Take how far a schedule has come, and the moments, from the checkpoint; peak, warm-up, length and the options of
    the optimizer from the config.

    PyTorch restores all of them: a run that resumes with more updates would train at the end of the old schedule, at
    rate 0, and another weight decay would have no effect.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            if len(optimizer.param_groups) == 1:  # several have options of their own, which only the checkpoint knows
                found = {name: optimizer.defaults[name] for name in OPTIONS if name in optimizer.defaults}
                optimizer.param_groups[0].update(found)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Dict[str, Any]
    ) -> None:
        for state in checkpoint.get("lr_schedulers", []):
            for name in set(state) - PROGRESS:
                del state[name]
