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

"""The order in which tarred data is read, and what has been read: epochs that ranks and loader processes share out.

    visit v      the shard at place (v mod N) of a permutation of the N shards that is drawn for epoch (v div N)
    stream k     what one loader process of one rank reads: the visits k, k + W, k + 2 W... of those that are left, W streams in all

Shuffling and buckets hold utterances back, so batches do not end where visits do. The record therefore notes single lines, and
a run that goes on with other ranks or loader processes reads exactly the lines of an epoch that are left.
"""

import itertools
import random
from dataclasses import replace
from typing import Any, Callable, Dict, Iterator, List, Optional, Union

import numpy as np
import torch
from lhotse.cut import Cut
from nemo.utils import logging

from nemo_mshubert.data.tar_shards import Entry, Shard

EMPTY_EPOCHS = 30  # visits of that many epochs in a row without an utterance: none is usable, rather than bad luck


class VisitRecord:
    """Which lines of which visits batches have held."""

    def __init__(self):
        self._first_open = 0  # all visits before it are done
        self._done = set()  # others that are done
        self._seen: Dict[int, np.ndarray] = {}  # visit -> bool [lines], of the others

    def is_done(self, visit: int) -> bool:
        return visit < self._first_open or visit in self._done

    def has(self, visit: int, line: int) -> bool:
        seen = self._seen.get(visit)
        return self.is_done(visit) or (seen is not None and bool(seen[line]))

    def open_visits(self) -> Iterator[int]:
        """Visits that are not done, without end."""
        return (visit for visit in itertools.count(self._first_open) if visit not in self._done)

    def note(self, lines_B3: np.ndarray) -> None:
        """Note the lines of a batch: rows of visit, line and number of lines of that visit."""
        for visit, line, count in lines_B3.tolist():
            if not self.is_done(visit):
                self._seen.setdefault(visit, np.zeros(count, dtype=bool))[line] = True
                self._close_if_done(visit)

    def merge(self, state: Dict[str, Any]) -> None:
        """Add what another rank, or a checkpoint, has noted: a `state`."""
        self._first_open = max(self._first_open, state["first_open"])
        self._done.update(state["done"])
        for visit, (count, bits) in state["seen"].items():
            if not self.is_done(visit):
                seen = np.unpackbits(bits.numpy(), count=count).astype(bool)
                self._seen[visit] = self._seen.get(visit, False) | seen
                self._close_if_done(visit)
        self._forget_done()

    def state(self) -> Dict[str, Any]:
        """For a checkpoint: a few bytes per visit, and one bit per line of those that are under way."""
        seen = {visit: (len(seen), torch.from_numpy(np.packbits(seen))) for visit, seen in self._seen.items()}
        return {"first_open": self._first_open, "done": sorted(self._done), "seen": seen}

    def _close_if_done(self, visit: int) -> None:
        if self._seen[visit].all():
            self._done.add(visit)
            del self._seen[visit]
            self._forget_done()

    def _forget_done(self) -> None:
        while self._first_open in self._done:
            self._first_open += 1
        self._done = {visit for visit in self._done if visit > self._first_open}
        self._seen = {visit: seen for visit, seen in self._seen.items() if not self.is_done(visit)}


class Visits:
    """Endless cuts of one stream, without audio where the tars are local (`tar_shards.with_audio`).

    ``cut.custom["line"]`` holds the visit, the line (counted among those that are usable) and their number.

    Args:
        shards: all of them.
        usable: whether a manifest line is to be trained on.
        seed: of the permutations.
        shuffle: the lines within a shard, too.
        record: what was read before; the streams start behind it.
        channel_selector: NeMo's option.
    """

    def __init__(
        self,
        shards: List[Shard],
        usable: Callable[[Entry], bool],
        seed: int,
        shuffle: bool,
        record: VisitRecord,
        channel_selector: Union[int, str, None] = None,
    ):
        self.shards = shards
        self.usable = usable
        self.seed = seed
        self.shuffle = shuffle
        self.record = record
        self.channel_selector = channel_selector
        self.stream = (0, 1)  # its number, and how many there are
        self._epoch, self._order = -1, list(range(len(shards)))

    def __iter__(self) -> Iterator[Cut]:
        number, count = self.stream
        without_cuts = 0
        for visit in itertools.islice(self.record.open_visits(), number, None, count):
            is_empty = True
            for cut in self._cuts(visit):
                is_empty = False
                yield cut
            without_cuts = without_cuts + 1 if is_empty else 0
            if without_cuts > EMPTY_EPOCHS * len(self.shards):
                raise ValueError(
                    f"{self.shards[0].manifest} and {len(self.shards) - 1} other shards: no utterance between min_duration and "
                    "max_duration."
                )

    def _cuts(self, visit: int) -> Iterator[Cut]:
        shard = self._shard(visit)
        entries = [entry for entry in shard.entries() if self.usable(entry)]
        left = [(line, entry) for line, entry in enumerate(entries) if not self.record.has(visit, line)]
        if self.shuffle:
            random.Random(f"{self.seed}-lines-{visit}").shuffle(left)
        for line, cut in shard.cuts(left, self.channel_selector):
            cut.custom["line"] = (visit, line, len(entries))
            yield cut

    def _shard(self, visit: int) -> Shard:
        epoch, place = divmod(visit, len(self.shards))
        if epoch != self._epoch and self.shuffle:
            self._order = list(range(len(self.shards)))
            random.Random(f"{self.seed}-shards-{epoch}").shuffle(self._order)
        self._epoch = epoch
        return replace(self.shards[self._order[place]])  # a copy: its index of the tar goes when its cuts have gone


class ShardProgress:
    """How far a training has come in tarred data, over resumes.

    Each stream is a function of the config and of what had been read when the streams started. A run that resumes with as many
    streams starts them there again and passes over what it has had; with another number they start anew, behind the record.
    """

    def __init__(self):
        self.record = VisitRecord()  # of this rank, and of all up to the last checkpoint
        self.first_batch = 0  # number of the first batch of every stream
        self._start = self.record.state()  # what had been read then
        self._num_streams: Optional[int] = None
        self._order: Optional[Dict[str, int]] = None  # what the order of the shards follows from

    def begin(self, num_shards: int, seed: int, num_streams: int, next_batch: int) -> VisitRecord:
        """What the streams start behind; ``next_batch`` is the first one's number if they start anew."""
        order = {"shards": num_shards, "seed": seed}
        if self._order not in (None, order):
            logging.warning(
                f"The tarred data has changed: {self._order} at the checkpoint, {order} now. Its epochs start anew."
            )
            self.record, self._num_streams = VisitRecord(), None
        self._order = order
        if self._num_streams != num_streams:
            self._num_streams, self.first_batch, self._start = num_streams, next_batch, self.record.state()
        start = VisitRecord()
        start.merge(self._start)
        return start

    def state(self) -> Dict[str, Any]:
        """For a checkpoint; all ranks must call this."""
        if torch.distributed.is_initialized():
            states = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, self.record.state())
            for state in states:
                self.record.merge(state)
        return {
            "order": self._order,
            "num_streams": self._num_streams,
            "first_batch": self.first_batch,
            "start": self._start,
            "record": self.record.state(),
        }

    def load(self, state: Dict[str, Any]) -> None:
        """Take over the `state` of a checkpoint."""
        self._order, self._num_streams = state["order"], state["num_streams"]
        self.first_batch, self._start = state["first_batch"], state["start"]
        self.record = VisitRecord()
        self.record.merge(state["record"])
