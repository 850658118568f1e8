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

"""The GPU's positional convolution against PyTorch's own; it runs anywhere."""

import pytest
import torch
from torch.nn import functional as F

from nemo_mshubert.modules.fft_conv import fft_conv

# kernel, frames: HuBERT's long even kernel, odd ones, utterances shorter than the kernel, a size without room to spare
CASES = [(16, 120), (16, 56), (16, 57), (9, 60), (9, 61), (5, 1), (32, 7), (1, 64), (96, 10), (257, 40)]


def operands(kernel, num_frames, dtype=torch.float32):
    torch.manual_seed(kernel)
    shapes = [(2, num_frames, 12), (18, 4, kernel), (18,)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def by_conv1d(x_BTD, weight, bias):
    y_BDT = F.conv1d(x_BTD.transpose(1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=3)
    return y_BDT[..., : x_BTD.shape[1]].transpose(1, 2)


@pytest.mark.unit
@pytest.mark.parametrize("kernel, num_frames", CASES)
def test_equals_conv1d_forward_and_backward(kernel, num_frames):
    """A shifted frame or what wraps around the end would give GPUs other positions than CPUs."""
    inputs = operands(kernel, num_frames)
    ours, theirs = fft_conv(*inputs, groups=3), by_conv1d(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    gradient = torch.randn_like(theirs)
    for our, their in zip(torch.autograd.grad(ours, inputs, gradient), torch.autograd.grad(theirs, inputs, gradient)):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_computes_in_fp32_and_returns_the_precision_of_its_surroundings():
    """bf16 training and models converted to bf16: what comes out is what their other layers take."""
    inputs = operands(16, 50)
    expected = by_conv1d(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = fft_conv(*inputs, groups=3)
    converted = fft_conv(*(tensor.bfloat16() for tensor in inputs), groups=3)
    for found in (under_autocast, converted):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.1)
    gradients = torch.autograd.grad(under_autocast.float().sum(), inputs)
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 3


@pytest.mark.unit
def test_numerical_gradient():
    """The backward is hand-written: against finite differences."""
    inputs = operands(4, 9, torch.float64)
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
