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

"""A tiny decoding problem, with a language model written by hand: KenLM reads ARPA, so no estimation is needed."""

import numpy as np
import pytest

from nemo_mshubert.decoding.config import LexiconBeamConfig

UNKNOWN_LOG10 = -6.0


@pytest.fixture
def write_arpa(tmp_path):
    """``write_arpa({"the": -1.0}, {("the", "sea"): -0.1})``: a bigram LM (log10, back-off 0); returns its path."""

    def write(unigrams, bigrams=(), name="tiny.arpa"):
        bigrams = dict(bigrams)
        words = {"<unk>": UNKNOWN_LOG10, "<s>": -99.0, "</s>": -1.0, **unigrams}
        lines = ["\\data\\", f"ngram 1={len(words)}", f"ngram 2={len(bigrams)}", "", "\\1-grams:"]
        lines += [f"{score}\t{word}\t0" for word, score in words.items()]
        lines += ["", "\\2-grams:"] + [f"{score}\t{' '.join(pair)}" for pair, score in bigrams.items()]
        path = tmp_path / name
        path.write_text("\n".join([*lines, "", "\\end\\", ""]))
        return str(path)

    return write


@pytest.fixture
def write_lexicon_of(tmp_path):
    """Write a lexicon of lower-case words, spelled letter by letter; returns its path."""

    def write(words):
        path = tmp_path / "tiny.lexicon"
        path.write_text("".join(f"{word}\t{' '.join(word)} |\n" for word in words))
        return str(path)

    return write


@pytest.fixture
def make_config():
    """A config that prunes nothing and whose weights are neutral, unless said otherwise."""

    def make(lm, lexicon, **changes):
        neutral = {"lm_weight": 0.0, "word_score": 0.0, "sil_score": 0.0}
        beams = {"beam_size": 10000, "beam_threshold": 1e6, "beam_size_token": None}
        return LexiconBeamConfig(lm=lm, lexicon=lexicon, **{**neutral, **beams, **changes})

    return make


@pytest.fixture
def emit():
    """``emit("a|_", labels)``: log-probabilities ``[T, V]``, log 0.9 for each frame's token (_: the blank)."""

    def frames(tokens, labels, probability=0.9):
        names = {**{label: index for index, label in enumerate(labels)}, "_": len(labels), "|": labels.index(" ")}
        rest = (1 - probability) / len(labels)
        array = np.full((len(tokens), len(labels) + 1), np.log(rest), dtype=np.float32)
        for frame, token in enumerate(tokens):
            array[frame, names[token]] = np.log(probability)
        # Among exact ties flashlight takes either path, by the addresses of its states; a model's output has none.
        return array + np.random.default_rng(0).uniform(0, 1e-5, array.shape).astype(np.float32)

    return frames
