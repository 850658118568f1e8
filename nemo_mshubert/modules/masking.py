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

fairseq draws ``int(p * T / length + u)`` starts per row, u ~ U(0, 1), lets spans overlap, and with
``require_same_masks`` un-masks random frames until all rows have the count of the row with the fewest.
"""

from typing import List, Optional

import torch
from torch import Tensor

MIN_SPANS = 2  # fairseq: min_masks


def _draw_row(num_positions: int, mask_prob: float, span: int, generator: Optional[torch.Generator]) -> Tensor:
    """Masked positions of one row as a bool vector; between 1 and ``num_positions - 1`` are masked where there are
    two."""
    mask = torch.zeros(num_positions, dtype=torch.bool)
    if num_positions < 2 or mask_prob <= 0:
        return mask  # one frame cannot be both visible and masked: leave it visible
    span = min(span, num_positions - 1)
    uniform = torch.rand((), generator=generator).item()
    num_spans = max(MIN_SPANS, int(mask_prob * num_positions / span + uniform))
    last_start = num_positions - span
    num_spans = min(num_spans, last_start + 1)
    starts = torch.randperm(last_start + 1, generator=generator)[:num_spans]
    mask[(starts[:, None] + torch.arange(span)).flatten()] = True
    if mask.all():  # only on very short rows: show one frame, else the row says nothing about its content
        mask[torch.randint(num_positions, (), generator=generator)] = False
    return mask


def span_mask(
    lengths: List[int],
    mask_prob: float,
    span: int,
    num_positions: Optional[int] = None,
    same_count: bool = True,
    generator: Optional[torch.Generator] = None,
) -> Tensor:
    """Draw span masks for a batch.

    Args:
        lengths: valid positions of each row.
        mask_prob: expected share of positions that start-count times span would cover without overlaps. With spans of
            10 frames, 0.80 masks 56.6 % and 0.65 masks 49 % of an utterance of 15 s.
        span: positions per span.
        num_positions: width of the result; the largest length by default.
        same_count: un-mask random frames until every row has the fewest (fairseq's ``require_same_masks``). Rows of
            less than two positions are left out of this: they are never masked.
        generator: CPU random generator; torch's global one by default.

    Returns:
        bool ``[B, num_positions]`` on the CPU, never True beyond a row's length; a row of two or more positions is
        neither fully masked nor fully visible.
    """
    rows = [_draw_row(length, mask_prob, span, generator) for length in lengths]
    if same_count:
        fewest = min((int(row.sum()) for row in rows if row.any()), default=0)
        for row in rows:
            masked = row.nonzero().flatten()
            surplus = torch.randperm(len(masked), generator=generator)[: max(len(masked) - fewest, 0)]
            row[masked[surplus]] = False
    mask_BT = torch.zeros(len(rows), max(lengths) if num_positions is None else num_positions, dtype=torch.bool)
    for index, row in enumerate(rows):
        mask_BT[index, : len(row)] = row
    return mask_BT
