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

"""A fine-tuning resumes at its place in the data, even with another number of ranks or of batches in an update."""

from dataclasses import asdict, replace
from typing import Any, Dict, Optional

import lightning.pytorch as pl

from nemo_mshubert.data.resumable_loader import data_options, warn_of_other_data
from nemo_mshubert.data.resumed_sampler import ResumedSampler
from nemo_mshubert.data.shared_batches import Place

KEY = "place"


class OtherRanks(pl.Callback):
    """Tell the sampler of a resumed fine-tuning which batches of its epoch all ranks together have trained on.
    Lightning counts the batches of one rank, so it gets a count for the present number of ranks.

    For tarred data, whose order is drawn anew on a resume, only the count is set. For other data, it warns if the data
    or the options of their batches have changed.
    """

    def __init__(self):
        self._data_options: Optional[Dict[str, Any]] = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Dict[str, Any]
    ) -> None:
        sampler = _sampler(pl_module)
        if sampler:
            checkpoint["data_options"] = self._options(trainer, pl_module)
        place = sampler.place if sampler else Place(_epochs(checkpoint)["processed"])
        checkpoint[KEY] = {"ranks": trainer.world_size, **asdict(place)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Dict[str, Any]
    ) -> None:
        """Called before Lightning restores its counts."""
        place = dict(checkpoint[KEY])
        before, place = place.pop("ranks"), Place(**place)
        sampler, epochs = _sampler(pl_module), _epochs(checkpoint)
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        if sampler and place.epoch == epochs["processed"] - 1:
            # The run ended at its number of updates, which Lightning takes for the end of the epoch.
            epochs.update(processed=place.epoch, completed=place.epoch)
        place = place.in_epoch(epochs["processed"]).when_next_is(batches["completed"], before)
        if trainer.world_size != before or batches["completed"] % trainer.accumulate_grad_batches:
            number = place.batches // trainer.world_size
            number -= number % trainer.accumulate_grad_batches  # an update begins with it
            batches.update(dict.fromkeys(batches, number))
            place = replace(place, number=number)
        if sampler:
            sampler.place = place
            is_resumed = trainer.global_step == 0  # else this is the best checkpoint, loaded after training
            if is_resumed and "data_options" in checkpoint:
                warn_of_other_data(checkpoint["data_options"], self._options(trainer, pl_module))

    def _options(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Dict[str, Any]:
        if self._data_options is None:  # as the data was at first, since the run trains on that
            self._data_options = data_options(pl_module.cfg.train_ds, trainer.world_size)
        return self._data_options


def _epochs(checkpoint: Dict[str, Any]) -> Dict[str, int]:
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]


def _sampler(model: pl.LightningModule) -> Optional[ResumedSampler]:
    sampler = getattr(model._train_dl, "sampler", None)
    return sampler if isinstance(sampler, ResumedSampler) else None
