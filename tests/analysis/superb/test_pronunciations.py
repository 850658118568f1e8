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

"""Phones of words: file formats, order of trust, stress, and the rules of espeak-ng beside a dictionary."""

import gzip

import pytest

from nemo_mshubert.analysis.superb.pronunciations import (
    ARPABET,
    EspeakPronunciations,
    Pronunciations,
    arpabet,
)


@pytest.fixture
def write(tmp_path):
    def make(text, name="lexicon.txt"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return make


def test_first_pronunciation_of_the_first_file_in_either_format(write, tmp_path):
    librispeech = write("A\tAH0\nA\tEY1\nREAD  R EH1 D\n")
    cmudict = tmp_path / "cmudict.gz"
    with gzip.open(cmudict, "wt") as stream:
        stream.write(";;; comment\nread R IY1 D\nread(2) R EH1 D\nthe DH AH0 # weak\nthe(2) DH IY0\n\n")
    pronunciations = Pronunciations([librispeech, cmudict])
    assert pronunciations.of_text("Read the a") == "R EH1 D DH AH0 AH0".split()
    assert Pronunciations([cmudict]).of_text("read") == "R IY1 D".split()
    assert Pronunciations([librispeech], stress=False).of_text("a read") == "AH R EH D".split()


def test_vocabulary_is_that_of_s3prl_without_silence():
    """s3prl's phoneme.txt: 71 lines, of which SIL and SPN occur in no pronunciation."""
    with_stress, without = Pronunciations([]).vocabulary, Pronunciations([], stress=False).vocabulary
    assert len(with_stress) == len(set(with_stress)) == 69 and {"AA0", "AA1", "AA2", "B", "ZH"} <= set(with_stress)
    assert without == sorted(ARPABET) and len(without) == 39


def test_words_without_a_pronunciation_are_named_together(write):
    pronunciations = Pronunciations([write("a AH0")])
    with pytest.raises(ValueError, match=r"2 of 3 words have no pronunciation in .*lexicon.txt: zyx abc. Add .* g2p"):
        pronunciations.require(["a zyx", "abc a"])
    guessing = Pronunciations([write("a AH0")], fallback=lambda word: list("BD"))
    guessing.require(["a zyx"])
    assert guessing.of_text("a zyx") == ["AH0", "B", "D"] and guessing.guessed == ["zyx"]


def test_a_lexicon_without_stress_beside_one_with_it(write):
    """The transcript was called wrong, beside all 69 phones in one word, where stress=false is what helps."""
    files = [write("bed B EH D\n"), write("a AH0\nb B\n", "other.txt")]
    with pytest.raises(ValueError, match=r"lexicon.txt, .*other.txt: 'bed' is B EH D, without.* Set stress=false"):
        Pronunciations(files).require(["a bed"])
    Pronunciations(files).require(["a b"])  # of words that occur
    without = Pronunciations(files, stress=False)
    without.require(["a bed"])
    assert without.of_text("a bed") == ["AH", "B", "EH", "D"]


@pytest.mark.parametrize("line", ["word", "word XX1", "word B1", "word ah0", "word AH3"])
def test_lines_that_are_no_pronunciation(write, line):
    with pytest.raises(ValueError, match=r"lexicon.txt:2: expected a word and ARPAbet phones"):
        Pronunciations([write(f"a AH0\n{line}\n")])


@pytest.mark.parametrize("name", ["cmudict-0.7b", "cmudict-0.7b.gz"])
def test_latin1_as_cmudict_is_written(tmp_path, name):
    """A bare UnicodeDecodeError, which names neither file nor line, for the dictionary that the docs recommend."""
    content = "A  AH0\nDÉJÀ  D EY1 ZH AA2\n".encode("latin-1") + "naïve N AY0 IY1 V\n".encode("utf-8")
    with (gzip.open if name.endswith(".gz") else open)(tmp_path / name, "wb") as stream:
        stream.write(content)
    assert Pronunciations([tmp_path / name]).of_text("Déjà naïve") == "D EY1 ZH AA2 N AY0 IY1 V".split()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.txt: no such pronunciation file"):
        Pronunciations([tmp_path / "gone.txt"])


def test_ipa_to_arpabet_with_stress():
    assert arpabet("t͡ʃ".replace("͡", "") + "ˈɜːtʃ", "church") == "CH ER1 CH".split()
    assert arpabet("ɐbˈaʊt", "about") == "AH0 B AW1 T".split()
    assert arpabet("ˌʌndɚstˈænd", "understand") == "AH2 N D ER0 S T AE1 N D".split()
    with pytest.raises(ValueError, match="'loch': .*'ʀ' is no English phone"):
        arpabet("lɑːʀ", "loch")
    with pytest.raises(ValueError, match="does not pronounce it"):
        arpabet("", "'")


DICTIONARY = {
    "speech": "S P IY1 CH",
    "church": "CH ER1 CH",
    "measure": "M EH1 ZH ER0",
    "thought": "TH AO1 T",
    "this": "DH IH1 S",
    "young": "Y AH1 NG",
    "boy": "B OY1",
    "house": "HH AW1 S",
    "judge": "JH AH1 JH",
    "vision": "V IH1 ZH AH0 N",
    "window": "W IH1 N D OW0",
    "food": "F UW1 D",
    "good": "G UH1 D",
    "train": "T R EY1 N",
    "like": "L AY1 K",
    "zoo": "Z UW1",
    "shop": "SH AA1 P",
}


def test_espeak_agrees_with_a_dictionary():
    """Words whose pronunciation nobody disputes, with every consonant and most vowels of English (CMUdict)."""
    pytest.importorskip("espeakng_loader")
    espeak = EspeakPronunciations()
    assert {word: " ".join(espeak(word)) for word in DICTIONARY} == DICTIONARY


@pytest.mark.shared_data
def test_espeak_beside_cmudict(shared_data):
    """Of 2000 words every 17th or so phone differs, mostly weak vowels: a fallback for rare words, not a lexicon."""
    pytest.importorskip("espeakng_loader")
    from nemo_mshubert.decoding.error_rates import ErrorCounts, error_counts

    lexicon = Pronunciations([shared_data / "lexicon" / "cmudict.dict.gz"], stress=False)
    listed = (shared_data / "lexicon" / "librispeech_subset_lexicon.txt").read_text().splitlines()
    words = [word for word in dict.fromkeys(line.split()[0] for line in listed) if word in lexicon._phones][:2000]
    espeak = EspeakPronunciations()
    errors = ErrorCounts()
    for word in words:
        guess = [phone.rstrip("012") for phone in espeak(word)]
        errors += error_counts(lexicon.of_text(word), guess)
    assert errors.rate < 0.08
