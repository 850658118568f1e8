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
    stream k     what one loader process of one rank reads: the visits k, k + W, k + 2 W... of those that are left,
                 W streams in all

Shuffling and buckets hold utterances back, so batches do not end where visits do. The record therefore notes single
lines, and a run that goes on with other ranks or loader processes reads exactly the lines of an epoch that are left.
"""

import itertools
import random
from dataclasses import replace
from typing import Any, Callable, Dict, Hashable, Iterable, Iterator, List, Optional, Tuple, Union

import numpy as np
import torch
from lhotse.cut import Cut
from nemo.utils import logging

from nemo_mshubert.data.manifest import Entry
from nemo_mshubert.data.tar_shards import Shard

LINE, EMPTY = "_mshubert_line", "_mshubert_empty"  # keys of a cut's custom fields
EMPTY_EPOCHS = 30  # visits of that many epochs in a row without an utterance: none is usable, rather than bad luck
# Visit, line (counted among the usable ones), number of lines of the visit; 0: nothing to read.
VisitLine = Tuple[int, int, int]


class VisitRecord:
    """Which lines of which visits batches have held."""

    def __init__(self):
        self._first_open = 0  # all visits before it are done
        self._done = set()  # others that are done
        self._seen: Dict[int, np.ndarray] = {}  # visit -> bool [lines], of the others

    def is_done(self, visit: int) -> bool:
        return visit < self._first_open or visit in self._done

    def has(self, visit: int, line: int, count: int) -> bool:
        """Of a visit of ``count`` lines; one that had another number has been changed, and begins anew."""
        seen = self._seen.get(visit)
        return self.is_done(visit) or (seen is not None and len(seen) == count and bool(seen[line]))

    def open_visits(self) -> Iterator[int]:
        """Visits that are not done, without end."""
        return (visit for visit in itertools.count(self._first_open) if visit not in self._done)

    def note(self, lines: Iterable[VisitLine]) -> None:
        """Note the lines of a batch."""
        for visit, line, count in lines:
            if self.is_done(visit):
                continue
            seen = self._seen.get(visit)
            if seen is None or len(seen) != count:
                seen = self._seen[visit] = np.zeros(count, dtype=bool)
            seen[line : line + 1] = True
            self._close(visit)

    def _close(self, visit: int) -> None:
        if self._seen[visit].all():
            self._done.add(visit)
            del self._seen[visit]
            while self._first_open in self._done:
                self._done.remove(self._first_open)
                self._first_open += 1

    def state(self) -> Dict[str, Any]:
        """For a checkpoint: a number for each visit, and a bit for each line of those that are under way."""
        visits = sorted(self._seen)
        bits = [np.packbits(self._seen[visit]) for visit in visits]
        return {
            "first_open": self._first_open,
            "done": torch.tensor(sorted(self._done), dtype=torch.int64),
            "visits": torch.tensor(visits, dtype=torch.int64),
            "counts": torch.tensor([len(self._seen[visit]) for visit in visits], dtype=torch.int64),
            "bits": torch.from_numpy(np.concatenate(bits)) if bits else torch.empty(0, dtype=torch.uint8),
        }

    def merge(self, state: Dict[str, Any]) -> None:
        """Add what another rank, or a checkpoint, has noted: a `state`."""
        for visit in itertools.chain(range(self._first_open, state["first_open"]), state["done"].tolist()):
            if not self.is_done(visit):
                self._seen[visit] = np.ones(0, dtype=bool)
                self._close(visit)
        bits, start = state["bits"].numpy(), 0
        for visit, count in zip(state["visits"].tolist(), state["counts"].tolist()):
            end = start + (count + 7) // 8
            if not self.is_done(visit):
                found = np.unpackbits(bits[start:end], count=count).astype(bool)
                seen = self._seen.get(visit)
                self._seen[visit] = found if seen is None or len(seen) != count else seen | found
                self._close(visit)
            start = end

    def forget(self, other: "VisitRecord") -> None:
        """Leave out what ``other`` holds as done, and all that is done here."""
        self._first_open, self._done = 0, set()
        self._seen = {visit: seen for visit, seen in self._seen.items() if not other.is_done(visit)}


class Visits:
    """Endless cuts of one stream, for `tar_shards.with_audio` and `lines_of`.

    Args:
        shards: all of them.
        usable: whether a manifest line is to be trained on.
        seed: of the permutations.
        shuffle: the shards in every epoch, and the lines of a local one; without it a stream still meets all shards in
            turn.
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
        self._epoch, self._order = -1, []

    def __iter__(self) -> Iterator[Cut]:
        number, count = self.stream
        empty: List[int] = []  # visits without a usable line since the last cut
        for visit in itertools.islice(self.record.open_visits(), number, None, count):
            empty.append(visit)
            for cut in self._cuts(visit):
                cut.custom[EMPTY], empty = [other for other in empty if other != visit], []
                yield cut
            if len(empty) > EMPTY_EPOCHS * len(self.shards):
                raise ValueError(
                    f"{self.shards[0].manifest} and {len(self.shards) - 1} other shards: no utterance between "
                    "min_duration and max_duration."
                )

    def _cuts(self, visit: int) -> Iterator[Cut]:
        shard = self._shard(visit)
        entries = [entry for entry in shard.entries() if self.usable(entry)]
        count = len(entries)
        left = [(line, entry) for line, entry in enumerate(entries) if not self.record.has(visit, line, count)]
        if self.shuffle:
            random.Random(f"{self.seed}-lines-{visit}").shuffle(left)
        for line, cut in shard.cuts(left, self.channel_selector):
            cut.custom[LINE] = (visit, line, count)
            yield cut

    def _shard(self, visit: int) -> Shard:
        epoch, place = divmod(visit, len(self.shards))
        if epoch != self._epoch:
            self._epoch = epoch
            if self.shuffle:
                self._order = list(range(len(self.shards)))
                random.Random(f"{self.seed}-shards-{epoch}").shuffle(self._order)
            else:
                self._order = [(index + epoch) % len(self.shards) for index in range(len(self.shards))]
        return replace(self.shards[self._order[place]])  # a copy: its index of the tar goes when its cuts have gone


def lines_of(cuts: Iterable[Cut]) -> List[VisitLine]:
    """What a batch of cuts of `Visits` holds, for `VisitRecord.note`."""
    lines = []
    for cut in cuts:
        lines += [(visit, 0, 0) for visit in cut.custom[EMPTY]] + [cut.custom[LINE]]
    return lines


class ShardProgress:
    """How far a training has come in tarred data, over resumes.

    Each stream is a function of the config and of what had been read when the streams started. A run that resumes with
    the same streams starts them there again and passes over what it has had; with others they start anew, behind the
    record.
    """

    def __init__(self):
        self.record = VisitRecord()  # of this rank, since the last checkpoint and of visits under way
        self._of_all = VisitRecord()  # of all ranks, up to the last checkpoint
        self.first_batch = 0  # number of the first batch of every stream
        self._start = self._of_all.state()  # what had been read then
        self._streams: Optional[Hashable] = None  # what the streams follow from
        self._order: Optional[Hashable] = None  # what the order of the visits and their lines follows from

    def begin(self, order: Hashable, streams: Hashable, next_batch: int) -> VisitRecord:
        """What the streams start behind.

        Args:
            order: of the visits and lines. With another one than the checkpoint's the record means nothing: epochs
                start anew.
            streams: their numbers and options. With others than the checkpoint's they start anew, behind the record.
            next_batch: number of their first batch, if they do.
        """
        if self._order not in (None, order):
            logging.warning(
                f"The tarred data has changed: {self._order} at the checkpoint, {order} now. Its epochs start anew."
            )
            self._of_all, self._streams = VisitRecord(), None
        self._order = order
        if self._streams != streams:
            self._streams, self.first_batch, self._start = streams, next_batch, self._of_all.state()
        start = VisitRecord()
        start.merge(self._start)
        return start

    def state(self) -> Dict[str, Any]:
        """For a checkpoint; all ranks must call this."""
        states = [self.record.state()]
        if torch.distributed.is_initialized():
            own, states = states[0], [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, own)
        for state in states:
            self._of_all.merge(state)
        self.record.forget(self._of_all)
        return {
            "order": self._order,
            "streams": self._streams,
            "first_batch": self.first_batch,
            "start": self._start,
            "record": self._of_all.state(),
        }

    def load(self, state: Dict[str, Any]) -> None:
        """Take over the `state` of a checkpoint."""
        self._order, self._streams = state["order"], state["streams"]
        self.first_batch, self._start = state["first_batch"], state["start"]
        self.record, self._of_all = VisitRecord(), VisitRecord()
        self._of_all.merge(state["record"])
