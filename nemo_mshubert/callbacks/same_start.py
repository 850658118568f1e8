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

"""A fine-tuning resumes only from its own checkpoints, not from those of another model under the same name."""

from typing import Any, Dict

import lightning.pytorch as pl

from nemo_mshubert.modules.fingerprint import weights_fingerprint

KEY = "fingerprint_of_init_model"


class SameStart(pl.Callback):
    """Store the fingerprint of a run's initial weights in its checkpoints.

    Args:
        model: the model with these weights, before training.
    """

    def __init__(self, model: pl.LightningModule):
        self.fingerprint = weights_fingerprint(model)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Dict[str, Any]
    ) -> None:
        checkpoint[KEY] = self.fingerprint

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Dict[str, Any]
    ) -> None:
        """Raises ``ValueError`` for a checkpoint of a run that began with other weights."""
        if checkpoint.get(KEY) != self.fingerprint:
            raise ValueError(
                f"{trainer.ckpt_path}: of a fine-tuning of another init_model, or of another script. Resume with that "
                "one, or start another run with another name=."
            )
