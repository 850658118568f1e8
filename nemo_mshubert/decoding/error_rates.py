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

"""Word and character error rates as counts, which can be summed over a set: the mean of utterances' rates is a
different number."""

from typing import Iterable, NamedTuple, Sequence, Tuple, Union

from kaldialign import edit_distance


class ErrorCounts(NamedTuple):
    """Numbers of substitutions, insertions, deletions and reference tokens; ``sum(counts, ErrorCounts())`` adds
    them."""

    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0
    reference_length: int = 0

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(*(mine + theirs for mine, theirs in zip(self, other)))

    @property
    def errors(self) -> int:
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per token of the reference (0.05 is 5 %); it can exceed 1 if there are many insertions."""
        if self.reference_length == 0:
            raise ValueError("the references hold no words, so there is no error rate. Give a set with transcripts.")
        return self.errors / self.reference_length


def error_counts(reference: Union[str, Sequence[str]], hypothesis: Union[str, Sequence[str]]) -> ErrorCounts:
    """Errors in one alignment with the smallest edit distance, for sequences of words (WER) or strings (CER)."""
    found = edit_distance(reference, hypothesis)
    return ErrorCounts(found["sub"], found["ins"], found["del"], found["ref_len"])


def word_errors(pairs: Iterable[Tuple[str, str]]) -> ErrorCounts:
    """Pooled word errors of ``(reference, hypothesis)`` texts, split at white space."""
    return sum((error_counts(reference.split(), text.split()) for reference, text in pairs), ErrorCounts())


def character_errors(pairs: Iterable[Tuple[str, str]]) -> ErrorCounts:
    """Pooled character errors; the single space between words is a character, as in jiwer and NeMo."""
    joined = ((" ".join(reference.split()), " ".join(text.split())) for reference, text in pairs)
    return sum((error_counts(reference, text) for reference, text in joined), ErrorCounts())
