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

"""Transcripts that a tokenizer cannot write."""

import pytest
from nemo.collections.common.tokenizers import SentencePieceTokenizer

from nemo_mshubert.data import word_pieces
from nemo_mshubert.data.word_pieces import check_pieces

pytestmark = pytest.mark.unit


@pytest.fixture
def check(tokenizer_dir, monkeypatch):
    """Lines that were passed on for the given texts, and warnings."""
    tokenizer = SentencePieceTokenizer(str(tokenizer_dir / "tokenizer.model"))

    def run(*texts):
        warnings = []
        monkeypatch.setattr(word_pieces.logging, "warning", warnings.append)
        lines = [(f"train.json:{number}", {"words": text}) for number, text in enumerate(texts, 1)]
        assert list(check_pieces(lines, tokenizer, "words")) == lines
        return warnings

    return run


def test_text_without_pieces_is_counted(check):
    """Digits that were not spelled out, say: the model learned to write <unk> for them, and nobody was told."""
    known = "the sea"
    assert check(known, "", known) == []
    (warning,) = check(known, "the 3 sea", known, "4", "the €")
    assert "3 of 5 transcripts have text" in warning and "The first: train.json:2: 'the 3 sea'" in warning


def test_transcripts_in_another_case_are_refused(check):
    """A model that writes nothing but <unk> is no use after a day of training."""
    with pytest.raises(
        ValueError, match="train.json:1: 'THE SEA': .*nothing but <unk> .* for 2 of 3. Write the texts"
    ):
        check("THE SEA", "the sea", "SEA")
    assert len(check("THE SEA", "the sea")) == 1  # half of them
