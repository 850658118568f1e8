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

"""Batches of similar lengths."""

import numpy as np
import pytest

from nemo_mshubert.data.batching import batches_by_length

pytestmark = pytest.mark.unit


def test_batches_are_within_the_limit_and_hold_every_utterance_once():
    """Padded audio is what fills the memory: the longest times the number of rows."""
    durations = np.random.default_rng(0).uniform(0.5, 30, 200).tolist()
    batches = list(batches_by_length(durations, 60))
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    for batch in batches:
        assert max(durations[index] for index in batch) * len(batch) <= 60
    longest = [durations[batch[0]] for batch in batches]
    assert longest == sorted(durations, reverse=True)[:1] + longest[1:] == sorted(longest, reverse=True)
    assert len(batches) < 1.3 * sum(durations) / 60 + 1  # sorted by length, little is padding


def test_an_utterance_longer_than_the_limit_is_a_batch_of_its_own():
    assert list(batches_by_length([1, 100, 2], 10)) == [[1], [2, 0]]
    assert list(batches_by_length([5, 5], 10)) == [[0, 1]]  # the limit itself is within it
    assert list(batches_by_length([], 10)) == []
