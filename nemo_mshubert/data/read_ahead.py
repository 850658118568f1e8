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

"""Threads read audio ahead, while the main thread computes: decoding does not hold the interpreter's lock (GIL)."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterable, Iterator, TypeVar

from nemo_mshubert.device import available_cores

Item = TypeVar("Item")
Audio = TypeVar("Audio")

SECONDS_AHEAD = 600  # of audio that may be held ready: 38 MB
UNKNOWN_SECONDS = 15.0  # assumed for an utterance whose line has no duration
MOST_THREADS = 16


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Audio], seconds: Callable[[Item], float]
) -> Iterator[Audio]:
    """Yield ``read(item)`` for every item, in order, and read `SECONDS_AHEAD` of audio ahead. An error is raised in
    place of its item.

    Args:
        read: called on threads.
        seconds: length of the audio of an item; 0 if it is not known.
    """
    pool = ThreadPoolExecutor(min(MOST_THREADS, 2 + available_cores()))
    pending = deque()
    ahead = 0.0
    try:
        for item in items:
            duration = seconds(item) or UNKNOWN_SECONDS
            pending.append((pool.submit(read, item), duration))
            ahead += duration
            while ahead > SECONDS_AHEAD and len(pending) > 1:
                future, duration = pending.popleft()
                ahead -= duration
                yield future.result()
        while pending:
            yield pending.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)
