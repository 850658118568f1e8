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

"""The letters of CTC models: NeMo's labels, in which the space ends a word, and the character that others write for
it."""

import re
import string
from typing import Iterable, List

SPACE = " "  # the label
WRITTEN_SPACE = "|"  # in lexicon files, where white space separates letters, and in vocabularies of other ecosystems
ENGLISH_LABELS = [SPACE, *string.ascii_lowercase, "'"]  # for LibriSpeech; the CTC blank follows as the last index
SPECIAL_PIECE = re.compile(r"<.*>|\[.*\]")  # <unk>, [CLS]


def written(label: str) -> str:
    """A label in the form that others write."""
    return WRITTEN_SPACE if label == SPACE else label


def label_of(token: str) -> str:
    """The label for a token that others have written."""
    return SPACE if token == WRITTEN_SPACE else token


def pieces_of_text(labels: Iterable[str]) -> List[str]:
    """The labels of a word-piece model without <unk>, [CLS] and the like, whose case differs from that of the text."""
    return [label for label in labels if not SPECIAL_PIECE.fullmatch(label)]
