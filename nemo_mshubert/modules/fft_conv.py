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

Its kernel is as long as a fifth of a long utterance, and its groups have only 48 channels. cuDNN is slow for this
shape: it took a fifth of the pre-training step of base on an H200 (docs/performance.md). As a product of spectra, the
convolution is a small matrix product per frequency.

On CPUs, long utterances are transformed in blocks of one size that overlap by a kernel (overlap-save). The spectra of
the kernels, by far the largest there, thus stay small and can be kept for utterances of any length. Batches that fill
a GPU are larger, and overlapping blocks would add bytes, so there each utterance goes through one transform.

N blocks of an utterance, M = B * N, S samples of a transform, F frequencies, G groups, I and O channels of a group.
"""

from dataclasses import dataclass
from typing import Callable, Dict, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nemo_mshubert.modules.autocast import to_autocast_dtype


def fft_conv(x_BTD: Tensor, weight_OIK: Tensor, bias_O: Tensor, groups: int) -> Tensor:
    """``conv1d`` with stride 1 and ``K // 2`` zeros around the frames, without the surplus last frame of an even
    kernel.

    Args:
        x_BTD: ``[B, T, D]``.
        weight_OIK, bias_O: as in ``conv1d``, ``I = D / groups``.

    Returns:
        ``[B, T, O]``, computed in fp32 (fp64 for fp64), in the dtype of autocast, or without it in that of ``x_BTD``.
    """
    return _in_fp32(lambda x_BTD, weight_OIK: _FFTConv.apply(x_BTD, weight_OIK, groups), x_BTD, weight_OIK, bias_O)


@dataclass(frozen=True)
class Blocks:
    """``number`` blocks, each a transform of ``size`` samples, of which ``frames`` come out complete."""

    size: int
    frames: int
    number: int


def overlapping_blocks(num_frames: int, kernel: int) -> Blocks:
    """Transforms as long as two kernels, whatever the length of the utterance."""
    size = -(-2 * kernel // 128) * 128
    frames = size - kernel + 1
    return Blocks(size, frames, -(-num_frames // frames))


def one_block(num_frames: int, kernel: int) -> Blocks:
    """Samples that wrap around meet the zeros before the first frame. The size is at least that of the kernel, whose
    gradient is as long. Sizes are multiples of 64, so there are few, and their plans are made once and then kept."""
    return Blocks(-(-max(num_frames + kernel // 2, kernel) // 64) * 64, num_frames, 1)


def blocks_for(x_BTD: Tensor, kernel: int) -> Blocks:
    """One block, or on CPUs overlapping blocks if their transforms are smaller."""
    one, several = one_block(x_BTD.shape[1], kernel), overlapping_blocks(x_BTD.shape[1], kernel)
    return several if x_BTD.device.type == "cpu" and several.size < one.size else one


class KeptSpectra:
    """`fft_conv` without a gradient. Kernels are transformed only when they have changed, which every call checks."""

    def __init__(self):
        # kernels [O, I, K], and their spectra [G, F, O / G, I] by size of the transform (few sizes on CPUs)
        self._kept: Optional[Tuple[Tensor, Dict[int, Tensor]]] = None

    def convolve(self, x_BTD: Tensor, weight_OIK: Tensor, bias_O: Tensor, groups: int) -> Tensor:
        """Equals `fft_conv` bit for bit."""

        def by_spectra(x_BTD: Tensor, weight_OIK: Tensor) -> Tensor:
            blocks = blocks_for(x_BTD, weight_OIK.shape[2])
            spectra_GFOI = self._spectra_of(weight_OIK, blocks.size, groups)
            return _convolve(x_BTD, spectra_GFOI, weight_OIK.shape[2], blocks)[0]

        with torch.no_grad():
            return _in_fp32(by_spectra, x_BTD, weight_OIK, bias_O)

    def _spectra_of(self, weight_OIK: Tensor, size: int, groups: int) -> Tensor:
        kept = self._kept  # read once, since threads may share a model
        if kept is None or kept[0].dtype != weight_OIK.dtype or not torch.equal(kept[0], weight_OIK):
            self._kept = kept = (weight_OIK.clone(), {})
        spectra = kept[1]
        if size not in spectra:
            spectra[size] = _kernel_spectra(weight_OIK, size, groups)
        return spectra[size]

    def __reduce__(self):  # copies and files of a model start without spectra
        return KeptSpectra, ()


class _FFTConv(torch.autograd.Function):
    """``y[t] = sum_k x[t + k - K // 2] w[k]``, whose gradients are products of spectra, too.

    Autograd would pad each spectrum to its full length, with the negative frequencies. Here the spectrum of the weight
    is re-ordered once and never conjugated.
    """

    @staticmethod
    def forward(ctx, x_BTD, weight_OIK, groups):
        ctx.kernel = weight_OIK.shape[2]
        ctx.blocks = blocks_for(x_BTD, ctx.kernel)
        weight_GFOI = _kernel_spectra(weight_OIK, ctx.blocks.size, groups)
        y_BTO, x_GFMI = _convolve(x_BTD, weight_GFOI, ctx.kernel, ctx.blocks)
        ctx.save_for_backward(x_GFMI, weight_GFOI)
        return y_BTO

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BTO):
        x_GFMI, weight_GFOI = ctx.saved_tensors
        blocks, first, num_frames = ctx.blocks, ctx.kernel // 2, grad_BTO.shape[1]
        grad_BOT, surplus = grad_BTO.transpose(1, 2), blocks.number * blocks.frames - num_frames
        if surplus:  # padding by nothing would copy
            grad_BOT = F.pad(grad_BOT, (0, surplus))
        grad_GFMO = _spectra(grad_BOT.unflatten(2, (blocks.number, -1)), blocks.size, groups=len(x_GFMI))
        grad_x_BTD = grad_weight_OIK = None
        if ctx.needs_input_grad[0]:
            grad_BNDS = _signals(grad_GFMO @ weight_GFOI, len(grad_BTO), blocks.size)
            grad_x_BTD = _overlap_add(grad_BNDS, blocks)[..., first : first + num_frames].transpose(1, 2)
        if ctx.needs_input_grad[1]:
            grad_weight_GOIF = (grad_GFMO.mH @ x_GFMI).permute(0, 2, 3, 1)
            grad_weight_OIK = torch.fft.irfft(grad_weight_GOIF.flatten(0, 1), blocks.size)[..., : ctx.kernel]
        return grad_x_BTD, grad_weight_OIK, None


def _in_fp32(
    convolve: Callable[[Tensor, Tensor], Tensor], x_BTD: Tensor, weight_OIK: Tensor, bias_O: Tensor
) -> Tensor:
    """``convolve`` of frames and kernels in the dtype of the transforms, plus the bias, in the dtype that `fft_conv`
    returns."""
    x_BTD = to_autocast_dtype(x_BTD)
    dtype = torch.promote_types(x_BTD.dtype, torch.float32)
    with torch.autocast(x_BTD.device.type, enabled=False):
        return (convolve(x_BTD.to(dtype), weight_OIK.to(dtype)) + bias_O.to(dtype)).to(x_BTD.dtype)


def _convolve(x_BTD: Tensor, weight_GFOI: Tensor, kernel: int, blocks: Blocks) -> Tuple[Tensor, Tensor]:
    """-> ``[B, T, G * O]`` and the spectra of the blocks, ``[G, F, M, I]``."""
    num_frames, padded_frames = x_BTD.shape[1], (blocks.number - 1) * blocks.frames + blocks.size
    x_BDT = F.pad(x_BTD.transpose(1, 2), (kernel // 2, padded_frames - num_frames - kernel // 2))
    x_GFMI = _spectra(x_BDT.unfold(2, blocks.size, blocks.frames), blocks.size, groups=len(weight_GFOI))
    y_BNOS = _signals((x_GFMI.conj() @ weight_GFOI.mT).conj(), len(x_BTD), blocks.size)
    return y_BNOS[..., : blocks.frames].transpose(2, 3).flatten(1, 2)[:, :num_frames], x_GFMI


def _kernel_spectra(weight_OIK: Tensor, size: int, groups: int) -> Tensor:
    """``[O, I, K]`` -> ``[G, F, O / G, I]``, contiguous per frequency, as the products need them."""
    return torch.fft.rfft(weight_OIK, size).unflatten(0, (groups, -1)).permute(0, 3, 1, 2).contiguous()


def _spectra(x_BCNS: Tensor, size: int, groups: int) -> Tensor:
    """``[B, C, N, S or fewer]`` -> ``[G, F, M, C / G]``."""
    x_BGCNF = torch.fft.rfft(x_BCNS, size).unflatten(1, (groups, -1))
    return x_BGCNF.permute(1, 4, 0, 3, 2).contiguous().flatten(2, 3)


def _signals(x_GFMC: Tensor, num_rows: int, size: int) -> Tensor:
    """``[G, F, M, C]`` -> ``[B, N, G * C, S]``."""
    return torch.fft.irfft(x_GFMC.permute(2, 0, 3, 1).flatten(1, 2), size).unflatten(0, (num_rows, -1))


def _overlap_add(x_BNCS: Tensor, blocks: Blocks) -> Tensor:
    """The sum of blocks that begin ``blocks.frames`` apart, ``[B, C, frames of all]``."""
    if blocks.number == 1:
        return x_BNCS[:, 0]
    num_rows, _, channels, _ = x_BNCS.shape
    sum_BCNT = x_BNCS.new_zeros(num_rows, channels, blocks.number + 1, blocks.frames)
    sum_BCNT[:, :, :-1] = x_BNCS[..., : blocks.frames].transpose(1, 2)
    sum_BCNT[:, :, 1:, : blocks.size - blocks.frames] += x_BNCS[..., blocks.frames :].transpose(1, 2)
    return sum_BCNT.flatten(2)
