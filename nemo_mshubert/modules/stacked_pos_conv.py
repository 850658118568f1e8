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

"""data2vec's positional embedding: several small convolutions in place of HuBERT's wide one.

Weights and maths equal ``Data2VecAudioPositionalConvEmbedding`` of transformers (fairseq: ``pos_conv_depth``).
"""

from typing import Optional

from torch import Tensor, nn
from torch.nn import functional as F

from nemo_mshubert.modules.layer_norm import EPSILON


class PositionalConvLayer(nn.Module):
    """Grouped convolution over time, LayerNorm without parameters, GELU."""

    def __init__(self, d_model: int, kernel: int, groups: int):
        super().__init__()
        self.conv = nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD = self.conv(x_BTD.transpose(1, 2)).transpose(1, 2)[:, : x_BTD.shape[1]]  # even kernels: a frame too many
        return F.gelu(F.layer_norm(y_BTD, (self.conv.out_channels,), eps=EPSILON))


class StackedConvPositionalEmbedding(nn.Module):
    """``depth`` layers; each sees zeros beyond an utterance, so that padding changes nothing."""

    def __init__(self, d_model: int, kernel: int, groups: int, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(PositionalConvLayer(d_model, kernel, groups) for _ in range(depth))

    def forward(self, x_BTD: Tensor, valid_BT: Optional[Tensor] = None) -> Tensor:
        """``[B, T, D]`` -> ``[B, T, D]``; ``valid_BT`` is False at padding, None if there is none."""
        for layer in self.layers:
            x_BTD = layer(x_BTD if valid_BT is None else x_BTD * valid_BT[..., None])
        return x_BTD
