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

"""Strided convolution over frames that are contiguous in memory, as matrix products on views: the CPU's front end.

    frames of C channels   | f0 | f1 | f2 | f3 | f4 | f5 |        kernel 3, stride 2
    frames 0 and 1          f0 f1   f2 f3   f4 f5                 rows of 2 C numbers, 2 C apart: a matrix already
    frame 2                      f2      f4                       rows of C numbers, 2 C apart

The windows of a kernel that is longer than its stride overlap, and no matrix has overlapping rows. The taps are
therefore taken ``stride`` at a time, and each group of taps is one product. No window is copied, and the channels of
an output frame are contiguous, as the norm, the GELU and the next convolution need them. On a CPU the layer
(convolution, norm, GELU, and their backward pass) takes about half the time of ``conv1d``, which re-orders channels
and frames (docs/performance.md). GPUs have better convolutions.
"""

from typing import Iterator, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nemo_mshubert.modules.autocast import to_autocast_dtype


def conv_as_matmul(x_BTC: Tensor, weight_OCK: Tensor, bias_O: Optional[Tensor], stride: int) -> Tensor:
    """``conv1d`` without padding of ``[B, T, C]`` to ``[B, (T - K) // stride + 1, O]``, in the dtype of autocast."""
    x_BTC, weight_OCK = to_autocast_dtype(x_BTC), to_autocast_dtype(weight_OCK)
    bias_O = None if bias_O is None else to_autocast_dtype(bias_O)
    return _ConvAsMatmul.apply(x_BTC.contiguous(), weight_OCK, bias_O, stride)


def _groups(kernel: int, stride: int) -> Iterator[Tuple[int, int]]:
    """First tap and number of taps of each group."""
    for first in range(0, kernel, stride):
        yield first, min(stride, kernel - first)


def _windows(x_BTC: Tensor, first: int, taps: int, stride: int, count: int) -> Tensor:
    """View ``[B, count, taps * C]``: row t holds the frames from ``t * stride + first`` on."""
    batch, num_frames, channels = x_BTC.shape
    strides = (num_frames * channels, stride * channels, 1)
    return x_BTC.as_strided((batch, count, taps * channels), strides, x_BTC.storage_offset() + first * channels)


class _ConvAsMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BTC, weight_OCK, bias_O, stride):
        ctx.save_for_backward(x_BTC, weight_OCK)
        ctx.stride = stride
        channels_out, channels_in, kernel = weight_OCK.shape
        batch, num_frames = x_BTC.shape[:2]
        count = (num_frames - kernel) // stride + 1
        for first, taps in _groups(kernel, stride):
            windows = _windows(x_BTC, first, taps, stride, count)
            weight_OCk = weight_OCK[:, :, first : first + taps]
            weight_BIO = weight_OCk.permute(2, 1, 0).reshape(taps * channels_in, channels_out).expand(batch, -1, -1)
            if first == 0:
                y_BTO = (
                    torch.bmm(windows, weight_BIO) if bias_O is None else torch.baddbmm(bias_O, windows, weight_BIO)
                )
            else:
                y_BTO.baddbmm_(windows, weight_BIO)
        return y_BTO

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BTO):
        x_BTC, weight_OCK = ctx.saved_tensors
        grad_BTO = grad_BTO.contiguous()
        channels_out, channels_in, kernel = weight_OCK.shape
        batch, count = grad_BTO.shape[:2]
        grad_x = torch.empty_like(x_BTC) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight_OCK) if ctx.needs_input_grad[1] else None
        for first, taps in _groups(kernel, ctx.stride):
            if grad_x is not None:
                weight_OCk = weight_OCK[:, :, first : first + taps]
                weight_BOI = weight_OCk.permute(0, 2, 1).reshape(channels_out, -1).expand(batch, -1, -1)
                rows = _windows(grad_x, first, taps, ctx.stride, count)
                if first == 0:
                    # Written, not cleared and added to: the first group's windows are side by side, unless the kernel
                    # is shorter than the stride.
                    grad_x[:, count * taps if taps == ctx.stride else 0 :] = 0
                    torch.bmm(grad_BTO, weight_BOI, out=rows)
                else:
                    rows.baddbmm_(grad_BTO, weight_BOI)
            if grad_weight is not None:
                rows = _windows(x_BTC, first, taps, ctx.stride, count)
                grad_IO = torch.bmm(rows.transpose(1, 2), grad_BTO).sum(0)
                grad_weight[:, :, first : first + taps] = grad_IO.view(taps, channels_in, channels_out).permute(
                    2, 1, 0
                )
        grad_bias = grad_BTO.sum(dim=(0, 1)) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None
