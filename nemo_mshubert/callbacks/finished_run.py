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

"""The ``.nemo`` of a run that was killed between its last checkpoint and that file."""

import os

import lightning.pytorch as pl
from nemo.utils import logging
from nemo.utils.callbacks.nemo_model_checkpoint import NeMoModelCheckpoint


class FinishedRun(pl.Callback):
    """Write the ``.nemo`` where a run that has had all its updates lacks it.

    NeMo writes it at the end of training, which Lightning does not reach again when all updates are in the checkpoint.
    """

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        checkpoints = trainer.checkpoint_callback
        if not isinstance(checkpoints, NeMoModelCheckpoint) or not checkpoints.save_nemo_on_train_end:
            return
        path = checkpoints._format_nemo_checkpoint_name()
        is_there = trainer.strategy.broadcast(os.path.exists(path))
        if not is_there and 0 < trainer.max_steps <= trainer.global_step:
            logging.info(f"All {trainer.global_step} updates are done, but {path} is missing: writing it.")
            checkpoints.on_train_end(trainer, pl_module)
