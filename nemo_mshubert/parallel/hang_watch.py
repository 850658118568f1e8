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

"""Which rank hangs: each leaves marks of its progress in the store of the process group, and rank 0 looks at them."""

import threading
import time
from typing import Callable, Dict, Tuple

import torch
from torch.distributed.distributed_c10d import _get_default_store

EXIT_CODE = 70  # EX_SOFTWARE: of a run that was ended because a rank hung


class HangWatch:
    """Two threads beside the work of a rank: one writes its mark, that of rank 0 reads all.

    Args:
        timeout_seconds: a rank whose mark stays the same for so long hangs.
        mark: called on a thread; a text that changes as long as there is progress.
        end: called on a thread of rank 0, since its main thread may be the one that hangs, with the marks of the ranks that hang.
    """

    def __init__(self, timeout_seconds: float, mark: Callable[[], str], end: Callable[[Dict[int, str]], None]):
        self.timeout_seconds = timeout_seconds
        self._mark = mark
        self._end = end
        self._stop = threading.Event()

    def start(self) -> None:
        """All ranks must call this, with a process group."""
        self._rank, self._count = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._store = torch.distributed.PrefixStore("hang_watch", _get_default_store())
        self._write()
        torch.distributed.barrier()  # every mark is there
        threading.Thread(target=self._report, daemon=True).start()
        if self._rank == 0:
            threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _write(self) -> None:
        self._store.set(str(self._rank), self._mark())

    def _report(self) -> None:
        """Once a second: a thousand ranks that wrote every mark would ask too much of the store."""
        while not self._stop.wait(min(1.0, self.timeout_seconds / 10)):
            self._write()

    def _watch(self) -> None:
        latest: Dict[int, Tuple[bytes, float]] = {}  # rank -> mark, when it was first seen
        while not self._stop.wait(self.timeout_seconds / 10):
            now = time.monotonic()
            for rank, mark in enumerate(self._store.multi_get([str(rank) for rank in range(self._count)])):
                if rank not in latest or latest[rank][0] != mark:
                    latest[rank] = mark, now
            hanging = {
                rank: mark.decode() for rank, (mark, since) in latest.items() if now - since > self.timeout_seconds
            }
            if hanging:
                self._end(hanging)
