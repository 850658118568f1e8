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

"""Swap, section 2.2.1 of the paper: the two views trade their masked frames after every transformer block.

V = 2 views (0: masked, 1: unmasked duplicate), B utterances, T frames, D width.
"""

from typing import Any, Tuple

import torch
from torch import Tensor


def swap(x_VBTD: Tensor, source_R: Tensor) -> Tensor:
    """Exchange the two views at the masked frames; all other frames pass through.

    Out of place, and gradients flow through the exchange into both streams.

    Args:
        x_VBTD: outputs of a transformer block for both views, ``[2, B, T, D]``.
        source_R: `swap_source` of the mask.
    """
    return _TakeRows.apply(x_VBTD, source_R)


def swap_source(mask_BT: Tensor) -> Tensor:
    """The row that each frame of both views takes in an exchange, ``[V * B * T]``: at masked frames the row of the
    other view, elsewhere its own.

    Args:
        mask_BT: True at masked frames, ``[B, T]``; the same frames for both views.
    """
    row_VBT = torch.arange(2 * mask_BT.numel(), device=mask_BT.device).view(2, *mask_BT.shape)
    return torch.where(mask_BT, row_VBT.flip(0), row_VBT).flatten()


class _TakeRows(torch.autograd.Function):
    """Takes rows in the order of an exchange. An exchange is its own inverse, so gradients take the same rows. This
    needs one read and one write each way, a quarter of what autograd needs for ``torch.where(mask, x.flip(0), x)``."""

    @staticmethod
    def forward(ctx: Any, x_VBTD: Tensor, source_R: Tensor) -> Tensor:
        ctx.save_for_backward(source_R)
        return x_VBTD.flatten(0, 2).index_select(0, source_R).view(x_VBTD.shape)

    @staticmethod
    def backward(ctx: Any, gradient_VBTD: Tensor) -> Tuple[Tensor, None]:
        (source_R,) = ctx.saved_tensors
        return swap(gradient_VBTD, source_R), None


def masked_stream_view(layer: int) -> int:
    """The view that, after the exchange of block ``layer`` (from 1), holds the tokens that started as mask embeddings.

    Every exchange moves these tokens to the other view: view 1 after odd blocks, view 0 after even ones.
    """
    return layer % 2
