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

"""Resume NeMo's own loader of plain manifests at the batch that training has reached."""

from typing import Iterator

from lhotse import CutSet
from lhotse.dataset.sampling.base import CutSampler
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from nemo_mshubert.data.resumable_loader import with_sampler
from nemo_mshubert.data.shared_batches import Place, SharedBatches


class ResumedSampler:
    """The batches of NeMo's sampler; the first pass of a resumed run omits those that it has trained on.

    Lightning restores its count of batches, but restarts the data at the beginning, in the order of the first epoch:
    it asks for an iterator before it tells the sampler the epoch. ``place`` is where the current epoch, or what was
    left of it, began; its numbers follow Lightning's count in that epoch. See `callbacks.other_ranks`.
    """

    def __init__(self, sampler: CutSampler, trainer: Trainer):
        self.batches = SharedBatches(sampler)
        self.trainer = trainer
        self.place = Place()

    def set_epoch(self, epoch: int) -> None:
        self.place = self.place.in_epoch(epoch)  # in a resumed run, called after the iterator was made

    def __iter__(self) -> Iterator[CutSet]:
        loop = self.trainer.fit_loop
        if loop.restarting:
            trained = loop.epoch_loop.batch_progress.current.completed
            place = self.place.in_epoch(loop.epoch_progress.current.processed)
            self.place = place.when_next_is(trained, self.batches.num_ranks)
        return self.batches.from_place(self.place)


def resumable(loader: DataLoader, trainer: Trainer) -> DataLoader:
    """NeMo's Lhotse loader of plain manifests with a `ResumedSampler`."""
    return with_sampler(loader, ResumedSampler(loader.sampler, trainer))
