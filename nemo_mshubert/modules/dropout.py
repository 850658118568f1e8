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

"""Dropout that a CPU draws quickly: sixteen random bits for each number.

PyTorch draws them one after another there, 7 ns each. The attention of base needs as many of them as it has weights, which
took half of its time, and hidden states a third of that again (docs/performance.md). GPUs have kernels for both.
"""

import math
from typing import Any, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nemo_mshubert.modules import reference

LEVELS = 1 << 16  # of a random number; on a CPU a rate counts down to its next multiple of 1 / LEVELS


class Dropout(nn.Dropout):
    """``nn.Dropout`` by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """``F.dropout``: in training zero with chance ``rate``, else ``x / (1 - rate)``."""
    if training and _is_drawn_here(x, rate):
        return _Dropout.apply(x, rate)
    return F.dropout(x, rate, training)


def attention_with_dropout(
    q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, mask: Optional[Tensor], rate: float
) -> Tensor:
    """``F.scaled_dot_product_attention`` with dropout of the weights: ``[B, H, T, E]``.

    Args:
        mask: True at keys to attend to, or a bias added to the scores; broadcast to ``[B, H, T, T]``.
        rate: of dropout; 0 in inference. PyTorch's fast kernel for CPUs has none, so nothing is lost by spelling it out.
    """
    if not _is_drawn_here(q_BHTE, rate):
        return F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, attn_mask=mask, dropout_p=rate)
    score_BHTT = (q_BHTE / math.sqrt(q_BHTE.shape[-1])) @ k_BHTE.transpose(2, 3)
    if mask is not None:
        score_BHTT = score_BHTT.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else score_BHTT + mask
    return _Dropout.apply(torch.softmax(score_BHTT, dim=-1), rate) @ v_BHTE


def _is_drawn_here(x: Tensor, rate: float) -> bool:
    if x.device.type != "cpu" or not 0.0 < rate < 1.0:
        return False
    return not torch.compiler.is_compiling() and not reference.is_taken()


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        first_kept = int(rate * LEVELS)
        four_numbers = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        number = four_numbers.view(torch.int16)[: x.numel()].view(x.shape)  # -LEVELS / 2 to LEVELS / 2 - 1
        keep = number >= first_kept - LEVELS // 2
        ctx.save_for_backward(keep)
        ctx.scale = LEVELS / (LEVELS - first_kept)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (gradient * keep).mul_(ctx.scale), None
