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

"""Sentences and their subsets."""

import random
import re
from collections import defaultdict

import numpy as np
import pytest

from nemo_mshubert.data.synthetic.sentences import make_sentence, sentence_subset

pytestmark = pytest.mark.unit


def test_sentences_are_varied_and_test_words_are_known_from_train():
    """A corpus of one template, or of words never trained on, would tell nothing about a recogniser."""
    rng = random.Random(0)
    by_subset = defaultdict(list)
    for _ in range(4000):
        sentence = make_sentence(rng)
        assert re.fullmatch(r"[a-z']+( [a-z']+)*", sentence), sentence
        assert not re.search(r"\ba [aeio]|\ban [bcdfgjklmnpqrstvwxyz]", sentence), sentence
        by_subset[sentence_subset(sentence)].append(sentence)
    assert len({sentence for lines in by_subset.values() for sentence in lines}) > 3900
    train = {word for sentence in by_subset["train-clean"] for word in sentence.split()}
    assert len(train) > 900
    for subset in ("dev-clean", "test-clean"):
        words = [word for sentence in by_subset[subset] for word in sentence.split()]
        assert len(words) > 2500
        assert np.mean([word in train for word in words]) > 0.98
