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

"""A rank that hangs in a script under torchrun ends it, by name; slow ranks and those that wait do not."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nemo_mshubert.parallel import launched
from nemo_mshubert.parallel.launched import launched_ranks
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit


def ended_ranks(folder, hung_seconds, work, meet=lambda ranks: ranks.wait()):
    """Ranks that rank 0 said to hang while the ranks did their ``work``, or None."""
    launched._end = lambda hanging, seconds: (folder / "ended").write_text(str(sorted(hanging)))
    with launched_ranks(hung_seconds) as ranks:
        work(ranks.rank)
        meet(ranks)
        if ranks.rank == 0:  # merges what the others have left
            be_busy(2 * hung_seconds)
    return (folder / "ended").read_text() if (folder / "ended").exists() else None


def be_busy(seconds):
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        sum(range(1000))


def hang(rank):
    """Rank 1 does nothing for a while; the others wait for it."""
    if rank == 1:
        time.sleep(3)


def be_slow(rank):
    """Rank 1 works, the others wait longer than a rank may hang."""
    if rank == 1:
        be_busy(3)


def gather(ranks):
    assert ranks.gather(f"share {ranks.rank}") == (["share 0", "share 1"] if ranks.rank == 0 else None)


def wait_for_workers(rank):
    """Rank 1 waits for its beam search longer than a rank may hang; threads stand for the processes of its pool."""
    if rank == 1:
        pytest.importorskip("flashlight.lib.text", reason="the beam search needs flashlight-text")
        from nemo_mshubert.decoding.parallel import results_of

        with ThreadPoolExecutor(1) as pool:
            list(results_of([pool.submit(time.sleep, 3)]))


def test_a_rank_that_hangs_is_named(tmp_path):
    """The others would wait for a week, and then say that a barrier timed out."""
    assert run_on_ranks(3, ended_ranks, tmp_path, 1.0, hang)[0] == "[1]"


def test_slow_ranks_do_not_hang(tmp_path):
    """Shares of a manifest take different times, and rank 0 goes on when the others have left."""
    assert run_on_ranks(2, ended_ranks, tmp_path, 1.0, be_slow, gather) == [None, None]


def test_a_rank_that_decodes_in_workers_does_not_hang(tmp_path):
    """Its main thread only waits; a test set decoded with a beam of 1500 would be ended after 25 minutes."""
    assert run_on_ranks(2, ended_ranks, tmp_path, 1.0, wait_for_workers) == [None, None]


def test_the_message_names_ranks_and_remedy(monkeypatch, capfd):
    codes = []
    monkeypatch.setattr(launched.os, "_exit", codes.append)
    launched._end({3: "working 1.0", 5: "working 2.0"}, 1500)
    assert codes == [70]
    said = capfd.readouterr().err
    assert "No progress for 1500 s: rank 3, 5 hangs." in said
    assert "the same command goes on where it was" in said
