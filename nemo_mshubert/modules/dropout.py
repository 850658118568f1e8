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

"""Dropout that is fast on a CPU: it draws sixteen random bits for each number.

On CPUs, PyTorch draws the numbers one after another, 7 ns each. The attention of base needs one draw per weight, which
took half of its time; hidden states took a third of that again (docs/performance.md). GPUs have kernels for both.
"""

from typing import Any, Tuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nemo_mshubert.modules import reference

LEVELS = 1 << 16  # of a random number; on a CPU a rate is rounded down to a multiple of 1 / LEVELS


class Dropout(nn.Dropout):
    """``nn.Dropout`` that uses `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """``F.dropout``: in training, zero with probability ``rate``, else ``x / (1 - rate)``."""
    if training and is_drawn_here(x, rate):
        return _Dropout.apply(x, rate)
    return F.dropout(x, rate, training)


def is_drawn_here(x: Tensor, rate: float) -> bool:
    """Whether `Draws`, not PyTorch, decides which numbers are dropped."""
    return 0.0 < rate < 1.0 and reference.takes_cpu_kernels(x)


class Draws:
    """Decides which numbers are kept, by independent draws from a stream that PyTorch's generator seeds.

    The stream is NumPy's SFC64, which is twice as fast as PyTorch's own.
    """

    def __init__(self, rate: float):
        dropped_levels = int(rate * LEVELS)
        self.first_kept = dropped_levels - LEVELS // 2  # numbers are -LEVELS / 2 to LEVELS / 2 - 1
        self.scale = LEVELS / (LEVELS - dropped_levels)  # of the kept numbers
        self._stream = np.random.SFC64(torch.randint(2**63 - 1, ()).item())

    def keep(self, out: Tensor) -> Tensor:
        """Fill ``out``, uint8 ``[N, ...]``, with 1 where a number is kept and 0 where it is dropped. Each of the N
        items takes whole words of the stream, so the draws do not depend on how many items are drawn at once."""
        per_item = out[:1].numel()
        words = -(-per_item // 4)
        number = torch.from_numpy(self._stream.random_raw(len(out) * words).view(np.int16))
        return torch.ge(number.view(len(out), 4 * words)[:, :per_item].view(out.shape), self.first_kept, out=out)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        draws = Draws(rate)
        keep = draws.keep(torch.empty(1, x.numel(), dtype=torch.uint8)).view(x.shape)
        ctx.save_for_backward(keep)
        ctx.scale = draws.scale
        return keep.to(x.dtype).mul_(x).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return keep.to(gradient.dtype).mul_(gradient).mul_(ctx.scale), None
