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

"""The lexicon joins LM and acoustic model: what does not fit must be refused before decoding, with the remedy."""

import pytest

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.decoding.lexicon import can_spell, fold_case, read_lexicon, write_lexicon

pytestmark = pytest.mark.unit


def test_upper_case_words_are_spelled_in_the_letters_of_a_lower_case_model(tmp_path):
    """Else the official upper-case LibriSpeech LM could not decode a lower-case model."""
    path = tmp_path / "words.lexicon"
    assert write_lexicon(path, ["THE", "DON'T", "THE"], ENGLISH_LABELS) == (2, 0)
    assert path.read_text() == "THE\tt h e |\nDON'T\td o n ' t |\n"
    index = {label: number for number, label in enumerate(ENGLISH_LABELS)}
    spelled = read_lexicon(path, ENGLISH_LABELS)
    assert spelled["THE"] == [[index["t"], index["h"], index["e"], index[" "]]]


def test_words_that_the_model_cannot_emit_are_left_out_and_counted(tmp_path):
    assert write_lexicon(tmp_path / "l", ["caf\u00e9", "r2d2", "cafe", "tea", "milk"], ENGLISH_LABELS) == (3, 2)
    assert list(read_lexicon(tmp_path / "l", ENGLISH_LABELS)) == ["cafe", "tea", "milk"]


@pytest.mark.parametrize("space", ["\u00a0", "\u3000", "\x0b"])
def test_words_that_a_line_would_cut_are_left_out_and_counted(tmp_path, space):
    """An LM may hold them, and a converted model such a label; the lexicon was written so that no one could read
    it."""
    labels = [*ENGLISH_LABELS, space]
    assert write_lexicon(tmp_path / "l", [f"the{space}sea", space, "tea", "milk", "cat"], labels) == (3, 2)
    assert list(read_lexicon(tmp_path / "l", labels)) == ["tea", "milk", "cat"]


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path):
    """An editor on Windows adds one: the word would be written with it, and each time count as an error."""
    path = tmp_path / "l"
    path.write_text("\ufeffmr\tm r |\n", encoding="utf-8")
    assert list(read_lexicon(path, ENGLISH_LABELS)) == ["mr"]


def test_a_word_may_have_several_spellings(tmp_path):
    path = tmp_path / "l"
    path.write_text("mr\tm r |\nmr\tm i s t e r |\n")
    assert len(read_lexicon(path, ENGLISH_LABELS)["mr"]) == 2


def test_what_is_no_text_is_named(tmp_path):
    """LM and lexicon in each other's place: an error of a codec named neither."""
    (tmp_path / "lm.bin").write_bytes(b"mmap lm \x80\xff")
    with pytest.raises(ValueError, match="lm.bin: no lexicon in UTF-8 .*train_ngram.py"):
        read_lexicon(tmp_path / "lm.bin", ENGLISH_LABELS)


@pytest.mark.parametrize(
    "line, message",
    [
        ("THE\tT H E |", "l:2: 'THE' is spelled with 'T', but the model's letter is 't'.*wrong case"),
        ("the\tt h \u00e9 |", "l:2: 'the' is spelled with '\u00e9', which is not among the model's letters"),
        ("the", "l:2: 'the' has the spelling ''.*--words"),
        ("the\tt h e", "final '|'"),
        ("the\t| |", "expected its letters"),
    ],
)
def test_a_wrong_line_is_named_with_its_remedy(tmp_path, line, message):
    """A lexicon in the wrong case decodes to garbage at full speed (96 % WER) if it is not refused."""
    path = tmp_path / "l"
    path.write_text(f"a\ta |\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_lexicon(path, ENGLISH_LABELS)


def test_empty_and_absent_lexicons_and_subword_models_are_refused(tmp_path):
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="holds no words"):
        read_lexicon(tmp_path / "empty", ENGLISH_LABELS)
    with pytest.raises(FileNotFoundError, match="train_ngram.py"):
        read_lexicon(tmp_path / "absent", ENGLISH_LABELS)
    with pytest.raises(ValueError, match="lack the word delimiter"):
        read_lexicon(tmp_path / "empty", ["\u2581the", "\u2581cat"])


def test_words_of_another_alphabet_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 of 2 words hold letters that the model lacks"):
        write_lexicon(tmp_path / "l", ["\u043c\u0438\u0440", "\u0434\u043e\u043c"], ENGLISH_LABELS)
    assert not (tmp_path / "l").exists()
    with pytest.raises(ValueError, match="no words"):
        write_lexicon(tmp_path / "l", [], ENGLISH_LABELS)


def test_words_with_letters_that_the_model_lacks_are_left_out(tmp_path):
    """Different numbers and names can be most of the words of a text in the model's alphabet, though not of its
    tokens: the LM was trained, and no lexicon written."""
    path = tmp_path / "l"
    assert write_lexicon(path, ["call", "885440", "112", "die", "größe", "call"], ENGLISH_LABELS) == (2, 3)
    assert path.read_text() == "call\tc a l l |\ndie\td i e |\n"


def test_case_follows_the_model():
    assert fold_case("The", ["a", "b"]) == "the"
    assert fold_case("The", ["A", "B"]) == "THE"
    assert fold_case("The", ["a", "B"]) == "The"
    assert fold_case("gibi", list("BGI\u0130")) == "G\u0130B\u0130"  # Turkish
    assert can_spell("AB", ["a", "b"]) and not can_spell("AC", ["a", "b"]) and not can_spell("", ["a"])


@pytest.mark.parametrize("text", ["\u0130I\u011eI", "I\u0307I\u011eI", "i\u0307\u0131\u011f\u0131"])
def test_the_dot_of_a_turkish_capital_may_be_a_character_of_its_own(text):
    """Text of macOS has it, and what Python and others make of it in small letters: such words were in no lexicon."""
    assert fold_case(text, list("ab\u011f\u0131i")) == "i\u0131\u011f\u0131"
