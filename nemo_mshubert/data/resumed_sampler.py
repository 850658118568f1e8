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

"""Plain manifests of NeMo's own loader, from the batch that a resumed training has come to."""

import itertools
from typing import Iterator

from lhotse import CutSet
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from nemo_mshubert.data.resumable_loader import with_sampler


class ResumedSampler:
    """The batches of NeMo's sampler; in the first pass of a resumed run without those that it has trained on.

    Lightning restores its count of batches, but begins the data anew, and in the order of the first epoch: it asks for
    an iterator before it tells the sampler the epoch.
    """

    def __init__(self, sampler, trainer: Trainer):
        self.sampler = sampler
        self.trainer = trainer

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[CutSet]:
        loop, trained = self.trainer.fit_loop, 0
        if loop.restarting:
            self.set_epoch(loop.epoch_progress.current.processed)
            trained = loop.epoch_loop.batch_progress.current.completed
        return itertools.islice(self.sampler, trained, None)


def resumable(loader: DataLoader, trainer: Trainer) -> DataLoader:
    """NeMo's Lhotse loader of plain manifests with a `ResumedSampler`."""
    return with_sampler(loader, ResumedSampler(loader.sampler, trainer))
