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

"""The first convolution of base and its norm over time, as one matrix product.

The convolution is linear. The mean and variance of a channel over the frames of an utterance therefore follow from the
mean (10 numbers) and the covariance (10 x 10) of the windows of samples that it sees, without another pass over the
512 channels:

    channel   y = w . window               mean(y) = w . mean(window)    var(y) = w . cov(window) . w
    norm      gain * (y - mean(y)) + bias  = (gain * w) . window + shift

The result is a convolution with different weights for each utterance. The reference is ``conv1d`` and
`TimeGroupNorm`, which exported graphs use.
"""

from typing import Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nemo_mshubert.modules.frames import valid_positions

ALIGNMENT = 8  # numbers in a row: tensor cores take rows of 16 bytes
PART = 1024  # windows


def conv_with_time_norm(
    signal_BS: Tensor,
    weight_OK: Tensor,
    scale_O: Tensor,
    bias_O: Tensor,
    eps: float,
    stride: int,
    counts_B: Tensor,
    padded: bool,
) -> Tensor:
    """``conv1d`` of one channel without bias, then every channel normalised over time: ``[B, S]`` -> ``[B, T, O]``.

    Args:
        scale_O, bias_O: of the norm.
        counts_B: frames of each utterance, over which the statistics are taken.
        padded: whether some row has fewer than T frames; otherwise ``counts_B`` is not read.
    """
    windows_BTK = signal_BS.unfold(1, weight_OK.shape[1], stride)
    weight = weight_OK.double()
    mean_B1K, covariance_BKK = _statistics(windows_BTK.double(), counts_B, padded)  # fp64 for samples far from zero
    variance_BO = ((weight @ covariance_BKK) * weight).sum(-1)
    gain_BO = scale_O.double() * torch.rsqrt(variance_BO + eps)
    shift_B1O = bias_O.double() - gain_BO[:, None] * (mean_B1K @ weight.T)
    weight_BKO = (gain_BO[..., None] * weight).transpose(1, 2)
    # The shift is the weight of an added constant sample, which saves a pass over all channels; the other added
    # samples have weight zero.
    num_added = ALIGNMENT - weight_OK.shape[1] % ALIGNMENT
    windows_BTK = F.pad(windows_BTK, (0, num_added), value=1.0)
    weight_BKO = F.pad(torch.cat([weight_BKO, shift_B1O], dim=1), (0, 0, 0, num_added - 1))
    return torch.bmm(windows_BTK, weight_BKO.to(signal_BS.dtype))


def _statistics(windows_BTK: Tensor, counts_B: Tensor, padded: bool) -> Tuple[Tensor, Tensor]:
    """Mean ``[B, 1, K]`` and covariance ``[B, K, K]`` over the frames of each utterance."""
    if padded:
        valid_BT1 = valid_positions(counts_B, windows_BTK.shape[1])[..., None]
        count_B11 = counts_B.clamp(min=1)[:, None, None]
        mean_B1K = (windows_BTK * valid_BT1).sum(1, keepdim=True) / count_B11
        centred_BTK = (windows_BTK - mean_B1K) * valid_BT1
    else:
        count_B11 = windows_BTK.shape[1]
        mean_B1K = windows_BTK.mean(1, keepdim=True)
        centred_BTK = windows_BTK - mean_B1K
    # In parts: one product over tens of thousands of windows would keep only a few processors of a GPU busy.
    parts_BPSK = F.pad(centred_BTK, (0, 0, 0, -centred_BTK.shape[1] % PART)).unflatten(1, (-1, PART))
    covariance_BKK = (parts_BPSK.transpose(2, 3) @ parts_BPSK).sum(1) / count_B11
    return mean_B1K, covariance_BKK
