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


"""Who hangs, when ranks wait for one another and when they do not."""

import time

import pytest
import torch

from nemo_mshubert.parallel.hang_watch import HangWatch
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit
TIMEOUT = 1.0
ROUNDS = 12  # of a quarter of a second


def watched(all_wait, moves):
    """What rank 0 is told when in each round the ranks ``moves(round)`` come further; the first time, or None."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    mark, told = [0], []
    watch = HangWatch(TIMEOUT, lambda: str(mark[0]), lambda marks: told.append(sorted(marks)), all_wait)
    watch.start()
    for number in range(ROUNDS):
        time.sleep(0.25)
        mark[0] += rank in moves(number)
    watch.stop()
    torch.distributed.barrier()
    return told[0] if told else None


def both(number):
    return (0, 1)


def one_stops(number):
    """Rank 0 waits in a collective that rank 1 reaches later."""
    return (1,)


def all_stop(number):
    return ()


@pytest.mark.parametrize(
    "all_wait, moves, expected",
    [
        (True, both, None),
        (True, one_stops, None),  # slow data, say: no reason to end a run
        (True, all_stop, [0, 1]),
        (False, both, None),
        (False, one_stops, [0]),
        (False, all_stop, [0, 1]),
    ],
)
def test_ranks_that_come_no_further(all_wait, moves, expected):
    assert run_on_ranks(2, watched, all_wait, moves)[0] == expected
