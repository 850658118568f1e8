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

"""Scripts that torchrun starts on several ranks, without a trainer."""

import os
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

import torch

from nemo_mshubert.parallel.hang_watch import EXIT_CODE, HangWatch, hung_message

LONGEST_WAIT = timedelta(days=7)  # how long a rank that is done waits for others that still work
HUNG_SECONDS = 1500  # without any work by a rank's main thread, as when a file system does not answer


class LaunchedRanks(NamedTuple):
    """This process among those that torchrun started; rank 0 of 1 without torchrun."""

    rank: int
    count: int
    wait: Callable[[], None]  # until all ranks have come to the same call
    gather: Callable[[Any], Optional[List[Any]]]  # the values of all ranks, on rank 0; None elsewhere


ALONE = LaunchedRanks(0, 1, lambda: None, lambda value: [value])


@contextmanager
def launched_ranks(hung_seconds: float = HUNG_SECONDS) -> Iterator[LaunchedRanks]:
    """The ranks by torchrun's ``RANK`` and ``WORLD_SIZE``. If one rank fails or hangs, torchrun ends all of them."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield ALONE
        return
    torch.distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    work = _Work()
    watch = HangWatch(hung_seconds, work.mark, lambda hanging: _end(hanging, hung_seconds))
    watch.start()
    try:
        wait, gather = work.waits_in(torch.distributed.barrier), work.waits_in(_gather)
        yield LaunchedRanks(torch.distributed.get_rank(), count, wait, gather)
    finally:
        watch.stop()
        torch.distributed.destroy_process_group()


class _Work:
    """Tells by its processor time whether the main thread works; one that waits for other ranks is not to blame."""

    def __init__(self):
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._waits = False

    def mark(self) -> str:
        return f"waiting {time.monotonic()}" if self._waits else f"working {time.clock_gettime(self._clock)}"

    def waits_in(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._waits = True
            try:
                return collective(*arguments)
            finally:
                self._waits = False

        return call


def _end(hanging: Dict[int, str], hung_seconds: float) -> None:
    hang = f"{', '.join(map(str, hanging))} hangs"
    print(hung_message(hung_seconds, hang, "goes on where it was"), file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)


def _gather(value: Any) -> Optional[List[Any]]:
    values = [None] * torch.distributed.get_world_size() if torch.distributed.get_rank() == 0 else None
    torch.distributed.gather_object(value, values)
    return values
