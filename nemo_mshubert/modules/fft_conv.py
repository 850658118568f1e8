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
        y_BTO = _fft_conv(x_BTD.to(dtype), weight_OIK.to(dtype), groups) + bias_O.to(dtype)
        return y_BTO.to(x_BTD.dtype)


def _fft_conv(x_BTD: Tensor, weight_OIK: Tensor, groups: int) -> Tensor:
    num_frames, kernel = x_BTD.shape[1], weight_OIK.shape[2]
    # What wraps around falls before the first frame that is kept.
    size = -(-(num_frames + kernel // 2) // FFT_STEP) * FFT_STEP
    x_BGIF = torch.fft.rfft(x_BTD.transpose(1, 2), size).unflatten(1, (groups, -1))
    weight_GOIF = torch.fft.rfft(weight_OIK.flip(2), size).unflatten(0, (groups, -1))
    y_BGOF = torch.einsum("bgif,goif->bgof", x_BGIF, weight_GOIF)
    y_BOT = torch.fft.irfft(y_BGOF.flatten(1, 2), size)
    first = kernel - 1 - kernel // 2
    return y_BOT[..., first : first + num_frames].transpose(1, 2)
