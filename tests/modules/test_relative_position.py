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

"""WavLM's gated relative positions against transformers' own."""

import pytest
import torch
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from nemo_mshubert.modules.relative_position import GatedSelfAttention, RelativePositionBias

NAMES = {"gru_rel_pos_linear": "gate_linear", "gru_rel_pos_const": "gate_constant"}


@pytest.mark.unit
@pytest.mark.parametrize("num_frames", [1, 9, 70])
def test_equals_transformers_where_positions_matter(num_frames):
    """With biases as large as trained ones have; those of a fresh model drown in the tolerance of any comparison."""
    torch.manual_seed(0)
    theirs = WavLMAttention(24, 4, num_buckets=16, max_distance=40, has_relative_position_bias=True).eval()
    ours, bias = GatedSelfAttention(24, 4, 0.0).eval(), RelativePositionBias(16, 40, 4)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.7)
    state = {".".join(NAMES.get(part, part) for part in name.split(".")): x for name, x in theirs.state_dict().items()}
    bias.embedding.weight.data.copy_(state.pop("rel_attn_embed.weight"))
    ours.load_state_dict(state)
    x_BTD = torch.randn(2, num_frames, 24)
    with torch.no_grad():
        expected = theirs(x_BTD)[0]
        torch.testing.assert_close(ours(x_BTD, None, bias(num_frames)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_biases_start_small():
    """Of N(0, 1) they would drown the content of frames."""
    assert RelativePositionBias(320, 800, 12).embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.unit
def test_the_encoder_has_the_distances_asked_for(tiny_encoder):
    """With WavLM's 800 frames whatever was asked, a model trained with others would confuse its distances."""
    offset = torch.arange(-60, 61)
    found = tiny_encoder(position_buckets=16, position_max_distance=40).position_bias.buckets(offset)
    assert torch.equal(found, RelativePositionBias(16, 40, 2).buckets(offset))
