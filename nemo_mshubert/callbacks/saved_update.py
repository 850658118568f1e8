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

"""Checkpoints hold whole updates, both in a new run and in one that resumes from them."""

from typing import Any, Dict

import lightning.pytorch as pl


class SavedUpdate(pl.Callback):
    """Correct what Lightning's checkpoints say about the update after which they are written."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Dict[str, Any]
    ) -> None:
        """Count the batch at whose end the checkpoint is written as done.

        Lightning marks a batch as completed only after its callbacks, one of which writes the checkpoint. A resumed
        run would count that batch twice, repeat it, and take the next accumulated step one micro-batch early. The step
        that loggers see lags in the same way.
        """
        loop = checkpoint["loops"]["fit_loop"]
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step
        progress = loop["epoch_loop.batch_progress"]
        for tracker in (progress["total"], progress["current"]):
            tracker["completed"] = tracker["processed"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Without validation: tell Lightning at which update the last checkpoint was written, since it forgets this.

        A resumed run would otherwise write another one after its first micro-batch, in the middle of the accumulated
        gradients of an update, and overwrite the only checkpoint.
        """
        checkpoints = trainer.checkpoint_callback
        if checkpoints is not None and checkpoints._every_n_train_steps:
            checkpoints._last_global_step_saved = trainer.global_step
