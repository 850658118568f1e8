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

"""WavLM's gated relative position bias (Chen et al. 2022, section 3.1): attention by distance and content.

Weights and maths equal ``WavLMAttention`` of transformers. B utterances, T frames, D width, H heads.
"""

import math
from typing import Optional

import torch
from torch import Tensor, nn

from nemo_mshubert.modules.transformer import INIT_STD, SelfAttention, init_linear

GATE_TERMS = 4  # outputs of the projection that are summed for each of the two gates


class RelativePositionBias(nn.Module):
    """A learned number per head and bucket of distances; all blocks share it.

    Half of the buckets are for earlier frames, half for later ones. In each half, the first half of the buckets hold
    one distance each; the rest grow logarithmically up to ``max_distance`` frames (T5; WavLM: 320 buckets, 800
    frames).
    """

    def __init__(self, num_buckets: int, max_distance: int, num_heads: int):
        super().__init__()
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.embedding = nn.Embedding(num_buckets, num_heads)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)  # with N(0, 1), positions would drown the content

    def forward(self, num_frames: int) -> Tensor:
        """Bias ``[H, T, T]`` of queries (rows) towards keys (columns)."""
        position_T = torch.arange(num_frames, device=self.embedding.weight.device)
        return self.embedding(self.buckets(position_T - position_T[:, None])).permute(2, 0, 1)

    def buckets(self, offset: Tensor) -> Tensor:
        """Bucket of each offset, key minus query, in frames."""
        per_side = self.num_buckets // 2
        exact = per_side // 2
        distance = offset.abs()
        log_share = torch.log(distance.clamp(min=1) / exact) / math.log(self.max_distance / exact)
        far = (exact + log_share * (per_side - exact)).to(torch.long).clamp(max=per_side - 1)
        return torch.where(distance < exact, distance, far) + (offset > 0).to(torch.long) * per_side


class GatedSelfAttention(SelfAttention):
    """Self-attention whose position bias is scaled, for each query, by gates computed from the query's input."""

    def __init__(self, d_model: int, num_heads: int, dropout: float):
        super().__init__(d_model, num_heads, dropout)
        self.gate_linear = init_linear(nn.Linear(d_model // num_heads, 2 * GATE_TERMS))
        self.gate_constant = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def attention_mask(self, x_BTD: Tensor, key_mask: Optional[Tensor], position_bias: Optional[Tensor]) -> Tensor:
        """Gated bias ``[B, H, T, T]``, minus infinity at keys that are padding."""
        x_BHTE = x_BTD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        gates = torch.sigmoid(self.gate_linear(x_BHTE).unflatten(-1, (2, GATE_TERMS)).sum(-1))
        scale_BHT1 = gates[..., :1] * (gates[..., 1:] * self.gate_constant - 1.0) + 2.0
        bias_BHTT = scale_BHT1 * position_bias
        return bias_BHTT if key_mask is None else bias_BHTT.masked_fill(~key_mask, -math.inf)
