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

"""The positional convolution of CPUs and of GPUs against PyTorch's own; both run anywhere."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

from nemo_mshubert.modules import fft_conv as fft_conv_module
from nemo_mshubert.modules.fft_conv import Blocks, KeptSpectra, blocks_for, fft_conv, one_block

# kernel, frames: HuBERT's long even kernel, odd ones, utterances shorter than the kernel, one transform without room
# to spare, several blocks
CASES = [(16, 120), (16, 56), (16, 57), (9, 60), (9, 61), (5, 1), (32, 7), (1, 64), (96, 10), (257, 40)]
CASES += [(16, 241), (16, 242), (9, 600), (1, 512)]


def operands(kernel, num_frames, dtype=torch.float32):
    torch.manual_seed(kernel)
    shapes = [(2, num_frames, 12), (18, 4, kernel), (18,)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def by_conv1d(x_BTD, weight, bias):
    y_BDT = F.conv1d(x_BTD.transpose(1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=3)
    return y_BDT[..., : x_BTD.shape[1]].transpose(1, 2)


def on_gpus(monkeypatch):
    """Utterances in one transform, as they go through on a GPU."""
    monkeypatch.setattr(fft_conv_module, "blocks_for", lambda x_BTD, kernel: one_block(x_BTD.shape[1], kernel))


@pytest.mark.unit
@pytest.mark.parametrize("blocks", [on_gpus, None])
@pytest.mark.parametrize("kernel, num_frames", CASES)
def test_equals_conv1d_forward_and_backward(kernel, num_frames, blocks, monkeypatch):
    """A shifted frame or what wraps around the end would give GPUs other positions than CPUs."""
    if blocks is on_gpus:
        on_gpus(monkeypatch)
    inputs = operands(kernel, num_frames)
    ours, theirs = fft_conv(*inputs, groups=3), by_conv1d(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(KeptSpectra().convolve(*inputs, groups=3), theirs, rtol=1e-4, atol=1e-5)
    gradient = torch.randn_like(theirs)
    for our, their in zip(torch.autograd.grad(ours, inputs, gradient), torch.autograd.grad(theirs, inputs, gradient)):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


@pytest.mark.unit
@pytest.mark.parametrize("kernel, num_frames", [(128, 129), (128, 130), (128, 700), (265, 376), (265, 377)])
def test_blocks_join_without_a_seam(kernel, num_frames, monkeypatch):
    """Base's kernel, whose gradients of two blocks overlap in all frames but one, and a longer one; one block of
    frames, a frame more, several. What a block loses or counts twice would be a click every two or three seconds."""
    overlapping = fft_conv_module.overlapping_blocks
    monkeypatch.setattr(fft_conv_module, "blocks_for", lambda x_BTD, kernel: overlapping(x_BTD.shape[1], kernel))
    inputs = operands(kernel, num_frames, torch.float64)
    ours, theirs = fft_conv(*inputs, groups=3), by_conv1d(*inputs)
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn_like(theirs)
    for our, their in zip(torch.autograd.grad(ours, inputs, gradient), torch.autograd.grad(theirs, inputs, gradient)):
        torch.testing.assert_close(our, their)


@pytest.mark.unit
def test_computes_in_fp32_and_returns_the_precision_of_its_surroundings():
    """bf16 training and models converted to bf16: what comes out is what their other layers take."""
    inputs = operands(16, 50)
    expected = by_conv1d(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = fft_conv(*inputs, groups=3)
        kept_under_autocast = KeptSpectra().convolve(*inputs, groups=3)
    halves = [tensor.bfloat16() for tensor in inputs]
    converted, kept_converted = fft_conv(*halves, groups=3), KeptSpectra().convolve(*halves, groups=3)
    for found in (under_autocast, converted, kept_under_autocast, kept_converted):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.1)
    gradients = torch.autograd.grad(under_autocast.float().sum(), inputs)
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 3


@pytest.mark.unit
def test_numerical_gradient(monkeypatch):
    """The backward is hand-written: against finite differences."""
    inputs = operands(4, 9, torch.float64)
    assert torch.autograd.gradcheck(lambda *tensors: fft_conv(*tensors, groups=3), inputs)
    on_gpus(monkeypatch)
    assert torch.autograd.gradcheck(lambda *tensors: fft_conv(*tensors, groups=3), inputs)


@pytest.mark.unit
@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_inputs(frozen):
    """Frozen weights get no gradient, and what is before them the same as ever."""
    inputs = operands(16, 40, torch.float64)
    inputs[frozen].requires_grad_(False)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    ours = torch.autograd.grad(fft_conv(*inputs, groups=3).square().sum(), wanted)
    theirs = torch.autograd.grad(by_conv1d(*inputs).square().sum(), wanted)
    for our, their in zip(ours, theirs):
        torch.testing.assert_close(our, their)


@pytest.mark.unit
def test_only_cpus_cut_utterances_into_blocks():
    """The other way round costs each of them most of the speed of these convolutions, and shows nowhere else."""
    assert blocks_for(torch.empty(1, 1000, 4), 128) == Blocks(size=256, frames=129, number=8)
    assert blocks_for(torch.empty(1, 100, 4), 128) == Blocks(size=192, frames=100, number=1)  # less than 256
    assert blocks_for(torch.empty(1, 1000, 4, device="meta"), 128) == Blocks(size=1088, frames=1000, number=1)


@pytest.mark.unit
def test_kept_spectra_follow_the_weights(monkeypatch):
    """A validation after training, a checkpoint that is loaded, weights written behind PyTorch's back: spectra of
    other weights would give other positions, silently. Spectra computed for every batch take most of the time. Frozen
    encoders compute what others do."""
    transforms = []
    transform = fft_conv_module._kernel_spectra
    monkeypatch.setattr(fft_conv_module, "_kernel_spectra", lambda *given: transforms.append(1) or transform(*given))
    x_BTD, weight, bias = (tensor.detach() for tensor in operands(16, 600))
    spectra = KeptSpectra()

    def is_right():
        found = spectra.convolve(x_BTD, weight, bias, groups=3)
        torch.testing.assert_close(found, by_conv1d(x_BTD, weight, bias), rtol=1e-3, atol=1e-3)
        count = len(transforms)
        assert torch.equal(found, fft_conv(x_BTD, weight, bias, groups=3)) and found.dtype == x_BTD.dtype
        del transforms[count:]
        return count

    long, short = x_BTD, x_BTD[:1, :20]  # transforms of 128 and of 64
    assert [is_right(), is_right()] == [1, 1]
    x_BTD = long[:, :500]
    assert is_right() == 1
    x_BTD = short
    assert [is_right(), is_right()] == [2, 2]
    x_BTD = long
    assert is_right() == 2
    weight.data[17, 3, 15] += 1.0
    assert [is_right(), is_right()] == [3, 3]
    x_BTD, weight, bias = x_BTD.double(), weight.double(), bias.double()
    assert is_right() == 4
    weight = weight[..., :9]
    assert is_right() == 5


@pytest.mark.unit
def test_kept_spectra_stay_out_of_copies_and_files():
    """They are several times as large as the weights: no copy of a model, no file and no process gets them."""
    x_BTD, weight, bias = operands(16, 50)
    spectra = KeptSpectra()
    spectra.convolve(x_BTD, weight, bias, groups=3)
    empty = pickle.dumps(KeptSpectra())
    assert pickle.dumps(spectra) == pickle.dumps(copy.deepcopy(spectra)) == empty
    assert copy.deepcopy(spectra)._kept is None
    torch.testing.assert_close(
        pickle.loads(empty).convolve(x_BTD, weight, bias, groups=3), spectra.convolve(x_BTD, weight, bias, groups=3)
    )
