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

"""The last weights of a run are validated like those before."""

import lightning.pytorch as pl

from nemo_mshubert.callbacks.finished_run import has_all_updates


class LastValidation(pl.Callback):
    """Validate behind the last update, which Lightning does only where the length of the run is a multiple of
    ``val_check_interval``: the best weights are chosen among those that were validated."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx
    ) -> None:
        if has_all_updates(trainer):
            trainer.should_stop = True  # Lightning validates before it stops early
