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

"""Finds the rank that hangs: each leaves marks of its progress in the store of the process group, read by rank 0.

Rank 0 may be stopped as a whole, with its watch, and with the store if that is in its process. So rank 1 watches the
watch.
"""

import itertools
import threading
from contextlib import suppress
from typing import Callable, Dict, Iterator, Tuple

import torch
from torch.distributed.distributed_c10d import _get_default_store

LEFT = "left"  # mark of a rank that is done
TURN = "turn"  # key of the number of times that rank 0 has read the marks
TURNS = 10  # in the timeout
EXIT_CODE = 70  # EX_SOFTWARE: of a run that was ended because a rank hung


def hung_message(timeout_seconds: float, hang: str, goes_on: str) -> str:
    """What the user is told: who hangs (and in what), and how the run ``goes_on``."""
    return (
        f"No progress for {timeout_seconds:g} s: rank {hang}. The run ends; the same command {goes_on}. Look at the "
        "machine of that rank: file system, network, GPU."
    )


class HangWatch:
    """Threads beside the work of the ranks: one per rank writes its mark, and another on rank 0 reads all marks. Rank
    1 sees to it that this goes on.

    Args:
        timeout_seconds: a rank whose mark has stayed the same for this long has made no progress; time in which all
            ranks were suspended does not count.
        mark: called on a thread; returns a text that changes as long as there is progress.
        end: called on a thread of rank 0, since its main thread may be the one that hangs, with the marks of the ranks
            that have made no progress; on a thread of rank 1 with the last mark of rank 0, if its watch has stopped.
        all_wait: ranks wait for one another, so that a rank that hangs stops them all; ``end`` is called only when all
            have stopped. Otherwise the mark of a rank must change while it waits, and one unchanged mark is enough.
    """

    def __init__(
        self,
        timeout_seconds: float,
        mark: Callable[[], str],
        end: Callable[[Dict[int, str]], None],
        all_wait: bool = False,
    ):
        self.timeout_seconds = timeout_seconds
        self._mark = mark
        self._end = end
        self._all_wait = all_wait
        self._stop = threading.Event()

    def start(self) -> None:
        """All ranks must call this, with a process group."""
        self._rank, self._count = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._store = torch.distributed.PrefixStore("hang_watch", _get_default_store())
        self._write()
        if self._rank == 0:
            self._store.set(TURN, "0")
        torch.distributed.barrier()  # all of these are there
        self._reporter = _started(self._report)
        if self._rank == 0:
            _started(self._watch)
        elif self._rank == 1:
            self._seen = self._look()
            _started(self._follow)
            _started(self._guard)

    def stop(self) -> None:
        """This rank is done; others may go on."""
        self._stop.set()
        self._reporter.join()
        with suppress(RuntimeError):  # the store ends with rank 0, which may have failed
            self._store.set(str(self._rank), LEFT)

    def _write(self) -> None:
        self._store.set(str(self._rank), self._mark())

    def _report(self) -> None:
        """Write once a second: a thousand ranks that wrote every mark would overload the store."""
        with suppress(RuntimeError):
            while not self._stop.wait(min(1.0, self.timeout_seconds / TURNS)):
                self._write()

    def _turns(self) -> Iterator[int]:
        """Count the tenths of the timeout until `stop`. Time itself would not do: a job that was suspended, with all
        its ranks, has made no progress for hours."""
        for turn in itertools.count(1):
            if self._stop.wait(self.timeout_seconds / TURNS):
                return
            yield turn

    def _watch(self) -> None:
        latest: Dict[int, Tuple[bytes, int]] = {}  # rank -> mark, turn in which it was first seen
        for turn in self._turns():
            self._store.set(TURN, str(turn))
            for rank, mark in enumerate(self._store.multi_get([str(rank) for rank in range(self._count)])):
                if rank not in latest or latest[rank][0] != mark:
                    latest[rank] = mark, turn
            there = {rank: seen for rank, seen in latest.items() if seen[0] != LEFT.encode()}
            hanging = {rank: mark.decode() for rank, (mark, since) in there.items() if turn - since > TURNS}
            if hanging and (len(hanging) == len(there) or not self._all_wait):
                self._end(hanging)

    def _look(self) -> Tuple[str, str]:
        """The turn of the watch of rank 0, and the mark of rank 0."""
        turn, mark = self._store.multi_get([TURN, "0"])
        return turn.decode(), mark.decode()

    def _follow(self) -> None:
        """Look until rank 0 is done. While the process with the store is stopped, `_look` does not return; hence
        `_guard` is another thread."""
        with suppress(RuntimeError):  # the store has ended with rank 0
            for _ in self._turns():
                self._seen = self._look()
                if self._seen[1] == LEFT:
                    break
        self._seen = None

    def _guard(self) -> None:
        latest, since = self._seen, 0
        for turn in self._turns():
            seen = self._seen
            if seen is None:
                return
            if seen[0] != latest[0]:
                latest, since = seen, turn
            elif turn - since > TURNS:
                self._end({0: latest[1]})


def _started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
