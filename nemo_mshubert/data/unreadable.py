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

"""Utterances that training cannot read: they are skipped, logged and counted, and too many of them end the run."""

import sys
from typing import Optional, Set, Tuple

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset.collation import collate_vectors
from nemo.utils import logging
from nemo.utils.get_rank import is_global_rank_zero

MAX_UNREADABLE = 100


class UnreadableAudioError(RuntimeError):
    """More utterances than allowed could not be read."""


def reason(error: Exception) -> str:
    """Type and text of an error, without the objects that Lhotse prints after it."""
    return f"{type(error).__name__}: {error}".split("\n[extra info]")[0]


class UnreadableCount:
    """Counts the utterances that one loader process could not read.

    Args:
        limit: number of different utterances that are skipped and logged before an error; different ones, since an
            endless loader meets each in every epoch. Also the number of readings that may fail in a row, as in a small
            corpus whose disk has gone.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.count = 0  # of failed readings
        self._utterances: Set[str] = set()
        self._in_a_row = 0

    def note_readable(self) -> None:
        """Note that an utterance was read."""
        self._in_a_row = 0

    def add(self, utterance: str, problem: str) -> None:
        """Log and count one more unreadable utterance.

        Raises:
            UnreadableAudioError: the limit is exceeded.
        """
        self._utterances.add(utterance)
        self.count += 1
        self._in_a_row += 1
        message = f"Skipped utterance {utterance} ({self.count} so far in this process): {problem}"
        logging.warning(message)
        if not is_global_rank_zero():  # on other ranks NeMo's logger shows nothing
            print(f"On another rank than 0: {message}", file=sys.stderr, flush=True)
        if max(len(self._utterances), self._in_a_row) > self.limit:
            failed = f"{len(self._utterances)} utterances could not be used"
            if len(self._utterances) <= self.limit:
                failed = f"{self._in_a_row} readings in a row failed, of {len(self._utterances)} utterances"
            raise UnreadableAudioError(
                f"{failed}, the last one {utterance}: {problem}. "
                f"Repair the data or remove the line{', or raise max_unreadable' if self.limit else ''}."
            )


class CountedAudio:
    """Replaces ``load_audio`` in NeMo's datasets, which skip undecodable audio without counting it.

    Args:
        limit: as in `UnreadableCount`.
    """

    def __init__(self, limit: int):
        self.unreadable = UnreadableCount(limit)
        self._last: Optional[Tuple[torch.Tensor, Cut]] = None  # last utterance that was read

    def __call__(self, cuts: CutSet) -> Tuple[torch.Tensor, torch.Tensor, CutSet]:
        """Audio ``[B, S]``, channels mixed down, zero after an utterance; samples ``[B]``; the cuts that were read.
        If none could be read, the last readable one of earlier batches is used, so that the number of batches stays
        the same on all ranks.

        Raises:
            UnreadableAudioError: too many could not be read, or none of the first batch.
        """
        waves, readable = [], []
        for cut in cuts:
            try:
                wave = torch.from_numpy(cut.load_audio()).mean(dim=0)  # [C, S] -> [S]
                if not wave.isfinite().all():
                    raise ValueError("holds NaN or infinite samples")
                self.unreadable.note_readable()
                waves.append(wave)
                readable.append(cut)
            except Exception as error:  # whatever the codec raises on a broken or missing file; NaN
                self.unreadable.add(cut.id, reason(error))
        if waves:
            self._last = waves[-1], readable[-1]
        elif self._last:
            waves, readable = [self._last[0]], [self._last[1]]
        else:
            names = ", ".join(cut.id for cut in cuts)
            raise UnreadableAudioError(
                f"No utterance of the first batch could be read (see the log): {names}. Repair the data or remove "
                "their lines."
            )
        lengths = torch.tensor([len(wave) for wave in waves], dtype=torch.int32)
        return collate_vectors(waves, padding_value=0.0), lengths, CutSet.from_cuts(readable)
