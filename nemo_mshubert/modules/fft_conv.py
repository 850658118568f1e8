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

"""Grouped convolution over time by Fourier transforms, for the positional convolution.

Its kernel is as long as a fifth of a long utterance, and its groups as narrow as 48 channels. cuDNN has no fast kernel
for that: it took a fifth of the pre-training step of base on an H200 (docs/performance.md). As a product of spectra it is
a small matrix product per frequency.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nemo_mshubert.modules.autocast import to_autocast_dtype

FFT_STEP = 64  # frames: few sizes, whose plans are made once and then kept


def fft_conv(x_BTD: Tensor, weight_OIK: Tensor, bias_O: Tensor, groups: int) -> Tensor:
    """``conv1d`` with stride 1 and ``K // 2`` zeros around the frames, without the surplus last frame of an even kernel.

    Args:
        x_BTD: ``[B, T, D]``.
        weight_OIK, bias_O: as in ``conv1d``, ``I = D / groups``.

    Returns:
        ``[B, T, O]``, computed in fp32 (fp64 in fp64), in the dtype of autocast, without it in that of ``x_BTD``.
    """
    x_BTD = to_autocast_dtype(x_BTD)
    dtype = torch.promote_types(x_BTD.dtype, torch.float32)
    with torch.autocast(x_BTD.device.type, enabled=False):
        y_BTO = _FFTConv.apply(x_BTD.to(dtype), weight_OIK.to(dtype), groups) + bias_O.to(dtype)
        return y_BTO.to(x_BTD.dtype)


class _FFTConv(torch.autograd.Function):
    """``y[t] = sum_k x[t + k - K // 2] w[k]``, of which the gradients, too, are products of spectra.

    Autograd's own would pad each spectrum to its full length, negative frequencies included. Spectra lie frequency by
    frequency, as the products want them; the weight's, by far the largest, is re-ordered once and never conjugated.
    """

    @staticmethod
    def forward(ctx, x_BTD, weight_OIK, groups):
        num_frames, kernel = x_BTD.shape[1], weight_OIK.shape[2]
        # What wraps around meets the zeros before the first frame. The gradient has as many numbers as the kernel.
        size = -(-max(num_frames + kernel // 2, kernel) // FFT_STEP) * FFT_STEP
        x_GFBI = _spectrum(x_BTD, kernel // 2, size, groups)
        weight_GOIF = torch.fft.rfft(weight_OIK, size).unflatten(0, (groups, -1))
        weight_GFOI = weight_GOIF.permute(0, 3, 1, 2).contiguous()
        y_GFBO = (x_GFBI.conj() @ weight_GFOI.mT).conj()
        ctx.save_for_backward(x_GFBI, weight_GFOI)
        ctx.num_frames, ctx.kernel, ctx.size = num_frames, kernel, size
        return _signal(y_GFBO, 0, num_frames, size)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BTO):
        x_GFBI, weight_GFOI = ctx.saved_tensors
        grad_GFBO = _spectrum(grad_BTO, 0, ctx.size, groups=len(x_GFBI))
        grad_x_BTD = grad_weight_OIK = None
        if ctx.needs_input_grad[0]:
            grad_x_BTD = _signal(grad_GFBO @ weight_GFOI, ctx.kernel // 2, ctx.num_frames, ctx.size)
        if ctx.needs_input_grad[1]:
            grad_weight_GOIF = (grad_GFBO.mH @ x_GFBI).permute(0, 2, 3, 1)
            grad_weight_OIK = torch.fft.irfft(grad_weight_GOIF.flatten(0, 1), ctx.size)[..., : ctx.kernel]
        return grad_x_BTD, grad_weight_OIK, None


def _spectrum(x_BTC: Tensor, zeros_before: int, size: int, groups: int) -> Tensor:
    """``[B, T, C]`` -> ``[G, F, B, C / G]``."""
    zeros_after = size - zeros_before - x_BTC.shape[1]
    x_BCF = torch.fft.rfft(F.pad(x_BTC.transpose(1, 2), (zeros_before, zeros_after)))
    return x_BCF.unflatten(1, (groups, -1)).permute(1, 3, 0, 2).contiguous()


def _signal(x_GFBC: Tensor, first: int, num_frames: int, size: int) -> Tensor:
    """``[G, F, B, C]`` -> ``[B, num_frames, G * C]``."""
    x_BCT = torch.fft.irfft(x_GFBC.permute(2, 0, 3, 1).flatten(1, 2), size)
    return x_BCT[..., first : first + num_frames].transpose(1, 2)
