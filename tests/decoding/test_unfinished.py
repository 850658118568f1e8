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

"""Windows of an evaluation: each rank reads what it has written itself, and only what is whole."""

import numpy as np
import pytest

from nemo_mshubert.decoding import unfinished
from nemo_mshubert.decoding.unfinished import Unfinished, Window
from nemo_mshubert.parallel.launched import LaunchedRanks

pytestmark = pytest.mark.unit


def windows_of(folder, name="test", rank=0, count=1):
    return Unfinished(folder, name, {"weights": "a"}, LaunchedRanks(rank, count, None, None))


@pytest.mark.parametrize("log_probs", [[], [np.zeros((2, 4), np.float32), np.ones((0, 4), np.float32)]])
def test_a_window_reads_back(tmp_path, log_probs):
    """Also that of a model with BPE tokens, which has texts alone: going on would end in an error."""
    windows = windows_of(tmp_path)
    windows.write(3, [" ", "a", "b"], Window(log_probs, {"greedy": ["a", "größer"]}))
    assert [windows.has(number) for number in (0, 3)] == [False, True]
    found = windows_of(tmp_path).read(3)
    assert found.texts == {"greedy": ["a", "größer"]} and len(found.log_probs) == len(log_probs)
    for array, expected in zip(found.log_probs, log_probs):
        np.testing.assert_array_equal(array, expected)


def test_ranks_and_manifests_have_windows_of_their_own(tmp_path):
    """Else a rank that goes on takes another's utterances for its own, and the WER is that of a jumble."""
    places = [("dev", 0, 1), ("test", 0, 1), ("test", 0, 2), ("test", 1, 2)]
    for index, place in enumerate(places):
        windows = windows_of(tmp_path, *place)
        assert not windows.has(0), place
        windows.write(0, [], Window([], {"greedy": [str(index)]}))
    assert [windows_of(tmp_path, *place).read(0).texts["greedy"] for place in places] == [["0"], ["1"], ["2"], ["3"]]


def test_a_window_that_was_not_written_to_its_end_is_none(tmp_path, monkeypatch):
    """Killed before its log-probabilities were there: the cache for tuning could not be made."""

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(unfinished, "write_log_probs", killed)
    windows = windows_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        windows.write(0, [" "], Window([np.zeros((1, 2), np.float32)], {"greedy": ["a"]}))
    assert not windows.has(0)
