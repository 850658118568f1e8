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

"""What WavLM and data2vec add to the encoder: sizes, distances, training."""

import pytest
import torch
import transformers
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from nemo_mshubert.convert.architecture import infer_architecture
from nemo_mshubert.convert.fairseq import from_fairseq
from nemo_mshubert.convert.huggingface import read_huggingface
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder
from nemo_mshubert.modules.relative_position import RelativePositionBias
from tests.convert.conftest import fairseq_options, make_encoder, spell_as_fairseq

SIZES = {
    "hubert": ({}, 94_371_712),
    "wavlm": (dict(position_buckets=320), 94_381_936),
    "data2vec-audio": (dict(conv_norm="layer_norm", pos_conv_kernel=19, pos_conv_depth=5), 93_164_288),
}


@pytest.mark.unit
@pytest.mark.parametrize("family", SIZES)
def test_base_has_the_published_size(family):
    """Published counts; every name and shape is compared when weights are converted."""
    arguments, expected = SIZES[family]
    with torch.device("meta"):
        encoder = MSHuBERTEncoder(**arguments)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == expected


@pytest.fixture
def assumed():
    """``assumed(d_model=768)``: what is read off the tensors of such an encoder alone."""

    def infer(**arguments):
        with torch.device("meta"):
            encoder = MSHuBERTEncoder(num_layers=1, num_heads=1, **arguments)
        return infer_architecture(encoder.state_dict(), {}, str, "weights.pt")

    return infer


@pytest.mark.unit
@pytest.mark.parametrize("width, heads", [(768, 12), (1024, 16), (1280, 16), (1920, 16), (512, 8)])
def test_heads_of_the_published_widths(assumed, width, heads):
    """base, large, XLS-R 1B and 2B; another number splits the same weights elsewhere, and no shape tells."""
    encoder, notes = assumed(d_model=width)
    assert encoder["num_heads"] == heads
    assert notes[0] == f"assumed {heads} attention heads, as published models of width {width} have"


@pytest.mark.unit
def test_distance_of_wavlm(assumed):
    """That of the published models: another one puts far frames into other buckets."""
    encoder, _ = assumed(position_buckets=320)
    assert encoder["position_buckets"] == transformers.WavLMConfig().num_buckets
    assert encoder["position_max_distance"] == transformers.WavLMConfig().max_bucket_distance


@pytest.mark.unit
def test_data2vec_is_post_ln_where_nothing_says_so(peer, difference):
    """Its front end has LayerNorms, which all others have with pre-LN blocks."""
    theirs = peer("data2vec-audio")
    options = fairseq_options(theirs)
    del options["layer_norm_first"]
    content = {"cfg": {"model": options, "task": {"normalize": True}}, "model": spell_as_fairseq(theirs)}
    checkpoint = from_fairseq(content, "data2vec.pt")
    assert checkpoint.encoder["pre_norm"] is False and difference(checkpoint, theirs) < 1e-4
    assert len(checkpoint.notes) == 1 and checkpoint.notes[0].startswith("assumed post-LN blocks")


@pytest.mark.unit
def test_buckets_equal_transformers():
    """WavLM's 320 buckets up to 800 frames, over distances of half a minute."""
    offset = torch.arange(-1500, 1501)
    theirs = WavLMAttention(16, 2, num_buckets=320, max_distance=800)._relative_positions_bucket(offset)
    ours = RelativePositionBias(320, 800, 2).buckets(offset)
    assert torch.equal(ours, theirs) and ours.unique().numel() > 200
    assert ours[offset == 0].item() == 0 and ours[offset == -1].item() == 1 and ours[offset == 1].item() == 161


@pytest.mark.unit
@pytest.mark.parametrize("family", ["wavlm-base", "wavlm-large", "data2vec-audio"])
def test_pretraining_and_bf16(peer, save_peer, audio, family):
    """Swap and the loss at blocks work as with HuBERT: independent of padding, a gradient for every parameter."""
    encoder = make_encoder(read_huggingface(save_peer(peer(family), family)))
    encoder.layerdrop, encoder.dropout.p = 0.0, 0.0
    signal, length = audio
    frames = encoder.hidden_states(signal[:, None], length)[1]
    mask_BT = (torch.arange(frames.max()) % 3 == 0) & (torch.arange(frames.max()) < frames[:, None])
    together = encoder.forward_views(signal[:, None], length, mask_BT, [1, 3]).tapped[3]
    for row, count in enumerate(frames):
        alone = encoder.forward_views(
            signal[row : row + 1, None, : length[row]], length[row : row + 1], mask_BT[row : row + 1, :count], [1, 3]
        ).tapped[3]
        torch.testing.assert_close(together[:, row, :count], alone[:, 0], rtol=1e-4, atol=1e-4)
    (together * torch.linspace(-1, 1, together.shape[-1])).sum().backward()
    unused = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert unused == []
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        half, _ = encoder.hidden_states(signal[:, None], length)
    with torch.no_grad():
        full, _ = encoder.hidden_states(signal[:, None], length)
    assert half[-1][0].sub(full[-1][0]).abs().mean() < 0.1 * full[-1][0].abs().mean()


@pytest.mark.unit
@pytest.mark.parametrize("family", ["wavlm-base", "data2vec-audio"])
def test_confused_parts_are_caught(peer, save_peer, difference, family):
    """Parity fails when the gates are swapped, or two positional convolutions."""
    theirs = peer(family)
    checkpoint = read_huggingface(save_peer(theirs, family))
    weights = checkpoint.weights
    if family == "wavlm-base":
        gates = weights["layers.1.attention.gate_linear.weight"]
        weights["layers.1.attention.gate_linear.weight"] = 3.0 * gates.roll(4, dims=0)
    else:
        first, second = (f"pos_conv_embed.layers.{layer}.conv.weight" for layer in (0, 1))
        weights[first], weights[second] = weights[second], weights[first]
    assert difference(checkpoint, theirs) > 1e-3
