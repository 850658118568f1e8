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

"""Transcripts checked before training."""

import json

import pytest

from nemo_mshubert.data.transcripts import check_transcripts, other_form

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "texts, message",
    [
        (["a b", "b A"], "m.json:2: the model's letters are ' ab', the text has 'A'"),
        (["a b", "2 b, c"], "m.json:2: .*the text has ',2c'.*--letters"),
        (["a", None], 'm.json:2: no "text". Add the transcript or remove the line'),
        (["a", 7], 'm.json:2: no "text". Add the transcript or remove the line'),
        ([], "m.json: the manifest is empty"),
    ],
)
def test_what_a_letter_model_cannot_learn_is_named(tmp_path, texts, message):
    """NeMo's parser drops the letters it does not know: the model would learn "he sea" for "The sea"."""
    lines = [json.dumps({"audio_filepath": "x.wav", "text": text}) + "\n" for text in texts]
    (tmp_path / "m.json").write_text("".join(lines))
    with pytest.raises(ValueError, match=message):
        check_transcripts(tmp_path / "m.json", [" ", "a", "b"])


def test_subwords_write_any_text_and_an_empty_text_is_one(tmp_path):
    (tmp_path / "m.json").write_text(
        '{"audio_filepath": "x.wav", "text": "\\u00c4 2"}\n{"audio_filepath": "x", "text": ""}\n'
    )
    check_transcripts(tmp_path / "m.json")
    with pytest.raises(FileNotFoundError, match="gone.json: no such manifest"):
        check_transcripts(tmp_path / "gone.json")


@pytest.mark.parametrize(
    "letters, text, form",
    [
        ("abu\u00fc", "a bu\u0308b", "NFC"),
        ("abu\u0308", "a b\u00fcb", "NFD"),
        ("ab\u30ac", "\uff41 \uff76\uff9e", "NFKC"),
        ("abu", "a b\u00fcb", None),  # a letter that the model lacks in every form
        ("abu", "bu\u0308b", None),
        ("abu\u00fc", "b\u00fcb 1\u00bd", None),
        ("\u0e17\u0e33", "\u0e17\u0e33", None),  # NFKC would take the vowel apart
        ("ab", "a\u00a0b", None),
        ("abu\u00fc", "u \u0308b", None),  # an accent on nothing
    ],
)
def test_the_form_of_unicode_in_which_a_text_is_the_models(letters, text, form):
    """What looks the same and is not: the message named an accent alone, printed on a quotation mark."""
    assert other_form(text, [" ", *letters]) == form


def test_accents_of_macos_are_named_with_the_remedy(tmp_path):
    (tmp_path / "m.json").write_text('{"audio_filepath": "x.wav", "text": "b bu\u0308b"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"m.json:1: .*bu\\u0308b.*Write the \"text\" of all lines in NFC"):
        check_transcripts(tmp_path / "m.json", [" ", *"bu\u00fc"])
    with pytest.raises(ValueError, match=r"m.json:1: .*the text has '\\u0308'"):
        check_transcripts(tmp_path / "m.json", [" ", *"bu"])
