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

"""Read the intervals of Praat's TextGrids, as the Montreal Forced Aligner writes them.

The long and the short text format differ only in the names before the values ("xmin = 0.5" and "0.5"). Without names,
both are the same sequence of numbers, quoted texts and <flags>:

    "ooTextFile" "TextGrid"  start end <exists> tiers
    "IntervalTier" "words"   start end intervals    start end "text"   start end "text"  ...
    "TextTier"     "events"  start end points       time "text"  ...

(Praat's manual: "TextGrid file formats".)
"""

import re
from pathlib import Path
from typing import Dict, Iterator, List, Tuple, Union

from nemo_mshubert.whole_files import PathLike

Interval = Tuple[float, float, str]  # start and end in seconds, text
Token = Union[float, str]

# A quote within a text is doubled. A number is a separate token: not the "1" of "intervals [1]:".
TOKEN = re.compile(r'"((?:[^"]|"")*)"|(?:^|(?<=\s))(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?=\s|$)|<(\w+)>')


def read_textgrid(path: PathLike) -> Dict[str, List[Interval]]:
    """Intervals of every interval tier, by the tier's name; point tiers are left out.

    Raises:
        ValueError: the file is not a TextGrid in a text format, or is cut off; names the file.
    """
    tokens = _tokens(_decode(Path(path).read_bytes(), path))
    try:
        if next(tokens) not in ("ooTextFile", "ooTextFile short") or next(tokens) != "TextGrid":
            raise ValueError("the header is another one")
        _floats(tokens, 2)
        if next(tokens) != "<exists>":
            return {}
        tiers: Dict[str, List[Interval]] = {}
        for _ in range(_count(tokens)):
            name, intervals = _tier(tokens)
            tiers.setdefault(name, []).extend(intervals)
        return tiers
    except (ValueError, StopIteration) as error:
        raise ValueError(
            f"{path}: not a TextGrid in Praat's text format ({str(error) or 'it ends too early'}). Align the "
            "utterance again, or remove the file."
        ) from error


def _decode(content: bytes, path) -> str:
    """The text of the file: Praat writes UTF-16 with a byte order mark where it must, and MFA writes UTF-8."""
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not {encoding} text. Save it from Praat as UTF-8.") from error


def _tokens(text: str) -> Iterator[Token]:
    for quoted, number, flag in TOKEN.findall(text):
        yield float(number) if number else f"<{flag}>" if flag else quoted.replace('""', '"')


def _tier(tokens: Iterator[Token]) -> Tuple[str, List[Interval]]:
    """Name and intervals of the next tier."""
    kind, name = next(tokens), str(next(tokens)).strip()
    if kind not in ("IntervalTier", "TextTier"):
        raise ValueError(f"{kind!r} where a tier should begin")
    _floats(tokens, 2)
    intervals = []
    for _ in range(_count(tokens)):
        times = _floats(tokens, 2 if kind == "IntervalTier" else 1)
        intervals.append((times[0], times[-1], str(next(tokens)).strip()))
    return name, intervals if kind == "IntervalTier" else []


def _floats(tokens: Iterator[Token], count: int) -> List[float]:
    values = [next(tokens) for _ in range(count)]
    for value in values:
        if not isinstance(value, float):
            raise ValueError(f"{value!r} where a number should be")
    return values


def _count(tokens: Iterator[Token]) -> int:
    return int(_floats(tokens, 1)[0])
