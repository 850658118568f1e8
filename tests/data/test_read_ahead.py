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

"""Reading ahead changes the time of reading, nothing else."""

import random
import threading
import time

import pytest

from nemo_mshubert.data import read_ahead as module
from nemo_mshubert.data.read_ahead import read_ahead

pytestmark = pytest.mark.unit


def test_order_is_that_of_the_items():
    """Labels and texts are put beside the lines they were read for."""

    def read(item):
        time.sleep(random.uniform(0, 0.01))
        return -item

    assert list(read_ahead(range(50), read, lambda item: 1.0)) == [-item for item in range(50)]


@pytest.mark.parametrize("seconds, most", [(60, 11), (0, 41), (7200, 2)])
def test_no_more_lies_ready_than_memory_is_meant_for(seconds, most):
    """Files of hours must not fill the memory; unknown lengths count as those of utterances."""
    begun, ready = [], []
    for number, _ in enumerate(read_ahead(range(100), begun.append, lambda item: seconds)):
        time.sleep(0.001)  # whatever may begin has begun
        ready.append(len(begun) - number)
    assert most - 1 <= max(ready) <= most
    assert most - 1 <= max(ready[30:60])  # as many later on: a count that only grows would read one by one


def test_an_error_comes_in_its_place_and_ends_the_reading():
    """What was read before the bad line is labelled first, and no thread goes on behind it."""

    begun = []

    def read(item):
        begun.append(item)
        time.sleep(0.005)
        if item == 20:
            raise ValueError("line 20")
        return item

    results = []
    with pytest.raises(ValueError, match="line 20"):
        for result in read_ahead(range(100), read, lambda item: 1.0):
            results.append(result)
    assert results == list(range(20))
    assert len(begun) < 100  # what had not begun is left
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_reads_overlap(monkeypatch):
    """One after another the audio of a GPU's hour takes longer than the GPU."""
    monkeypatch.setattr(module, "MOST_THREADS", 2)
    meeting = threading.Barrier(2, timeout=10)
    assert list(read_ahead(range(2), lambda item: meeting.wait() >= 0, lambda item: 1.0)) == [True, True]
