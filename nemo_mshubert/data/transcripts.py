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

"""Check that transcripts for training or for error rates exist and use the model's letters; NeMo drops other letters
silently."""

import unicodedata
from typing import Any, Dict, Iterable, Optional, Sequence

from nemo_mshubert.data.manifest import iter_manifest, not_empty
from nemo_mshubert.whole_files import PathLike


def check_transcripts(manifest: PathLike, letters: Optional[Sequence[str]] = None) -> None:
    """Check the transcripts of a whole manifest.

    Args:
        letters: letters of the model, with the word delimiter; None for a subword model, which can write any text.

    Raises:
        FileNotFoundError: no such manifest.
        ValueError: there are no lines, or a line has no ``text`` or has letters that are not among ``letters``, such
            as capitals; names file, line and remedy.
    """
    for where, entry in not_empty(iter_manifest(manifest), manifest):
        check_transcript(entry, where, letters)


def check_transcript(
    entry: Dict[str, Any], where: str, letters: Optional[Sequence[str]] = None, field: str = "text"
) -> None:
    """`check_transcripts` for one line, which is at ``where`` and has its transcript in ``field``."""
    if not isinstance(entry.get(field), str):
        raise ValueError(f'{where}: no "{field}". Add the transcript or remove the line.')
    foreign = "".join(sorted(set(entry[field]) - set(letters))) if letters else ""
    if foreign and (form := other_form(entry[field], letters)):
        raise ValueError(f"{where}: {in_form(form, entry[field])}")
    if foreign:
        shown = ascii(foreign) if any(map(unicodedata.combining, foreign)) else repr(foreign)  # no accent on a quote
        raise ValueError(
            f"{where}: the model's letters are {''.join(letters)!r}, the text has {shown}. Write the text in "
            "these letters (lower case, numbers spelled out), or make a model of others: ssl_to_ctc.py --letters."
        )


def other_form(text: str, letters: Iterable[str]) -> Optional[str]:
    """The Unicode form in which ``text`` has the fewest letters that are not among ``letters``; None if no form has
    fewer than its own.

    Programs on macOS write "ä" as "a" and an accent; Japanese and Chinese ones write full-width letters and digits.
    """
    known = set(letters)

    def count_foreign(text: str) -> int:
        return sum(letter not in known and not letter.isspace() for letter in text)  # white space does not count

    foreign = {form: count_foreign(unicodedata.normalize(form, text)) for form in ("NFC", "NFKC", "NFD")}
    best = min(foreign, key=foreign.get)
    return best if foreign[best] < count_foreign(text) else None


def in_form(form: str, text: str) -> str:
    """The message for a ``text`` that should be in another Unicode form, with the remedy; both forms look the
    same."""
    changed = next(word for word in text.split() if not unicodedata.is_normalized(form, word))
    return (
        f"{changed!r} holds the characters {ascii(changed)}, the model's letters are in another form of Unicode. "
        f'Write the "text" of all lines in {form}: unicodedata.normalize("{form}", text) in Python.'
    )
