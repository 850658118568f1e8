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

"""Decoding on several processes gives what one process gives, in order, and its errors arrive."""

import dataclasses
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

from nemo_mshubert.decoding.lexicon_beam import LexiconBeamSearchDecoder
from nemo_mshubert.decoding.parallel import ParallelDecoder

AB = [" ", "a", "b"]


@pytest.fixture
def decoder(write_arpa, write_lexicon_of, make_config):
    words = ["a", "b", "ab", "ba"]
    config = make_config(write_arpa({"a": -0.1, "b": -0.2, "ab": -3.0, "ba": -3.0}), write_lexicon_of(words))
    return LexiconBeamSearchDecoder(AB, config)


@pytest.mark.integration
def test_workers_give_the_results_of_one_process_in_order(decoder, emit, capfd):
    utterances = [(f"u{index}", emit(tokens, AB, 0.6)) for index, tokens in enumerate(["ab|a", "b", "", "ba|ab"] * 5)]
    weighted = dataclasses.replace(decoder.config, lm_weight=2.0, word_score=1.0)
    with ParallelDecoder(decoder, workers=1) as single, ParallelDecoder(decoder, workers=2) as several:
        plain = several.decode_all(utterances)
        assert len(several._pool._processes) == 2
        for worker in several._pool._processes:
            os.kill(worker, signal.SIGINT)  # Ctrl-C, which reaches them, too, is none of their business
        with_lm = several.decode_all(utterances, config=weighted)
        assert plain == decoder.decode_all(utterances)
        assert plain != with_lm == single.decode_all(utterances, config=weighted, progress="tuned")
        utterances[7][1][0, 0] = np.nan
        several._pool.submit = None  # it is told before anything is decoded
        with pytest.raises(ValueError, match="u7: .*NaN"):
            several.decode_all(utterances)
    assert "tuned: 100%" in capfd.readouterr().err


@pytest.mark.integration
def test_a_killed_worker_is_told(decoder, emit):
    """For its memory, say: BrokenProcessPool alone tells nobody what to do."""
    utterances = [(f"u{index}", emit("ab", AB)) for index in range(4)]
    with ParallelDecoder(decoder, workers=2) as several:
        several.decode_all(utterances)
        os.kill(next(iter(several._pool._processes)), signal.SIGKILL)
        with pytest.raises(RuntimeError, match="ended from outside.*fewer --workers"):
            for _ in range(1000):  # until the pool has noticed
                several.decode_all(utterances)


@pytest.mark.unit
def test_ctrl_c_waits_while_workers_start_and_end(decoder, emit):
    """A worker that is interrupted in its imports leaves the pool waiting for it, and one that nobody ends any more
    stays. Afterwards Ctrl-C is the caller's again."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seen, answer = [], Future()
    answer.set_result("decoded")
    with ParallelDecoder(decoder, workers=2) as several:
        several._pool.submit = lambda *_: seen.append(signal.getsignal(signal.SIGINT)) or answer
        several._pool.shutdown = lambda **_: seen.append(signal.getsignal(signal.SIGINT))
        assert several.decode_all([("u", emit("a", AB))]) == ["decoded"]
        assert seen == [signal.SIG_IGN] and signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    assert seen == [signal.SIG_IGN, signal.SIG_IGN] and signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.unit
def test_the_first_ctrl_c_counts(decoder):
    """The second one, of an impatient user, would end what ends the workers."""
    with ParallelDecoder(decoder, workers=1):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.unit
def test_other_threads_may_decode(decoder, emit, capfd):
    """As those of a server: only the main thread may ask for Ctrl-C, elsewhere Python raises a ValueError. One
    worker is no other process."""
    utterances = [("u", emit("a", AB))]

    def decode():
        with ParallelDecoder(decoder, workers=1) as single:
            return single.decode_all(utterances), multiprocessing.active_children()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(decode).result() == (decoder.decode_all(utterances), [])
    assert not capfd.readouterr().err  # a bar, which a server's log has no use for


SCRIPT_TO_INTERRUPT = """
import pickle, sys
import numpy as np
from nemo_mshubert.decoding.parallel import ParallelDecoder

if __name__ == "__main__":
    decoder = pickle.load(open(sys.argv[1], "rb"))
    noise = np.log(np.random.default_rng(0).dirichlet(np.ones(4), size=6000))  # more than a pipe holds
    with ParallelDecoder(decoder, workers=2) as several:
        several.decode_all([(f"u{n}", noise) for n in range(5000)], progress="decoding")
"""


@pytest.fixture
def decoding(tmp_path, decoder):
    """A script whose two workers are decoding, in a group of processes of its own."""
    (tmp_path / "script.py").write_text(SCRIPT_TO_INTERRUPT)
    narrow = decoder.with_config(dataclasses.replace(decoder.config, beam_size=20))
    (tmp_path / "decoder.pkl").write_bytes(pickle.dumps(narrow))
    command = [sys.executable, tmp_path / "script.py", tmp_path / "decoder.pkl"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    try:
        shown = b""
        while not re.search(rb"\| [1-9]\d*/5000", shown):  # the bar moves: the workers are at work
            read = os.read(process.stderr.fileno(), 4096)
            assert read, shown
            shown += read
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.integration
def test_ctrl_c_ends_all_processes(decoding):
    """A worker that dies of Ctrl-C, or one left behind by the second, leaves the program hanging for good."""
    for _ in range(2):  # as impatient users do
        os.killpg(decoding.pid, signal.SIGINT)
        time.sleep(0.05)
    assert b"KeyboardInterrupt" in decoding.communicate(timeout=30)[1]


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(decoding, number):
    """Killed by the scheduler or for its memory, it cannot end them; each would keep its memory for ever."""
    decoding.send_signal(number)
    decoding.communicate(timeout=30)  # to the end of the pipe, which every worker holds open
    assert decoding.returncode == -number
