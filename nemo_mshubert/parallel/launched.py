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
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Callable, Iterator, List, NamedTuple, Optional

import torch

LONGEST_WAIT = timedelta(days=7)  # of a rank that is done for the others


class LaunchedRanks(NamedTuple):
    """This process among those that torchrun started; rank 0 of 1 without it."""

    rank: int
    count: int
    wait: Callable[[], None]  # until all ranks have come to the same call
    gather: Callable[[Any], Optional[List[Any]]]  # what each rank gives, on rank 0; None elsewhere


@contextmanager
def launched_ranks() -> Iterator[LaunchedRanks]:
    """By torchrun's ``RANK`` and ``WORLD_SIZE``. A rank that fails ends them all, with torchrun."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield LaunchedRanks(0, 1, lambda: None, lambda value: [value])
        return
    torch.distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        yield LaunchedRanks(torch.distributed.get_rank(), count, torch.distributed.barrier, _gather)
    finally:
        torch.distributed.destroy_process_group()


def _gather(value: Any) -> Optional[List[Any]]:
    values = [None] * torch.distributed.get_world_size() if torch.distributed.get_rank() == 0 else None
    torch.distributed.gather_object(value, values)
    return values
