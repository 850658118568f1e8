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

"""A fine-tuning goes on at its place in the data with another number of ranks than before."""

from typing import Any, Dict

import lightning.pytorch as pl

KEY = "ranks"


class OtherRanks(pl.Callback):
    """Count the batches of a resumed epoch in those of the ranks that there are now.

    NeMo's sampler draws as many batches as there are ranks, and each takes one: batch b of n ranks is batch ``n b + rank``
    of one. Lightning counts those of a rank. Less than one update is made of batches that were trained on before in
    this epoch, and none is left out.
    """

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Dict[str, Any]
    ) -> None:
        checkpoint[KEY] = trainer.world_size

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Dict[str, Any]
    ) -> None:
        """Before Lightning restores its counts."""
        before, now = checkpoint.get(KEY, trainer.world_size), trainer.world_size
        if before == now:
            return
        of_this_epoch = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        batches = of_this_epoch["completed"] * before // now
        batches -= batches % trainer.accumulate_grad_batches  # an update begins with it
        of_this_epoch.update(dict.fromkeys(of_this_epoch, batches))
