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

"""Span masks over frames and channels, with the statistics of fairseq's ``compute_mask_indices`` (static span length).

fairseq draws ``int(p * T / length + u)`` span starts, u ~ U(0, 1). For frames it draws this number for every row, at
least two; for channels it draws it once per batch, without a minimum. Spans may overlap. With ``require_same_masks``,
random positions are unmasked until all rows have as few masked positions as the row with the fewest.
"""

from typing import List, Optional

import torch
from torch import Tensor

MIN_SPANS = 2  # over frames; fairseq: min_masks


def _num_spans(num_positions: int, mask_prob: float, span: int, generator: Optional[torch.Generator] = None) -> int:
    return int(mask_prob * num_positions / span + torch.rand((), generator=generator).item())


def _draw_row(num_positions: int, num_spans: int, span: int, generator: Optional[torch.Generator] = None) -> Tensor:
    """Masked positions of one row as a bool vector, never all of them."""
    mask = torch.zeros(num_positions, dtype=torch.bool)
    last_start = num_positions - span
    starts = torch.randperm(last_start + 1, generator=generator)[:num_spans]
    mask[(starts[:, None] + torch.arange(span)).flatten()] = True
    if mask.all():  # only in very short rows: keep one frame visible, else the row has no content
        mask[torch.randint(num_positions, (), generator=generator)] = False
    return mask


def _equalise(rows: List[Tensor], generator: Optional[torch.Generator] = None) -> None:
    """Unmask random positions until all rows have as few masked ones as the row with the fewest; rows of less than two
    positions do not count."""
    fewest = min((int(row.sum()) for row in rows if len(row) > 1), default=0)
    for row in rows:
        masked = row.nonzero().flatten()
        surplus = torch.randperm(len(masked), generator=generator)[: max(len(masked) - fewest, 0)]
        row[masked[surplus]] = False


def span_mask(
    lengths: List[int],
    mask_prob: float,
    span: int,
    num_positions: Optional[int] = None,
    same_count: bool = True,
    generator: Optional[torch.Generator] = None,
    min_spans: int = MIN_SPANS,
) -> Tensor:
    """Draw masks over the frames of a batch.

    Args:
        lengths: valid frames of each row.
        mask_prob: expected share of the frames that the spans would cover if they did not overlap. With spans of
            10 frames, 0.80 masks 56.6 % and 0.65 masks 49 % of an utterance of 15 s.
        span: frames per span.
        num_positions: width of the result; the largest length by default.
        same_count: unmask random frames until all rows have equally many masked (fairseq's ``require_same_masks``).
        generator: CPU random generator; torch's global one by default.
        min_spans: least number of spans per row. fairseq's two cover most of an utterance of half a second.

    Returns:
        bool ``[B, num_positions]`` on the CPU, never True beyond a row's length. Rows of two or more frames are never
        fully masked and, with ``min_spans``, never fully visible; shorter rows are not masked.
    """
    rows = []
    for length in lengths:
        if length < 2 or mask_prob <= 0:  # one frame cannot be both visible and masked: leave it visible
            rows.append(torch.zeros(length, dtype=torch.bool))
            continue
        width = min(span, length - 1)
        num_spans = max(min_spans, _num_spans(length, mask_prob, width, generator))
        rows.append(_draw_row(length, num_spans, width, generator))
    if same_count:
        _equalise(rows, generator)
    mask_BT = torch.zeros(len(rows), max(lengths) if num_positions is None else num_positions, dtype=torch.bool)
    for index, row in enumerate(rows):
        mask_BT[index, : len(row)] = row
    return mask_BT


def channel_mask(num_rows: int, width: int, mask_prob: float, span: int) -> Tensor:
    """Draw masks over the channels of a batch, for fine-tuning, from torch's global generator.

    Args:
        num_rows: B.
        width: channels, D, at least two.
        mask_prob, span: as in `span_mask`; if less than one span is expected, some batches have none.

    Returns:
        bool ``[B, D]`` on the CPU; all rows have the same number of masked channels.
    """
    span = min(span, width - 1)
    num_spans = _num_spans(width, mask_prob, span)
    rows = [_draw_row(width, num_spans, span) for _ in range(num_rows)]
    _equalise(rows)
    return torch.stack(rows)
