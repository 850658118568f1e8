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

import os
import signal
import subprocess
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
    assert run_on_ranks(2, watched, all_wait, moves) == [expected, None]


def stopped(folder):
    """What rank 1 is told while rank 0 is stopped as a whole, and when both have gone on for a while."""
    torch.distributed.init_process_group("gloo")
    rank, told, begin = torch.distributed.get_rank(), [], time.monotonic()
    pid = folder / "pid"

    def end(marks):
        told.append(marks)
        os.kill(int(pid.read_text()), signal.SIGCONT)

    watch = HangWatch(TIMEOUT, lambda: f"{rank} works", end if rank == 1 else lambda marks: None)
    watch.start()
    if rank == 0:
        pid.write_text(str(os.getpid()))
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGSTOP)
    while not (told or rank == 0 or time.monotonic() - begin > 30):
        time.sleep(0.05)
    torch.distributed.barrier()
    watch.stop()
    torch.distributed.barrier()
    return told


def test_rank_0_that_is_stopped_with_its_watch(tmp_path):
    """Its machine hangs, say. The others would wait for it until a collective times out, which names no rank."""
    told = run_on_ranks(2, stopped, tmp_path)[1]
    assert told and told[0] == {0: "0 works"}


def stopped_for_less(timeout):
    """What the ranks are told when rank 1 has stopped rank 0 for less than the timeout, long behind the start."""
    torch.distributed.init_process_group("gloo")
    rank, told, pids = torch.distributed.get_rank(), [], [None, None]
    watch = HangWatch(timeout, lambda: str(time.monotonic()), told.append)
    watch.start()
    torch.distributed.all_gather_object(pids, os.getpid())
    if rank == 1:
        time.sleep(1.3 * timeout)
        os.kill(pids[0], signal.SIGSTOP)
        time.sleep(0.7 * timeout)
        os.kill(pids[0], signal.SIGCONT)
    torch.distributed.barrier()
    watch.stop()
    torch.distributed.barrier()
    return told


def test_rank_0_may_be_stopped_for_less():
    """A node that swaps for some minutes would end the run."""
    assert run_on_ranks(2, stopped_for_less, 2 * TIMEOUT) == [[], []]


def left(_):
    """What rank 1 is told when rank 0 is done long before it."""
    torch.distributed.init_process_group("gloo")
    rank, told = torch.distributed.get_rank(), []
    watch = HangWatch(TIMEOUT, lambda: str(time.monotonic()), told.append)
    watch.start()
    time.sleep(0.3 if rank == 0 else 3 * TIMEOUT)
    watch.stop()
    return told


def test_rank_0_that_is_done_does_not_hang(tmp_path):
    """With or without the store, which ends with rank 0 here."""
    assert run_on_ranks(2, left, tmp_path)[1] == []


def left_while_it_marks(first):
    """What the ranks are told when one is done long before the other, but goes on to live; marks take their time."""
    torch.distributed.init_process_group("gloo")
    rank, told = torch.distributed.get_rank(), []

    def mark():
        time.sleep(0.3)
        return str(time.monotonic())

    watch = HangWatch(TIMEOUT, mark, told.append)
    watch.start()
    time.sleep(0.3 if rank == first else 3 * TIMEOUT)
    watch.stop()
    torch.distributed.barrier()
    return told


@pytest.mark.parametrize("first", [0, 1])
def test_a_rank_that_is_done_leaves_no_other_mark(first):
    """One that is written behind that of its end never changes again, nor do the turns of a watch that has ended: the
    run would be ended, though the other rank works."""
    assert run_on_ranks(2, left_while_it_marks, first) == [[], []]


def suspended(folder):
    """What the ranks are told when all of them are suspended for longer than one may hang."""
    torch.distributed.init_process_group("gloo")
    rank, told = torch.distributed.get_rank(), []

    def mark():
        for _ in range(10):  # it is not written at once when the job goes on
            time.sleep(0.02)
        return str(time.monotonic())

    watch = HangWatch(TIMEOUT, mark, told.append)
    watch.start()
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    torch.distributed.barrier()
    if rank == 0:
        pids = " ".join(path.read_text() for path in folder.glob("*.pid"))
        subprocess.Popen(["bash", "-c", f"sleep 0.5; kill -STOP {pids}; sleep {2 * TIMEOUT}; kill -CONT {pids}"])
    begin = time.monotonic()
    while time.monotonic() - begin < 3.5 * TIMEOUT:
        time.sleep(0.05)
    watch.stop()
    torch.distributed.barrier()
    return told


def test_a_job_that_was_suspended_does_not_hang(tmp_path):
    """Ctrl-Z, or a scheduler that lets another job go first: the run ended when it was to go on."""
    assert run_on_ranks(2, suspended, tmp_path) == [[], []]


def seconds_of_a_start():
    """Of a watch whose turns are of a minute."""
    torch.distributed.init_process_group("gloo")
    watch, begin = HangWatch(600, lambda: "works", lambda marks: None), time.monotonic()
    watch.start()
    seconds = time.monotonic() - begin
    watch.stop()
    torch.distributed.barrier()
    return seconds


def test_training_does_not_wait_for_the_first_turn():
    """Rank 1 asks the store for the turn of rank 0, and would get it 150 s after the start of every job."""
    assert max(run_on_ranks(2, seconds_of_a_start)) < 30
