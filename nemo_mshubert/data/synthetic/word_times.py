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

"""Words and phones with their times, from the events that espeak-ng sends while it speaks."""

import re
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from nemo_mshubert.data.synthetic.espeak import Event

# espeak speaks some pairs of short words as one word, and announces only the first. The second word begins with one of
# these phones.
JOINED_ONSETS = {
    "the": ("D", "d"),
    "was": ("w",),
    "were": ("w",),
    "shall": ("S",),
    "to": ("t",),
    "been": ("b",),
    "it": ("I",),
    "once": ("w",),
    "a": ("@", "a", "V"),
    "an": ("@", "a"),
}


class Span(NamedTuple):
    """A word or a phone from sample ``start`` up to sample ``end``, at the engine's rate."""

    text: str
    start: int
    end: int


class _Group(NamedTuple):
    words: List[str]  # two if espeak joined them
    start: int
    phones: List[Tuple[str, int]]  # mnemonic, first sample


def _groups(text: str, events: List[Event]) -> Iterator[_Group]:
    """The phones of each announced word; a pause is a group without words."""
    announced = {event.character for event in events if event.is_word}
    words: Dict[int, List[str]] = {}
    for match in re.finditer(r"\S+", text):
        first = match.start() if match.start() in announced else max(words)
        words.setdefault(first, []).append(match.group())
    group = None
    last_phone = -1
    for event in events:
        if event.is_word:
            if group:
                yield group
            group = _Group(words[event.character], event.sample if event.sample > last_phone else -1, [])
        elif event.text.startswith("_"):
            if group:
                yield group
            group = _Group([], event.sample, [])
        elif group is not None:
            group.phones.append((event.text.lstrip("',%"), event.sample))
            if group.start < 0:
                # The word was announced with the last phone of the previous word, to which it is linked ("o|n a").
                group = group._replace(start=event.sample)
        if not event.is_word:
            last_phone = event.sample
    yield group


def align(text: str, events: List[Event]) -> Optional[Tuple[List[Span], List[Span]]]:
    """Words and phones of a spoken text, without the pauses; None if words are joined in a way unknown here.

    A word ends where the next word or a pause begins. As espeak announces them, a word that begins with a stop starts
    at the closure, but the phone starts at the burst.
    """
    word_marks, phone_marks = [], []  # (text, start), with "" for a pause
    for group in _groups(text, events):
        phone_marks += group.phones or [("", group.start)]
        word_marks.append((" ".join(group.words[:1]), group.start))
        if len(group.words) > 1:
            onsets = JOINED_ONSETS.get(group.words[1], ())
            candidates = [start for phone, start in group.phones[1:] if phone.startswith(onsets)]
            if not candidates or len(group.words) > 2:
                return None
            word_marks.append((group.words[1], candidates[-1]))

    def spans(marks):
        return [Span(text, start, end) for (text, start), (_, end) in zip(marks, marks[1:]) if text and end > start]

    words = spans(word_marks)
    return (words, spans(phone_marks)) if len(words) == len(text.split()) else None
