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

"""Batches of plain manifests from any place on: all ranks draw the same batches and share them.

Lhotse's sampler draws as many batches as there are ranks from one bucket, and each rank takes one of them. So the
order of the batches depends on the number of ranks. A run that continues with another number of ranks draws the rest
of its epoch as the epoch was begun, and each rank takes its share.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Iterable, Iterator, List, Optional

from lhotse import CutSet
from lhotse.dataset.sampling.base import CutSampler


@dataclass(frozen=True)
class Place:
    """A place in an epoch, after the first ``batches`` batches, counted over all ranks.

    ``drawn_for`` is the number of ranks for which the epoch is drawn; None is the current number. ``number`` is the
    number of a rank's next batch, in the rank's own count.
    """

    epoch: int = 0
    batches: int = 0
    drawn_for: Optional[int] = None
    number: int = 0

    def in_epoch(self, epoch: int) -> "Place":
        """This place if it is in ``epoch``, else the beginning of ``epoch``."""
        return self if self.epoch == epoch else Place(epoch)

    def when_next_is(self, number: int, num_ranks: int) -> "Place":
        """The place in the same epoch where a rank's next batch is ``number``."""
        batches = self.batches + (number - self.number) * num_ranks
        return replace(self, batches=batches, drawn_for=self.drawn_for or num_ranks, number=number)


def last_before(places: Iterable[Place], number: int) -> Place:
    """The last of ``places`` whose number is at most ``number``; the beginning if there is none."""
    before = (place for place in places if place.number <= number)
    # If nothing was left of an epoch, the next epoch has the same number; it is the one to take.
    return max(before, key=lambda place: (place.number, place.epoch), default=Place())


class SharedBatches:
    """This rank's share of the batches from the sampler of NeMo's loader."""

    def __init__(self, sampler: CutSampler):
        self.sampler = sampler
        self.rank, self.num_ranks = sampler.rank, sampler.world_size

    def from_place(self, place: Place) -> Iterator[CutSet]:
        """The batches of this rank from ``place`` to the end of its epoch, as many as on every other rank."""
        batches = itertools.islice(self._all(place), place.batches, None)
        while of_all_ranks := list(itertools.islice(batches, self.num_ranks)):
            if len(of_all_ranks) < self.num_ranks:
                if self.sampler.drop_last:
                    return
                of_all_ranks = shared_out(of_all_ranks, self.num_ranks)
            yield of_all_ranks[self.rank]

    def _all(self, place: Place) -> Iterator[CutSet]:
        """The batches of all ranks."""
        self.sampler.set_epoch(place.epoch)
        self.sampler.world_size = place.drawn_for or self.num_ranks  # so many batches in turn are from one bucket
        iter(self.sampler)  # starts the epoch
        self.sampler.rank, self.sampler.world_size = 0, 1  # now the sampler yields the batches of all ranks
        while True:
            try:
                yield next(self.sampler)
            except StopIteration:
                return


def shared_out(batches: List[CutSet], num_ranks: int) -> List[CutSet]:
    """Divide fewer batches than ranks into one part per rank: the longest part is halved until there are enough. So no
    part is larger than a batch or mixes buckets. If there are too few utterances, the parts are repeated in turn."""
    parts = [list(batch) for batch in batches]
    while len(parts) < num_ranks and any(len(part) > 1 for part in parts):
        seconds = [sum(cut.duration for cut in part) if len(part) > 1 else 0.0 for part in parts]
        longest = seconds.index(max(seconds))
        part = parts[longest]
        parts[longest] = part[::2]
        parts.append(part[1::2])
    return [CutSet.from_cuts(part) for part in itertools.islice(itertools.cycle(parts), num_ranks)]
