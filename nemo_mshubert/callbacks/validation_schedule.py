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
from typing import Optional

import lightning.pytorch as pl

from nemo_mshubert.callbacks.finished_run import has_all_updates

NOT_YET = sys.maxsize


class ValidationSchedule(pl.Callback):
    """Validate behind every ``val_check_interval / accumulate_grad_batches``-th update and behind the last.

    Lightning counts micro-batches. An update has fewer of them at the end of an epoch, and an epoch of ten minutes is
    shorter than one update: the interval would be several times as long, and validations, which write the checkpoints,
    would fall in the middle of updates. Nor would it validate the last weights, of which the best are chosen.
    """

    def __init__(self):
        self._update = 0
        self._interval: Optional[int] = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._update = trainer.global_step
        self._interval = self._updates_between(trainer)
        if self._interval:
            trainer.val_check_batch = NOT_YET  # a checkpoint of a validation does not need it again

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx
    ) -> None:
        has_ended, self._update = trainer.global_step != self._update, trainer.global_step
        if self._interval:
            is_due = has_ended and (trainer.global_step % self._interval == 0 or has_all_updates(trainer))
            trainer.val_check_batch = 1 if is_due else NOT_YET  # Lightning looks at it next

    @staticmethod
    def _updates_between(trainer: pl.Trainer) -> Optional[int]:
        """None where the interval is a share of an epoch, which is left to Lightning."""
        if not isinstance(trainer.val_check_interval, int):
            return None
        return max(1, trainer.val_check_interval // trainer.accumulate_grad_batches)
