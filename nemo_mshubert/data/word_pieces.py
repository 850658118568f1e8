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

"""Check that a tokenizer can write the transcripts; stock NeMo trains ``<unk>`` without a word where it cannot."""

from typing import Iterable, Iterator

from nemo.collections.common.tokenizers import TokenizerSpec
from nemo.utils import logging

from nemo_mshubert.data.manifest import Line


def check_pieces(lines: Iterable[Line], tokenizer: TokenizerSpec, field: str) -> Iterator[Line]:
    """Pass on ``lines``, which have their transcripts in ``field``, and warn behind the last if some have text for
    which the tokenizer has no piece.

    Raises:
        ValueError: behind the last line: the tokenizer can write nothing of most transcripts, as in another case.
    """
    unknown = tokenizer.unk_id  # asks the tokenizer: not once per piece
    total = incomplete = empty = 0
    first_incomplete = first_empty = ""
    for where, entry in lines:
        yield where, entry
        ids = tokenizer.text_to_ids(entry[field])
        known = [piece for piece in ids if piece != unknown]
        total += 1
        if len(known) < len(ids):
            incomplete += 1
            first_incomplete = first_incomplete or f"{where}: {entry[field]!r}"
            if not tokenizer.ids_to_text(known).strip():
                empty += 1
                first_empty = first_empty or f"{where}: {entry[field]!r}"
    if 2 * empty > total:
        raise ValueError(
            f"{first_empty}: the model's tokenizer has nothing but <unk> for this text, and for {empty} of {total}. "
            "Write the texts as those that the tokenizer was made of, in their case."
        )
    if incomplete:
        logging.warning(
            f"{incomplete} of {total} transcripts have text for which the tokenizer has no piece; <unk> is trained in "
            f"its place. The first: {first_incomplete}"
        )
