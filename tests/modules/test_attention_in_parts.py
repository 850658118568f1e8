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

"""Attention in parts, against PyTorch's attention and finite differences."""

import math

import pytest
import torch
from torch.nn import functional as F

from nemo_mshubert.modules import attention_in_parts as module
from nemo_mshubert.modules import reference
from nemo_mshubert.modules.attention_in_parts import attend
from nemo_mshubert.modules.dropout import LEVELS

MASKS = {
    "none": None,
    "padding": torch.tensor([[True] * 7 + [False] * 2, [True] * 9])[:, None, None, :],
    "bias": torch.linspace(-3, 3, 4 * 81).view(1, 4, 9, 9),  # of WavLM
}
MASKS["bias and padding"] = MASKS["bias"].expand(2, -1, -1, -1).masked_fill(~MASKS["padding"], -math.inf)


def qkv(seed: int = 0, num_frames: int = 9):
    torch.manual_seed(seed)
    return [torch.randn(2, 4, num_frames, 6, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def double(mask):
    return mask if mask is None or mask.dtype == torch.bool else mask.double()


@pytest.fixture(params=[1, 3 * 81, 1 << 19], ids=["a head", "three heads", "all"])
def part_size(request, monkeypatch):
    """How many weights are at once in the cache: of one head of 9 frames, of three of eight, of all."""
    monkeypatch.setattr(module, "PART_SIZE", request.param)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    return request.param


@pytest.mark.unit
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_attention_equals_pytorchs_but_for_dropout(mask, part_size, monkeypatch):
    """With a rate too small to drop anything, values and gradients are those of the fused kernel."""
    mask = double(mask)
    nothing = 0.5 / LEVELS
    gradients = []
    for rate in (nothing, 0.0):
        q, k, v = qkv()
        y = attend(q, k, v, mask, rate)
        y.square().sum().backward()
        gradients.append([y.detach(), q.grad, k.grad, v.grad])
    for found, expected in zip(*gradients):
        torch.testing.assert_close(found, expected)
    called = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *_, **options: called.append(options["dropout_p"]))
    attend(*qkv(), mask, nothing)
    assert not called
    attend(*qkv(), mask, 0.0)
    monkeypatch.setattr(reference, "forced", True)
    attend(*qkv(), mask, 0.1)
    assert called == [0.0, 0.1]


@pytest.mark.unit
def test_large_scores_do_not_overflow():
    """The exponential of a score above 88 is infinite in fp32, above 709 in fp64, and makes all weights NaN."""
    outputs = []
    for rate in (0.5 / LEVELS, 0.0):
        q, k, v = qkv()
        y = attend(1000 * q, k, v, None, rate)
        outputs.append([y, *torch.autograd.grad(y.square().sum(), [q, k, v])])
    torch.testing.assert_close(*outputs)


@pytest.mark.unit
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_attention_drops_weights_and_keeps_their_mean(mask):
    """Over many draws it is the attention without dropout, and its spread that of PyTorch's dropout."""
    mask = double(mask)
    q, k, v = (x.detach() for x in qkv())
    many = 4000

    def draws(attention):
        outputs = torch.stack([attention() for _ in range(many)])
        return outputs.mean(0), outputs.std(0)

    mean, spread = draws(lambda: attend(q, k, v, mask, 0.3))
    _, expected_spread = draws(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.3))
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert ((mean - exact).abs() < 6 * spread / math.sqrt(many)).all()
    torch.testing.assert_close(spread, expected_spread, rtol=0.15, atol=1e-3)


@pytest.mark.unit
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_gradients_are_of_the_weights_that_were_kept(mask, part_size):
    """A backward pass that computes other weights again than the forward pass had dropped trains noise."""
    inputs = qkv() + ([double(mask).clone().requires_grad_()] if mask is not None and mask.dtype != torch.bool else [])

    def same_draws(q, k, v, mask=mask):
        torch.manual_seed(5)
        return attend(q, k, v, mask, 0.3)

    assert torch.autograd.gradcheck(same_draws, inputs, fast_mode=True)


@pytest.mark.unit
def test_draws_do_not_depend_on_the_parts(monkeypatch):
    """Another number of threads, as after a resume on another machine, would drop other weights."""
    outputs = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(module, "PART_SIZE", 81)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        inputs = qkv()
        torch.manual_seed(3)
        outputs.append(attend(*inputs, None, 0.3))
    assert not torch.allclose(outputs[0], attend(*qkv(), None, 0.3))  # of other draws
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(outputs[2], outputs[0])


@pytest.mark.unit
def test_a_byte_of_each_weight_is_kept():
    """Spelled out, nine bytes are, in utterances of 12 s a third of the memory of a step of base."""
    kept = []
    q, k, v = (torch.randn(2, 3, 100, 4, requires_grad=True) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        attend(q, k, v, None, 0.1)
    of_weights = [x for x in kept if x.shape[-1] == 100]
    assert [x.dtype for x in of_weights] == [torch.uint8] and of_weights[0].numel() == 2 * 3 * 100 * 100


@pytest.mark.unit
def test_bf16_under_autocast():
    """Weights of attention are fp32 under autocast, so that their sums are; what comes and goes is bf16."""
    offset = [0.0, 0.0, 3.0]  # values with a mean: their gradients cancel, and rounding shows; most in long utterances
    inputs = [(x.detach() + mean).bfloat16() for x, mean in zip(qkv(num_frames=200), offset)]
    exact, rounded = ([x.to(dtype).requires_grad_() for x in inputs] for dtype in (torch.float32, torch.bfloat16))
    torch.manual_seed(1)
    y = attend(*exact, None, 0.5)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        y_bf16 = attend(*rounded, None, 0.5)
    assert y_bf16.dtype == torch.bfloat16
    y.square().sum().backward()
    y_bf16.float().square().sum().backward()
    for found, expected in zip([y_bf16, *(x.grad for x in rounded)], [y, *(x.grad for x in exact)]):
        assert (found.float() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.unit
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_bf16_inference_equals_fp32_but_for_rounding(mask, part_size, monkeypatch):
    """Of `evaluate.py --precision bf16`; with gradients, and in fp32, PyTorch's kernel is the faster one."""
    q, k, v = (x.detach().bfloat16() for x in qkv())
    bias = mask if mask is None or mask.dtype == torch.bool else mask.bfloat16()
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    called = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *_, **options: called.append(options))
    with torch.no_grad():
        found = attend(q, k, v, bias, 0.0)
        assert found.dtype == torch.bfloat16 and found.shape == exact.shape and not called
        assert (found.float() - exact).norm() < 0.005 * exact.norm()
        with torch.autocast("cpu", torch.bfloat16):  # a validation on a CPU
            torch.testing.assert_close(attend(q, k, v, bias, 0.0), found, rtol=0, atol=0)
        attend(q.float(), k.float(), v.float(), mask, 0.0)
        monkeypatch.setattr(reference, "forced", True)
        attend(q, k, v, bias, 0.0)
    monkeypatch.setattr(reference, "forced", False)
    attend(q, k, v, bias, 0.0)
    assert len(called) == 3
