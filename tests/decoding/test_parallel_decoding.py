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

import numpy as np
import pytest

from nemo_mshubert.decoding.lexicon_beam import LexiconBeamSearchDecoder
from nemo_mshubert.decoding.parallel import ParallelDecoder

pytestmark = pytest.mark.unit
AB = [" ", "a", "b"]


@pytest.fixture
def decoder(write_arpa, write_lexicon_of, make_config):
    words = ["a", "b", "ab", "ba"]
    config = make_config(write_arpa({"a": -0.1, "b": -0.2, "ab": -3.0, "ba": -3.0}), write_lexicon_of(words))
    return LexiconBeamSearchDecoder(AB, config)


def test_workers_give_the_results_of_one_process_in_order(decoder, emit, capfd):
    utterances = [(f"u{index}", emit(tokens, AB, 0.6)) for index, tokens in enumerate(["ab|a", "b", "", "ba|ab"] * 5)]
    weighted = dataclasses.replace(decoder.config, lm_weight=2.0, word_score=1.0)
    with ParallelDecoder(decoder, workers=1) as single, ParallelDecoder(decoder, workers=2) as several:
        assert several.decode(utterances, n_best=3) == [decoder.decode(array, name, 3) for name, array in utterances]
        plain, with_lm = (several.decode(utterances, config=config) for config in (None, weighted))
        assert plain != with_lm == single.decode(utterances, config=weighted, progress="tuned")
        batch, lengths = np.stack([emit("ab__", AB), emit("ba|b", AB)]), [2, 4]
        assert several.decode_batch(batch, lengths) == decoder.decode_batch(batch, lengths)
        utterances[7][1][0, 0] = np.nan
        with pytest.raises(ValueError, match="u7: .*NaN"):
            several.decode(utterances)
    assert "tuned: 100%" in capfd.readouterr().err
