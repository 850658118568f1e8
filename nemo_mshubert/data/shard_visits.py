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

"""The order in which tarred data is read, and the record of what was read. Ranks and loader processes share epochs.

    visit v      the shard at place (v mod N) of a permutation of the N shards that is drawn for epoch (v div N)
    stream k     what one loader process of one rank reads: the visits k, k + W, k + 2 W... of those that are left,
                 with W streams in all

Shuffling and buckets hold utterances back, so batches do not end where visits end. Therefore the record notes single
lines. A run that continues with other numbers of ranks or loader processes reads exactly the remaining lines of an
epoch.
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
EMPTY_EPOCHS = 30  # after so many epochs of visits without an utterance, none is usable: it is not bad luck
# Visit, line (counted among the usable ones), number of lines of the visit (0: there is nothing to read).
VisitLine = Tuple[int, int, int]


class VisitRecord:
    """Records which lines of which visits have been in batches."""

    def __init__(self):
        self._first_open = 0  # all visits before it are done
        self._done = set()  # further visits that are done
        self._seen: Dict[int, np.ndarray] = {}  # visit -> bool [lines], of visits under way

    def is_done(self, visit: int) -> bool:
        return visit < self._first_open or visit in self._done

    def has(self, visit: int, line: int, count: int) -> bool:
        """Whether a line of a visit of ``count`` lines was noted. If the visit had another number of lines before, its
        shard has been changed, and the visit starts again."""
        seen = self._seen.get(visit)
        return self.is_done(visit) or (seen is not None and len(seen) == count and bool(seen[line]))

    def open_visits(self) -> Iterator[int]:
        """The endless sequence of visits that are not done."""
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
        """State for a checkpoint: a number for each visit, and a bit for each line of the visits under way."""
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
        """Add the `state` of another rank or of a checkpoint."""
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
        """Remove the visits that are done, in ``other`` or here."""
        self._first_open, self._done = 0, set()
        self._seen = {visit: seen for visit, seen in self._seen.items() if not other.is_done(visit)}


class Visits:
    """The endless cuts of one stream, for `tar_shards.with_audio` and `lines_of`.

    Args:
        shards: all shards of the data.
        usable: tells whether a manifest line is to be used for training.
        seed: of the permutations.
        shuffle: shuffle the shards in every epoch, and the lines of a local shard. Without it, a stream still visits
            all shards in turn.
        record: what was read before; the streams continue after it.
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
        self.stream = (0, 1)  # number of the stream, and number of all streams
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
        return replace(self.shards[self._order[place]])  # a copy: its index of the tar is freed with its cuts


def lines_of(cuts: Iterable[Cut]) -> List[VisitLine]:
    """The lines in a batch of cuts of `Visits`, for `VisitRecord.note`."""
    lines = []
    for cut in cuts:
        lines += [(visit, 0, 0) for visit in cut.custom[EMPTY]] + [cut.custom[LINE]]
    return lines


class ShardProgress:
    """How far a training run has come in tarred data, also when it is resumed.

    Each stream is a function of the config and of what had been read when the streams started. A run that resumes with
    the same streams starts them at that point again and skips what it has used. If its streams differ, new ones start
    after the record.
    """

    def __init__(self):
        self.record = VisitRecord()  # of this rank, since the last checkpoint and of visits under way
        self._of_all = VisitRecord()  # of all ranks, up to the last checkpoint
        self.first_batch = 0  # number of the first batch of every stream
        self._start = self._of_all.state()  # what had been read before the first batch
        self._streams: Optional[Hashable] = None  # what determines the streams
        self._order: Optional[Hashable] = None  # what determines the order of the visits and their lines

    def begin(self, order: Hashable, streams: Hashable, next_batch: int) -> VisitRecord:
        """The record of the lines that the streams must omit.

        Args:
            order: what determines the order of visits and lines. If it differs from the checkpoint's, the record is
                meaningless, and the epochs start again.
            streams: their numbers and options. If they differ from the checkpoint's, new streams start after the
                record.
            next_batch: number of the first batch of new streams.
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
        """State for a checkpoint; all ranks must call this."""
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
        """Restore the `state` of a checkpoint."""
        self._order, self._streams = state["order"], state["streams"]
        self.first_batch, self._start = state["first_batch"], state["start"]
        self.record, self._of_all = VisitRecord(), VisitRecord()
        self._of_all.merge(state["record"])
