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

"""A resumed run follows the schedule and the optimizer of its config, from the update that it has reached."""

import warnings
from typing import Any, Dict

import lightning.pytorch as pl
from nemo.core import ModelPT
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

# State of PyTorch's schedulers that is kept; the rest of it follows from the config.
PROGRESS = {"last_epoch", "_step_count", "_last_lr", "best", "num_bad_epochs", "cooldown_counter"}
NEEDED = {"_scale_fn_custom"}  # CyclicLR loads no state without it
# Options of optimizers, besides the rate, which follows from the schedule.
OPTIONS = ("betas", "eps", "weight_decay")
KERNELS = ("fused", "foreach", "capturable")  # PyTorch lays out the loaded state as these require


class ConfiguredSchedule(pl.Callback):
    """Take the progress of the schedule and the moments from the checkpoint, but the peak, warm-up, length and
    optimizer options from the config.

    PyTorch restores all of them. A run that resumes with more updates would then train at the end of the old schedule,
    at rate 0; a changed weight decay would have no effect; and one optimizer would be asked for the fused kernel of
    another.
    """

    def __init__(self):
        self._is_resumed = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            if len(optimizer.param_groups) == 1:  # several have options of their own, which only the checkpoint knows
                found = {name: optimizer.defaults[name] for name in OPTIONS if name in optimizer.defaults}
                optimizer.param_groups[0].update(found)
        if self._is_resumed:
            for config in trainer.lr_scheduler_configs:
                _set_rates(config.scheduler)
            if not trainer.lr_scheduler_configs:
                for optimizer in trainer.optimizers:
                    _set_constant_rates(optimizer)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Dict[str, Any]
    ) -> None:
        self._is_resumed = True
        for state in checkpoint.get("lr_schedulers", []):
            for name in set(state) - PROGRESS - NEEDED:
                del state[name]
        if isinstance(pl_module, ModelPT):
            for state in checkpoint.get("optimizer_states", []):
                for group in state["param_groups"]:
                    group.update({name: pl_module.cfg.optim.get(name) for name in KERNELS if name in group})


def _set_rates(scheduler: LRScheduler) -> None:
    """Until the schedule steps, use the rates of its present position, not those in the optimizer's state."""
    if isinstance(scheduler, ReduceLROnPlateau):  # it has no other rates
        return
    steps = scheduler._step_count  # kept, since checkpoints hold it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stepping to a given position is deprecated, for lack of use
        scheduler.step(scheduler.last_epoch)
    scheduler._step_count = steps


def _set_constant_rates(optimizer: Optimizer) -> None:
    """Without a schedule: use the rates of the config, not those that an earlier schedule had reached."""
    for group in optimizer.param_groups:
        if len(optimizer.param_groups) == 1:
            group["lr"] = optimizer.defaults["lr"]
        else:
            group["lr"] = group.get("initial_lr", group["lr"])
