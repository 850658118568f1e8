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

"""Fine-tuning strategy of wav2vec 2.0: for the first updates only the output layer learns."""

import lightning.pytorch as pl
from nemo.utils import logging


class EncoderFreeze(pl.Callback):
    """Keep the encoder as it is for the first ``num_updates`` optimizer steps (fairseq: ``freeze_finetune_updates``).

    Dropout and masks stay on, as in fairseq. The convolutional front end is frozen for good by the encoder's
    ``feature_grad_mult: 0``.
    """

    def __init__(self, num_updates: int):
        self.num_updates = num_updates

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        frozen = trainer.global_step < self.num_updates  # from the step, so that a resumed run is right
        if pl_module.encoder.frozen != frozen:
            logging.info(
                f"Update {trainer.global_step}: the encoder is {'frozen' if frozen else 'trained'} from now on."
            )
            pl_module.encoder.frozen = frozen

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer) -> None:
        if pl_module.encoder.frozen:  # gradients are zero for DDP, which waits for them: Adam would decay weights
            pl_module.encoder.zero_grad(set_to_none=True)
