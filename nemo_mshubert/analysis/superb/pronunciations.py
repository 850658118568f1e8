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

"""Phones of words: from pronunciation files of LibriSpeech and CMUdict, and from espeak-ng for words that they lack.

    A BOND          AH0 B AA1 N D       LibriSpeech's lexicon: word, white space, ARPAbet phones
    'bout(2)        B AW1 T # slang     CMUdict: further pronunciations have numbers, comments follow "#"

Files are UTF-8, or Latin-1 as CMUdict 0.7b is. As in s3prl's libriphone.py, the first pronunciation in the first file
counts. Words are compared in lower case.
"""

import ctypes
import re
from functools import cached_property
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Sequence

from nemo_mshubert.data.maybe_gzip import open_maybe_gzip
from nemo_mshubert.data.synthetic.espeak import AUDIO_OUTPUT_RETRIEVAL, CHARS_UTF8, open_library
from nemo_mshubert.whole_files import PathLike

VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
ARPABET = {*VOWELS, *CONSONANTS}
PHONE = re.compile(r"([A-Z]+)([012]?)")
ALTERNATIVE = re.compile(r"\(\d+\)$")  # CMUdict's numbers
NAMED_MISSING = 10  # number of words without pronunciation that an error lists

# espeak-ng's IPA of "en-us" -> ARPAbet. This is an approximation: espeak-ng reduces vowels that dictionaries do not.
IPA = {
    **{"ɑː": "AA", "ɑ": "AA", "a": "AA", "æ": "AE", "ʌ": "AH", "ə": "AH", "ɐ": "AH", "ᵻ": "IH", "ɔː": "AO", "ɔ": "AO"},
    **{
        "ɒ": "AA",
        "aʊ": "AW",
        "aɪ": "AY",
        "ɛ": "EH",
        "e": "EH",
        "ɜː": "ER",
        "ɜ": "ER",
        "ɚ": "ER",
        "ɚɹ": "ER",
        "ɜːɹ": "ER",
        "eɪ": "EY",
        "ɪ": "IH",
    },
    **{"iː": "IY", "i": "IY", "oʊ": "OW", "o": "OW", "oː": "OW", "ɔɪ": "OY", "ʊ": "UH", "uː": "UW", "u": "UW"},
    **{"əl": "AH L", "aɪɚ": "AY ER", "aɪə": "AY AH", "ɪɹ": "IH R", "ɛɹ": "EH R", "oːɹ": "AO R", "ɔːɹ": "AO R"},
    **{"ʊɹ": "UH R", "b": "B", "tʃ": "CH", "d": "D", "ð": "DH", "f": "F", "ɡ": "G", "h": "HH", "dʒ": "JH", "k": "K"},
    **{"l": "L", "m": "M", "n": "N", "ŋ": "NG", "p": "P", "ɹ": "R", "r": "R", "s": "S", "ʃ": "SH", "t": "T", "ɾ": "T"},
    **{"θ": "TH", "v": "V", "w": "W", "j": "Y", "z": "Z", "ʒ": "ZH", "x": "K", "ʔ": "T", "n̩": "AH N", "l̩": "AH L"},
}
IPA_TOKEN = re.compile("|".join(sorted(map(re.escape, IPA), key=len, reverse=True)) + "|[ˈˌ]|.")
STRESS = {"ˈ": "1", "ˌ": "2"}

Fallback = Callable[[str], List[str]]  # word -> phones with stress


class Pronunciations:
    """Phones of words.

    Args:
        paths: pronunciation files (also .gz), most trusted first.
        fallback: pronounces words that are in none of them; without a fallback, these are errors.
        stress: keep the stress digits of vowels, as s3prl does. False removes them everywhere, which is needed if only
            some of the files have stress.

    Raises:
        FileNotFoundError, ValueError: no such file, or a line that is not a pronunciation.
    """

    def __init__(self, paths: Sequence[PathLike], fallback: Optional[Fallback] = None, stress: bool = True):
        self.paths, self.fallback, self.stress = list(paths), fallback, stress
        self._phones: Dict[str, List[str]] = {}
        for path in paths:
            for word, phones in _read(Path(path)):
                self._phones.setdefault(word, phones)

    def of_text(self, text: str) -> List[str]:
        """Phones of a transcript, without silence; call `require` first."""
        return [phone for word in text.lower().split() for phone in self._of_word(word)]

    def require(self, texts: Iterable[str]) -> None:
        """Raise one ``ValueError`` for all words that neither the files nor the fallback pronounce. If stress is kept,
        also raise it for a word whose vowels have none."""
        words = dict.fromkeys(word for text in texts for word in text.lower().split())
        missing = [word for word in words if word not in self._phones]
        if missing and self.fallback is None:
            raise ValueError(
                f"{len(missing)} of {len(words)} words have no pronunciation in {', '.join(map(str, self.paths))}: "
                f"{' '.join(missing[:NAMED_MISSING])}{' ...' * (len(missing) > NAMED_MISSING)}. Add a pronunciation "
                "file that has them, or set g2p=espeak."
            )
        self.guessed = missing
        for word in missing:
            self._phones[word] = self.fallback(word)
        bare = (word for word in words if self.stress and not set(VOWELS).isdisjoint(self._phones[word]))
        if word := next(bare, None):
            raise ValueError(
                f"{', '.join(map(str, self.paths))}: {word!r} is {' '.join(self._phones[word])}, without the stress "
                "of its vowels. Set stress=false, or give files with stress (EH1)."
            )

    def _of_word(self, word: str) -> List[str]:
        phones = self._phones[word]
        return phones if self.stress else [PHONE.fullmatch(phone).group(1) for phone in phones]

    @property
    def vocabulary(self) -> List[str]:
        """All phones that can occur: 39 of ARPAbet, or 69 with stress, where each vowel occurs three times."""
        if not self.stress:
            return sorted(ARPABET)
        return sorted([*CONSONANTS, *(vowel + digit for vowel in VOWELS for digit in "012")])


def _read(path: Path):
    """Yield lower-case words and phones."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such pronunciation file. Give LibriSpeech's lexicon or CMUdict.")
    with open_maybe_gzip(path) as stream:
        for number, line in enumerate(map(_decoded, stream), start=1):
            word, *phones = line.split("#")[0].split() or [""]
            if not word or word.startswith(";;;"):  # comments of older CMUdicts
                continue
            matches = [PHONE.fullmatch(phone) for phone in phones]
            if not phones or not all(match and _is_phone(*match.groups()) for match in matches):
                raise ValueError(
                    f"{path}:{number}: expected a word and ARPAbet phones, found {line.strip()[:60]!r}. Repair the "
                    "line."
                )
            yield ALTERNATIVE.sub("", word.lower()), phones


def _decoded(line: bytes) -> str:
    """Decode as UTF-8, or else as Latin-1, in which cmudict-0.7b writes "DÉJÀ"."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _is_phone(name: str, stress: str) -> bool:
    return name in VOWELS or (name in CONSONANTS and not stress)


class EspeakPronunciations:
    """Pronounces any word of letters with the rules of espeak-ng's "en-us" (optional package espeakng-loader)."""

    VOICE, IPA_MODE = b"en-us", 0x02  # constants of espeak-ng's speak_lib.h

    @cached_property
    def _library(self):
        try:
            library, _ = open_library(AUDIO_OUTPUT_RETRIEVAL, options=0)
        except ImportError as error:
            raise ImportError("g2p=espeak needs `pip install espeakng-loader`.") from error
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        if library.espeak_SetVoiceByName(self.VOICE) != 0:
            raise RuntimeError(f"espeak-ng has no voice {self.VOICE.decode()!r}. Reinstall espeakng-loader.")
        return library

    def __call__(self, word: str) -> List[str]:
        """Phones of a word; raises ``ValueError`` for sounds that do not exist in English."""
        text = ctypes.c_char_p(word.encode())
        ipa = self._library.espeak_TextToPhonemes(ctypes.byref(text), CHARS_UTF8, self.IPA_MODE)
        return arpabet(ipa.decode(), word)


def arpabet(ipa: str, word: str) -> List[str]:
    """Phones with stress from espeak-ng's IPA, where a stress mark stands before its vowel."""
    phones: List[str] = []
    stress = "0"
    for token in IPA_TOKEN.findall(re.sub(r"\s|[_|ː]$", "", ipa)):
        if token in STRESS:
            stress = STRESS[token]
            continue
        if token not in IPA:
            raise ValueError(
                f"{word!r}: espeak-ng says {ipa!r}, and {token!r} is no English phone. Add the word to a file."
            )
        for phone in IPA[token].split():
            phones.append(phone + stress if phone in VOWELS else phone)
            stress = "0" if phone in VOWELS else stress
    if not phones:
        raise ValueError(f"{word!r}: espeak-ng does not pronounce it. Add the word to a pronunciation file.")
    return phones
