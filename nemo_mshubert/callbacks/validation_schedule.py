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

"""When a run is validated: counted in updates."""

import sys
from typing import Any, Dict, Optional

import lightning.pytorch as pl

from nemo_mshubert.callbacks.finished_run import has_all_updates

NOT_YET = sys.maxsize


class ValidationSchedule(pl.Callback):
    """Validate after every ``val_check_interval / accumulate_grad_batches``-th update and after the last.

    Lightning counts micro-batches. An update has fewer of them at the end of an epoch, and an epoch of ten minutes is
    shorter than one update. The interval would then be several times as long, and validations, which write the
    checkpoints, would fall in the middle of updates. Nor would the last weights be validated, which may be the best.

    A run that was preempted after such an update but before its validation starts with this when it is resumed.
    """

    def __init__(self):
        self._update = 0
        self._interval: Optional[int] = None  # None: a share of an epoch, left to Lightning
        self._validated: Optional[int] = None  # the last update that was validated

    def state_dict(self) -> Dict[str, Any]:
        return {"validated": self._validated}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self._validated = state_dict["validated"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._update = trainer.global_step
        if isinstance(trainer.val_check_interval, int):
            self._interval = max(1, trainer.val_check_interval // trainer.accumulate_grad_batches)
        if self._validated is None:  # a new run, or a checkpoint that does not say it
            self._validated = trainer.global_step
        if self._interval:
            trainer.val_check_batch = NOT_YET  # a checkpoint from a validation does not need it again
            if self._is_due(trainer) and self._validated != trainer.global_step:
                _validate_first(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx
    ) -> None:
        has_ended, self._update = trainer.global_step != self._update, trainer.global_step
        if self._interval:
            # Lightning reads this next
            trainer.val_check_batch = 1 if has_ended and self._is_due(trainer) else NOT_YET

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = trainer.global_step

    def _is_due(self, trainer: pl.Trainer) -> bool:
        return trainer.global_step % self._interval == 0 or has_all_updates(trainer)


def _validate_first(trainer: pl.Trainer) -> None:
    """Validate before training, as Lightning does if a validation is due when a run is resumed."""
    loop = trainer.fit_loop.epoch_loop
    loop.val_loop.restarting = False  # it was not interrupted in the middle of one
    loop._batches_that_stepped -= 1  # the step of its curve, which Lightning counts after the validation
    trainer.val_check_batch = 1
