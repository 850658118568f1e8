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

"""Lexicon of a letter model: how each word of the language model is spelled in the letters of the acoustic model.

Each line holds a word, its letters, and ``|`` for the word delimiter, as in flashlight and fairseq:

    THE     t h e |

The word is written as in the language model, and the spelling as in the acoustic model. Thus a lower-case model can be
decoded with the upper-case LibriSpeech 4-gram.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Dict, Iterable, List, Sequence, Tuple

from nemo_mshubert.alphabet import SPACE, WRITTEN_SPACE
from nemo_mshubert.whole_files import PathLike, atomic_write


def fold_case(text: str, labels: Iterable[str]) -> str:
    """``text`` in the case of the model's letters: lower, upper, or unchanged if the model has both cases.

    For models with Turkish dotless i or dotted I, the Turkish pairs of letters are used. An İ may also be written as I
    and U+0307, its dot; other programs write it in lower case as i and U+0307.
    """
    letters = "".join(labels)
    if letters == letters.lower():
        if "ı" in letters:
            text = re.sub("İ|[Ii]\u0307", "i", text).replace("I", "ı")
        return text.lower()
    if letters == letters.upper():
        return (text.replace("i", "İ") if "İ" in letters else text).upper()
    return text


def can_spell(word: str, labels: Sequence[str]) -> bool:
    """Whether every letter of ``word`` is a label of the model; for a model with a single case, case does not matter.

    A word with white space of any kind cannot be spelled: in a line of the lexicon it would be several words.
    """
    return word.split() == [word] and set(fold_case(word, labels)) <= set(labels)


def write_lexicon(path: PathLike, words: Iterable[str], labels: Sequence[str]) -> Tuple[int, int]:
    """Write the spelling of every word that the model's letters can spell.

    Words with other letters are left out, since the model can never emit them, and so are words with white space
    (U+00A0). Even in a text in the model's alphabet, most distinct words may be left out: numbers and names occur
    once, ordinary words often.

    Returns:
        Numbers of words written and left out.

    Raises:
        ValueError: there are no words, or none in the model's letters.
    """
    words = list(dict.fromkeys(words))
    spelled = [word for word in words if can_spell(word, labels)]
    if not spelled:
        require_same_alphabet(words, labels, where=str(path))
    with atomic_write(path) as stream:
        for word in spelled:
            stream.write(f"{word}\t{' '.join(fold_case(word, labels))} {WRITTEN_SPACE}\n")
    return len(spelled), len(words) - len(spelled)


def require_same_alphabet(words: Sequence[str], labels: Sequence[str], where: str) -> None:
    """Raise ``ValueError`` if ``words`` is empty, or if most words have letters that the model lacks."""
    if not words:
        raise ValueError(f"{where}: no words. Give text with at least one word of letters.")
    foreign = [word for word in words if not can_spell(word, labels)]
    if 2 * len(foreign) > len(words):
        strange = Counter(letter for word in foreign for letter in set(fold_case(word, labels)) - set(labels))
        letters = "".join(letter for letter, _ in strange.most_common(10))
        raise ValueError(
            f"{where}: {len(foreign)} of {len(words)} words hold letters that the model lacks ({letters!r}, as in "
            f"{foreign[0]!r}); its letters are {''.join(labels)!r}. Give the text or ARPA of the model's language, "
            "or the model's own letters as --letters."
        )


def read_lexicon(path: PathLike, labels: Sequence[str]) -> Dict[str, List[List[int]]]:
    """Words and their spellings as indices into ``labels``, each ending with the word delimiter.

    Raises:
        FileNotFoundError: no such lexicon.
        ValueError: there are no words, a word has no spelling, or a letter is not a label (other case or alphabet);
            names the file, the line and the remedy.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such lexicon. Write one with scripts/train_ngram.py.")
    if SPACE not in labels:
        raise ValueError(
            f"the model's labels {list(labels)[:8]}... lack the word delimiter {SPACE!r}. A lexicon decodes "
            "letter models; for BPE models use NeMo's strategy beam_batch."
        )
    index = {label: number for number, label in enumerate(labels)}
    index[WRITTEN_SPACE] = index[SPACE]
    lexicon: Dict[str, List[List[int]]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # Windows writes a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: no lexicon in UTF-8 ({error.reason} at byte {error.start}). Give the text file of words and "
            "letters that scripts/train_ngram.py writes beside the LM."
        ) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            word, *spelling = line.split()
            _check_spelling(f"{path}:{number}", word, spelling, index)
            lexicon.setdefault(word, []).append([index[letter] for letter in spelling])
    if not lexicon:
        raise ValueError(f"{path}: the lexicon holds no words. Write it anew with scripts/train_ngram.py.")
    return lexicon


def _check_spelling(where: str, word: str, spelling: List[str], index: Dict[str, int]) -> None:
    missing = [letter for letter in spelling if letter not in index]
    if missing and all(letter.swapcase() in index for letter in missing):
        raise ValueError(
            f"{where}: {word!r} is spelled with {missing[0]!r}, but the model's letter is {missing[0].swapcase()!r}. "
            "The lexicon is in the wrong case; write it anew with scripts/train_ngram.py, which spells in the "
            "model's letters."
        )
    if missing:
        raise ValueError(
            f"{where}: {word!r} is spelled with {missing[0]!r}, which is not among the model's letters. Remove the "
            "line, or write the lexicon anew with scripts/train_ngram.py --letters of this model."
        )
    if len(spelling) < 2 or spelling[-1] != WRITTEN_SPACE or set(spelling[:-1]) == {WRITTEN_SPACE}:
        raise ValueError(
            f"{where}: {word!r} has the spelling {' '.join(spelling)!r}; expected its letters and a final "
            f"{WRITTEN_SPACE!r}. Turn a plain word list into a lexicon with scripts/train_ngram.py --words."
        )
