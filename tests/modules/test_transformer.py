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

"""Parts of the transformer against transformers' own, one by one: they say where the encoder fails."""

import pytest
import torch
from transformers import HubertConfig
from transformers.models.hubert import modeling_hubert as hf

from nemo_mshubert.benchmarks.peers import first_output
from nemo_mshubert.modules import reference
from nemo_mshubert.modules.fft_conv import KeptSpectra
from nemo_mshubert.modules.transformer import (
    ConvPositionalEmbedding,
    SelfAttention,
    TransformerBlock,
    init_linear,
    zero_touch,
)

CONFIG = HubertConfig(
    hidden_size=24,
    num_attention_heads=4,
    intermediate_size=40,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=3,
    attn_implementation="eager",
)


def copy_of(theirs, ours):
    """``ours`` in eval mode with the randomised weights of ``theirs``, every key used."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict())
    theirs.eval()
    return ours.eval()


@pytest.mark.unit
def test_attention_converts_its_input_once_under_autocast():
    """Three conversions and their gradients are a tenth of what a block moves through the memory of a GPU."""
    attention, x_BTD = SelfAttention(24, 4, 0.0), torch.randn(2, 13, 24)
    operands = []
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.register_forward_pre_hook(lambda module, arguments: operands.append(arguments[0]))
    with torch.autocast("cpu", torch.bfloat16):
        y_BTD = attention(x_BTD, None)
    assert operands[0] is operands[1] is operands[2] and operands[0].dtype == y_BTD.dtype == torch.bfloat16
    torch.testing.assert_close(y_BTD.float(), attention(x_BTD, None), atol=2e-3, rtol=0)
    assert operands[3] is x_BTD  # outside of autocast nothing is converted


@pytest.mark.unit
@pytest.mark.parametrize("kernel", [8, 9])
@pytest.mark.parametrize("gradient", [True, False])
def test_positional_embedding_equals_transformers(kernel, gradient, monkeypatch):
    """Even kernels drop their surplus frame at the end, odd ones have none. By `fft_conv`, with spectra that are kept
    where no gradient is wanted, and by ``conv1d`` in the reference path."""
    config = HubertConfig(**{**CONFIG.to_dict(), "num_conv_pos_embeddings": kernel})
    theirs = hf.HubertPositionalConvEmbedding(config)
    ours = copy_of(theirs, ConvPositionalEmbedding(24, kernel, 3)).requires_grad_(gradient)
    kept, convolved = [], []
    count_calls(monkeypatch, KeptSpectra, "convolve", kept)
    count_calls(monkeypatch, torch.nn.Conv1d, "forward", convolved)
    x_BTD = torch.randn(2, 13, 24)
    expected = theirs(x_BTD)
    convolved.clear()
    torch.testing.assert_close(ours(x_BTD), expected, rtol=1e-5, atol=1e-5)
    assert len(kept) == (not gradient) and not convolved
    with torch.no_grad():
        torch.testing.assert_close(ours(x_BTD), expected, rtol=1e-5, atol=1e-5)
    assert len(kept) == 2 - gradient
    x_BTD.requires_grad_()
    assert ours(x_BTD).requires_grad and len(kept) == 2 - gradient
    ours.conv.bias.requires_grad_()
    assert ours(x_BTD.detach()).requires_grad  # of a model whose biases alone are tuned
    monkeypatch.setattr(reference, "forced", True)
    torch.testing.assert_close(ours(x_BTD), expected, rtol=1e-5, atol=1e-5)
    assert convolved


def count_calls(monkeypatch, owner, name, calls):
    function = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *arguments: calls.append(name) or function(*arguments))


@pytest.mark.unit
@pytest.mark.parametrize("pre_norm", [False, True])
def test_block_equals_transformers(pre_norm):
    """Fine-tuning from others' weights rests on it."""
    theirs = (hf.HubertEncoderLayerStableLayerNorm if pre_norm else hf.HubertEncoderLayer)(CONFIG)
    ours = copy_of(theirs, TransformerBlock(SelfAttention(24, 4, 0.1), 24, 40, 0.1, 0.1, pre_norm))
    x_BTD = torch.randn(2, 13, 24)
    expected = first_output(theirs(x_BTD))
    torch.testing.assert_close(ours(x_BTD, None), expected, rtol=1e-5, atol=1e-5)
    attention = ours.attention
    attention.q_proj, attention.v_proj = attention.v_proj, attention.q_proj  # q and v confused must show
    assert not torch.allclose(ours(x_BTD, None), expected, atol=1e-2)


@pytest.mark.unit
def test_attention_sees_valid_frames_only():
    """Padding that is attended to makes an utterance depend on its neighbours in the batch."""
    attention = SelfAttention(24, 4, dropout=0.0).eval()
    x_BTD = torch.randn(2, 10, 24)
    valid = torch.tensor([[True] * 6 + [False] * 4, [True] * 10])
    masked = attention(x_BTD, valid[:, None, None, :])
    torch.testing.assert_close(masked[0, :6], attention(x_BTD[:1, :6], None)[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(masked[0, :6], attention(x_BTD, None)[0, :6], atol=1e-4)


@pytest.mark.unit
def test_attention_dropout_is_for_training():
    """At inference dropout would make features random."""
    attention = SelfAttention(24, 4, dropout=0.5)
    x_BTD = torch.randn(1, 10, 24)
    assert not torch.equal(attention.train()(x_BTD, None), attention(x_BTD, None))
    assert torch.equal(attention.eval()(x_BTD, None), attention(x_BTD, None))


@pytest.mark.unit
def test_width_must_divide_into_heads():
    """The paper's "8 heads" fits 768, but not every width."""
    with pytest.raises(ValueError, match="768 is not divisible by num_heads 7"):
        SelfAttention(768, 7, 0.0)


@pytest.mark.unit
def test_zero_touch_gives_zero_gradients_to_trainable_parameters():
    """Missing gradients would hang or fail DDP, non-zero ones would train a skipped block."""
    block = TransformerBlock(SelfAttention(24, 4, 0.0), 24, 40, 0.0, 0.0, False)
    block.layer_norm.weight.requires_grad_(False)
    touch = zero_touch(block)
    assert touch.item() == 0.0
    touch.backward()
    for name, parameter in block.named_parameters():
        if name == "layer_norm.weight":
            assert parameter.grad is None
        else:
            assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


@pytest.mark.unit
def test_linear_starts_as_in_bert():
    """fairseq's init_bert_params: N(0, 0.02), no bias."""
    linear = init_linear(torch.nn.Linear(400, 300))
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not linear.bias.any()
