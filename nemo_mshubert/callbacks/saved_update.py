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

"""The checkpoint that a run has resumed from is not written again."""

import lightning.pytorch as pl


class SavedUpdate(pl.Callback):
    """Without a validation: tell Lightning, which forgets it, at which update the last checkpoint was written.

    A resumed run would write another behind its first micro-batch, in the middle of the accumulated gradients of an
    update, over the only one there is.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        checkpoints = trainer.checkpoint_callback
        if checkpoints is not None and checkpoints._every_n_train_steps:
            checkpoints._last_global_step_saved = trainer.global_step
