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

"""One progress bar for a whole run."""

import time
from typing import Dict, Union

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar

SECONDS_BETWEEN_DRAWINGS = 1.0  # a log file of weeks holds every drawing


class UpdatesProgressBar(TQDMProgressBar):
    """Shows how many of ``trainer.max_steps`` updates are done, and the time that is left.

    Lightning's own bar counts the micro-batches of an epoch, a number that is unknown for bucketed and tarred data.
    """

    def on_train_start(self, trainer: pl.Trainer, *_) -> None:
        super().on_train_start(trainer)
        bar = self.train_progress_bar
        bar.total = trainer.max_steps if trainer.max_steps > 0 else None
        # in a resumed run, earlier updates do not count for the speed
        bar.initial = bar.n = bar.last_print_n = trainer.global_step
        bar.unit, bar.mininterval = " updates", SECONDS_BETWEEN_DRAWINGS
        bar.refresh()

    def on_train_epoch_start(self, trainer: pl.Trainer, *_) -> None:
        """Start no new bar."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        bar = self.train_progress_bar
        if bar.disable or trainer.global_step == bar.n:
            return
        if time.time() - bar.last_print_t >= bar.mininterval:  # the host waits for the GPU to get the loss
            bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
        bar.update(trainer.global_step - bar.n)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Dict[str, Union[int, str, float]]:
        """Lightning's metrics and the loss. The loss is added here, since what a model logs with ``prog_bar`` is read
        from the GPU after every batch."""
        shown = super().get_metrics(trainer, pl_module)
        if "train_loss" in trainer.callback_metrics:
            shown["train_loss"] = float(trainer.callback_metrics["train_loss"])
        return shown
