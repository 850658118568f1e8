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

"""Attention on CPUs, a few heads at a time: with dropout, and in bf16 where no gradient is needed.

PyTorch's fast kernel for CPUs has no dropout. Written out as a dozen operations, attention writes its weights to
memory and reads them again in each of these, and keeps three tensors of their size for the backward pass. Here the
weights of a few heads stay in the cache until their outputs are computed. One byte per weight is kept, and the
backward pass computes the weights again. In bf16, PyTorch's kernel is slower than the matrix products alone; in fp32
it is used (docs/performance.md).
B utterances (times views), H heads, N = B * H, T frames, E numbers of a head.
"""

import math
from typing import Any, Iterator, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nemo_mshubert.modules import reference
from nemo_mshubert.modules.dropout import Draws, is_drawn_here

PART_SIZE = 1 << 19  # weights at once, per thread: 2 MiB of fp32, what a core's cache holds


def attend(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, mask: Optional[Tensor], dropout_rate: float) -> Tensor:
    """``F.scaled_dot_product_attention``: ``[B, H, T, E]``.

    Args:
        mask: True at keys to attend to, or a bias added to the scores; broadcast to ``[B, H, T, T]``.
        dropout_rate: for the weights; 0 in inference.
    """
    has_dropout = is_drawn_here(q_BHTE, dropout_rate)
    if not has_dropout and not _is_slow_in_pytorch(q_BHTE, dropout_rate):
        return F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, attn_mask=mask, dropout_p=dropout_rate)
    q, k, v = (x.flatten(0, 1) for x in (q_BHTE / math.sqrt(q_BHTE.shape[-1]), k_BHTE, v_BHTE))
    bias = None if mask is None else _bias(q_BHTE, mask)
    y = _AttentionWithDropout.apply(q, k, v, bias, dropout_rate) if has_dropout else _attention(q, k, v, bias)
    return y.unflatten(0, q_BHTE.shape[:2])


def _is_slow_in_pytorch(q: Tensor, dropout_rate: float) -> bool:
    is_plain = dropout_rate == 0.0 and q.dtype == torch.bfloat16 and not torch.is_grad_enabled()
    return is_plain and reference.takes_cpu_kernels(q)


def _bias(q_BHTE: Tensor, mask: Tensor) -> Tensor:
    """What is added to the scores: ``[N, T, T]``, or ``[N, 1, T]`` if it only masks."""
    num_rows, num_heads, num_frames, _ = q_BHTE.shape
    if mask.dtype != torch.bool:
        return mask.expand(num_rows, num_heads, num_frames, num_frames).flatten(0, 1)
    bias = torch.zeros(mask.shape, dtype=q_BHTE.dtype).masked_fill_(~mask, -math.inf)
    return bias.expand(num_rows, num_heads, *mask.shape[2:]).flatten(0, 1)


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor]) -> Tensor:
    """Attention over ``[N, T, E]``; ``q`` is already divided by the square root of E."""
    y = torch.empty_like(v)
    for part in _parts(len(q), q.shape[1] * k.shape[1]):
        weight = torch.softmax(_score(q, k, bias, part, q.dtype), dim=-1)  # its sums are in fp32
        torch.bmm(weight, v[part], out=y[part])
    return y


class _AttentionWithDropout(torch.autograd.Function):
    """Attention over ``[N, T, E]``; ``q`` is already divided by the square root of E."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor], rate: float) -> Tensor:
        draws = Draws(rate)
        y = torch.empty_like(v)
        keep = torch.empty(*q.shape[:2], k.shape[1], dtype=torch.uint8)  # [N, T, T]
        log_sum = q.new_empty(*q.shape[:2], 1, dtype=_sum_dtype(q))
        for part in _parts(len(q), keep[0].numel()):
            score = _score(q, k, bias, part, _sum_dtype(q))
            highest = score.amax(dim=-1, keepdim=True)
            weight = score.sub_(highest).exp_()  # not divided by its sum: the output is
            total = weight.sum(dim=-1, keepdim=True)
            log_sum[part] = highest + total.log()
            weight.mul_(draws.keep(keep[part]).to(weight.dtype))
            torch.bmm(weight.to(v.dtype), v[part], out=y[part]).mul_(draws.scale / total)
        ctx.save_for_backward(q, k, v, bias, keep, log_sum)
        ctx.scale = draws.scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Optional[Tensor], ...]:
        q, k, v, bias, keep, log_sum = ctx.saved_tensors
        to_q, to_k, to_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        to_bias = torch.empty_like(bias) if ctx.needs_input_grad[3] else None
        to_y = gradient * ctx.scale
        for part in _parts(len(q), keep[0].numel()):
            weight = _score(q, k, bias, part, _sum_dtype(q)).sub_(log_sum[part]).exp_()
            kept = keep[part].to(weight.dtype)
            to_weight = torch.bmm(to_y[part], v[part].transpose(1, 2)).to(weight.dtype).mul_(kept)
            to_score = torch._softmax_backward_data(to_weight, weight, -1, weight.dtype)  # in one pass
            if to_bias is not None:
                to_bias[part] = to_score
            to_score = to_score.to(q.dtype)
            torch.bmm(to_score, k[part], out=to_q[part])
            torch.bmm(to_score.transpose(1, 2), q[part], out=to_k[part])
            torch.bmm(weight.mul_(kept).to(v.dtype).transpose(1, 2), to_y[part], out=to_v[part])
        return to_q, to_k, to_v, to_bias, None


def _score(q: Tensor, k: Tensor, bias: Optional[Tensor], part: slice, dtype: torch.dtype) -> Tensor:
    score = torch.bmm(q[part], k[part].transpose(1, 2)).to(dtype)
    return score if bias is None else score.add_(bias[part])


def _parts(num_heads: int, weights_of_each: int) -> Iterator[slice]:
    at_once = max(1, PART_SIZE * torch.get_num_threads() // max(1, weights_of_each))
    return (slice(first, first + at_once) for first in range(0, num_heads, at_once))


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
