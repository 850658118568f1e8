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

"""WER and CER against an independent edit distance, and pooled as counts."""

import random
from functools import lru_cache

import pytest

from nemo_mshubert.decoding.error_rates import ErrorCounts, character_errors, error_counts, word_errors

pytestmark = pytest.mark.unit


def slow_edit_distance(reference, hypothesis):
    @lru_cache(maxsize=None)
    def distance(i, j):
        if i == 0 or j == 0:
            return i + j
        substituted = distance(i - 1, j - 1) + (reference[i - 1] != hypothesis[j - 1])
        return min(substituted, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(reference), len(hypothesis))


@pytest.mark.parametrize("seed", range(50))
def test_errors_equal_a_slow_edit_distance(seed):
    rng = random.Random(seed)
    reference, hypothesis = (tuple(rng.choices("abcd", k=rng.randint(0, 9))) for _ in range(2))
    counts = error_counts(list(reference), list(hypothesis))
    assert counts.errors == slow_edit_distance(reference, hypothesis)
    assert counts.reference_length == len(reference)
    assert counts.insertions - counts.deletions == len(hypothesis) - len(reference)
    assert error_counts("".join(reference), "".join(hypothesis)).errors == counts.errors


def test_each_kind_of_error_by_hand():
    assert error_counts("the cat sat".split(), "the bat sat".split()) == ErrorCounts(1, 0, 0, 3)
    assert error_counts("the cat sat".split(), "the cat has sat".split()) == ErrorCounts(0, 1, 0, 3)
    assert error_counts("the cat sat".split(), "cat sat".split()) == ErrorCounts(0, 0, 1, 3)
    assert error_counts("the cat".split(), []) == ErrorCounts(0, 0, 2, 2)


def test_rates_of_a_set_are_pooled_counts():
    """One error in one word and none in nine: 10 %, not the mean of 100 % and 0 %."""
    pairs = [("a", "b"), ("b c d e f g h i j", "b c d e f g h i j")]
    assert word_errors(pairs) == ErrorCounts(1, 0, 0, 10)
    assert word_errors(pairs).rate == pytest.approx(0.1)


def test_characters_include_the_space_between_words():
    """As in jiwer and NeMo, so that our CER can be set beside theirs; extra white space is no error."""
    assert character_errors([("a  b ", "ab")]) == ErrorCounts(0, 0, 1, 3)
    assert character_errors([("a b", " a  b ")]) == ErrorCounts(0, 0, 0, 3)


def test_no_reference_words_is_an_error_not_a_rate():
    """An empty dev set must not look like a perfect one."""
    with pytest.raises(ValueError, match="references hold no words"):
        word_errors([("", "a")]).rate
    with pytest.raises(ValueError, match="references hold no words"):
        word_errors([]).rate
