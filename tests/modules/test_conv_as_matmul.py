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

"""The convolutions of CPUs and of GPUs against PyTorch's own; both run anywhere."""

import pytest
import torch
from torch.nn import functional as F

from nemo_mshubert.modules.conv_as_matmul import conv_as_matmul
from nemo_mshubert.modules.conv_feature_extractor import conv_channels_last

# kernel, stride, frames: HuBERT's three kinds, with frames left over at the end; windows apart; one window
CASES = [(10, 5, 63), (3, 2, 20), (2, 2, 21), (3, 4, 25), (4, 1, 9), (3, 2, 3)]


def operands(kernel, frames, bias, dtype=torch.float64):
    torch.manual_seed(kernel)
    shapes = [(2, frames, 5), (7, 5, kernel)] + [(7,)] * bias
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes] + [None] * (not bias)


@pytest.mark.unit
@pytest.mark.parametrize("kernel, stride, frames", CASES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("convolve", [conv_as_matmul, conv_channels_last])
def test_equals_conv1d_forward_and_backward(convolve, kernel, stride, frames, bias):
    """A wrong tap or gradient would train another network on CPUs than on GPUs."""
    x_BTC, weight, bias_O = operands(kernel, frames, bias)
    ours = convolve(x_BTC, weight, bias_O, stride)
    theirs = F.conv1d(x_BTC.transpose(1, 2), weight, bias_O, stride=stride).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)
    assert ours.is_contiguous(), "the norm, the GELU and the next convolution would copy it"
    gradient = torch.randn_like(ours)
    inputs = [tensor for tensor in (x_BTC, weight, bias_O) if tensor is not None]
    for our, their in zip(torch.autograd.grad(ours, inputs, gradient), torch.autograd.grad(theirs, inputs, gradient)):
        torch.testing.assert_close(our, their)


@pytest.mark.unit
def test_numerical_gradient():
    """The backward is hand-written: against finite differences."""
    x_BTC, weight, bias_O = operands(3, 8, True)
    assert torch.autograd.gradcheck(lambda *tensors: conv_as_matmul(*tensors, 2), (x_BTC, weight, bias_O))


@pytest.mark.unit
@pytest.mark.parametrize("part", [(slice(None), slice(4, 17)), (slice(1, None), slice(None))], ids=["crop", "rows"])
def test_views_and_frozen_inputs(part):
    """A crop of a longer batch is a view with gaps, its last rows one that begins later; the first layer's input and
    frozen weights need no gradient."""
    x_BTC, weight, _ = operands(3, 30, False)
    crop = x_BTC.detach()[part]
    expected = F.conv1d(crop.transpose(1, 2), weight, stride=2).transpose(1, 2)
    ours = conv_as_matmul(crop, weight, None, 2)
    torch.testing.assert_close(ours, expected)
    (gradient,) = torch.autograd.grad(ours.sum(), weight)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), weight)[0])
    assert not conv_as_matmul(crop, weight.detach(), None, 2).requires_grad


@pytest.mark.unit
def test_autocast_decides_the_precision():
    """bf16 training must multiply in bf16, and give fp32 weights fp32 gradients."""
    x_BTC, weight, bias_O = operands(3, 20, True, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y_BTO = conv_as_matmul(x_BTC, weight, bias_O, 2)
    assert y_BTO.dtype == torch.bfloat16
    gradients = torch.autograd.grad(y_BTO.float().sum(), (x_BTC, weight, bias_O))
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 3
