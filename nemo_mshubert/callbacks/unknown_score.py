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

"""Names of checkpoints that are written before the first validation."""

import lightning.pytorch as pl
import torch


class UnknownScore(pl.Callback):
    """Until a new or resumed run has validated, put ``nan`` into the names, where Lightning would put 0.0000."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.checkpoint_callback is not None:
            trainer.callback_metrics.setdefault(trainer.checkpoint_callback.monitor, torch.tensor(torch.nan))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on, Lightning again raises its error for a monitor that is never logged."""
        if trainer.checkpoint_callback is not None:
            score = trainer.callback_metrics.get(trainer.checkpoint_callback.monitor)
            if score is not None and torch.isnan(score):
                del trainer.callback_metrics[trainer.checkpoint_callback.monitor]
