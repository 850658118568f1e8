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

"""LayerNorm between matrix products in bf16."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_mshubert.modules.autocast import to_autocast_dtype

EPSILON = 1e-5


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over the last dimension, in the dtype of autocast, with mean and variance in fp32.

    Autocast would make it read and write fp32: twice the bytes, and a conversion for every product that follows.
    Without autocast it is ``nn.LayerNorm``.
    """

    def __init__(self, channels: int):
        super().__init__(channels, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., channels]`` -> same."""
        return layer_norm(x, self.weight, self.bias)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`LayerNorm` with these weights."""
    x, weight, bias = (to_autocast_dtype(tensor) for tensor in (x, weight, bias))
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x, weight.shape, weight, bias, EPSILON)
