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

"""Writes the ``.nemo`` of a run that was killed after its last checkpoint, but before that file was written."""

import os
from typing import Optional

import lightning.pytorch as pl
from nemo.utils import logging
from nemo.utils.callbacks.nemo_model_checkpoint import NeMoModelCheckpoint


def has_all_updates(trainer: pl.Trainer) -> bool:
    """Whether all updates are done; never, if training is not counted in updates."""
    return 0 < trainer.max_steps <= trainer.global_step


def _is_current(path: str, checkpoint: Optional[str]) -> bool:
    """Whether there is a ``.nemo`` that is not older than the checkpoint from which the run resumed."""
    if not os.path.exists(path):
        return False
    return not (checkpoint and os.path.exists(checkpoint)) or os.path.getmtime(path) >= os.path.getmtime(checkpoint)


class FinishedRun(pl.Callback):
    """If a run has already had all its updates, say that nothing is trained, and write its ``.nemo`` if it is missing
    or from fewer updates.

    NeMo writes it at the end of training, which Lightning does not reach again when all updates are in the checkpoint.
    """

    def __init__(self):
        self._begun_at: Optional[int] = None  # Lightning may end before training starts

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun_at = trainer.global_step

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if has_all_updates(trainer) and self._begun_at in (None, trainer.global_step):
            logging.warning(
                f"Nothing was trained: the run had all its {trainer.max_steps} updates before. Another experiment "
                "needs another name=, and more updates of this one a larger max_updates."
            )
        checkpoints = trainer.checkpoint_callback
        if not isinstance(checkpoints, NeMoModelCheckpoint) or not checkpoints.save_nemo_on_train_end:
            return
        path = checkpoints._format_nemo_checkpoint_name()
        is_there = trainer.strategy.broadcast(_is_current(path, trainer.ckpt_path))
        if not is_there and has_all_updates(trainer):
            logging.info(
                f"All {trainer.global_step} updates are done, but {path} is missing, or of fewer: writing it."
            )
            if getattr(pl_module, "is_split", False):  # the ranks no longer reach each other's parts
                best = checkpoints.best_model_path if checkpoints.save_best_model else ""
                pl_module.save_checkpoint_to(best or trainer.ckpt_path, path)
            else:
                checkpoints.on_train_end(trainer, pl_module)
