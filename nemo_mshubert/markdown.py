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

"""Tables, and their form in Markdown."""

from dataclasses import dataclass
from typing import Any, Collection, Iterable, List, Optional, Sequence, Tuple


@dataclass
class Table:
    """Cells as text. The columns ``text_columns`` (from 0) are left-aligned; the others hold numbers and are
    right-aligned."""

    title: str
    header: List[str]
    rows: List[List[str]]
    text_columns: Tuple[int, ...]
    note: str = ""


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], text_columns: Optional[Collection[int]] = None
) -> str:
    """A Markdown table with one line per row.

    Args:
        text_columns: columns (from 0) that are left-aligned; the others hold numbers and are right-aligned. Without
            it, all are left-aligned.
    """
    is_text = [text_columns is None or column in text_columns for column in range(len(header))]
    lines = [_line(header), "|" + "".join("---|" if text else "---:|" for text in is_text), *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
