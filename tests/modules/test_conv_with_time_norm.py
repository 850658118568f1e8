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

"""The convolution with its norm folded in against the two one after the other."""

import pytest
import torch
from torch.nn import functional as F

from nemo_mshubert.modules.conv_feature_extractor import ConvFeatureExtractor
from nemo_mshubert.modules.conv_with_time_norm import conv_with_time_norm

pytestmark = pytest.mark.unit
KERNEL, STRIDE, EPS = 10, 5, 1e-5


def operands(samples=203, dtype=torch.float64, offset=0.0):
    """Two signals and weight, scale and bias of seven channels."""
    torch.manual_seed(samples)
    shapes = [(2, samples), (7, KERNEL), (7,), (7,)]
    signal, *parameters = (torch.randn(shape, dtype=dtype) for shape in shapes)
    return [tensor.requires_grad_() for tensor in (signal + offset, *parameters)]


def one_after_the_other(signal_BS, weight_OK, scale_O, bias_O):
    """PyTorch's own, of unpadded signals: ``[B, T, O]``."""
    y_BOT = F.conv1d(signal_BS[:, None], weight_OK[:, None], stride=STRIDE)
    return F.group_norm(y_BOT, len(weight_OK), scale_O, bias_O, EPS).transpose(1, 2)


def folded(signal_BS, weight_OK, scale_O, bias_O, counts=None):
    counts_B = torch.tensor(counts or [0] * len(signal_BS))
    return conv_with_time_norm(signal_BS, weight_OK, scale_O, bias_O, EPS, STRIDE, counts_B, padded=counts is not None)


def test_equals_conv_and_group_norm_forward_and_backward():
    """A wrong term of the gradient, such as that through the variance, would train another network on CPUs than on
    GPUs."""
    tensors = operands()
    ours, theirs = folded(*tensors), one_after_the_other(*tensors)
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn_like(ours)
    for our, their in zip(
        torch.autograd.grad(ours, tensors, gradient), torch.autograd.grad(theirs, tensors, gradient)
    ):
        torch.testing.assert_close(our, their)


def test_padding_has_no_say():
    """Each row as if it were alone, whatever lies behind it; a row without a frame does not spoil the others."""
    signal, *parameters = operands()
    counts = [24, 39]
    samples = (counts[0] - 1) * STRIDE + KERNEL
    alone = one_after_the_other(signal[:1, :samples], *parameters)
    for behind in (0.0, 1e3):
        padded = torch.cat([signal[:1, :samples], signal.new_full((1, 203 - samples), behind)], dim=1)
        both = folded(torch.cat([padded, signal[1:]]), *parameters, counts=counts)
        torch.testing.assert_close(both[:1, : counts[0]], alone)
        torch.testing.assert_close(both[1:], one_after_the_other(signal[1:], *parameters))
    assert folded(signal, *parameters, counts=[0, 39]).isfinite().all()


@pytest.mark.parametrize("kernel", [8, 16])
def test_a_kernel_that_fills_whole_rows_keeps_its_shift(kernel):
    """The shift rides on an added sample; without one behind 8 or 16 of them the norm would lose its mean and bias."""
    torch.manual_seed(kernel)
    signal, weight, scale, bias = (
        torch.randn(shape, dtype=torch.float64) for shape in [(2, 203), (7, kernel), (7,), (7,)]
    )
    torch.testing.assert_close(
        folded(signal + 1.0, weight, scale, bias), one_after_the_other(signal + 1.0, weight, scale, bias)
    )


def test_samples_far_from_zero():
    """A microphone with an offset: squares of large numbers would swallow the variance in fp32."""
    tensors = operands(16000, torch.float32, offset=30.0)
    exact = one_after_the_other(*(tensor.double() for tensor in tensors)).float()
    torch.testing.assert_close(folded(*tensors), exact, atol=2e-4, rtol=0)


def test_silence():
    """Digital silence has no variance."""
    _, *parameters = operands()
    silence = torch.zeros(1, 203, dtype=torch.float64)
    torch.testing.assert_close(folded(silence, *parameters), one_after_the_other(silence, *parameters))


def test_autocast_decides_the_precision():
    """bf16 must come out, from statistics that are not bf16."""
    tensors = operands(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = folded(*tensors)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), one_after_the_other(*tensors), atol=0.1, rtol=0.02)


@pytest.mark.parametrize("bias", [True, False])
def test_front_end_with_a_bias_keeps_its_gradient(bias):
    """The norm takes the bias away again, but a parameter without any gradient would stop data-parallel training."""
    extractor = ConvFeatureExtractor([(8, KERNEL, STRIDE)], bias=bias)
    frames, _ = extractor(torch.randn(2, 1, 203), torch.tensor([203, 203]), padded=False)
    frames.square().sum().backward()
    assert all(parameter.grad is not None for parameter in extractor.parameters())
