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

"""LayerNorm in the precision of its surroundings."""

import pytest
import torch
from torch import nn

from nemo_mshubert.modules.layer_norm import LayerNorm


@pytest.mark.unit
def test_stays_in_bf16_with_statistics_in_fp32():
    """Values far from zero: a mean or variance in bf16 would be off by more than they differ."""
    norm, expected = LayerNorm(64), nn.LayerNorm(64)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    expected.load_state_dict(norm.state_dict())
    x_BTC = (100 + torch.randn(2, 5, 64)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y_BTC = norm(x_BTC)
        assert norm(x_BTC.float()).dtype == torch.bfloat16
    assert y_BTC.dtype == torch.bfloat16
    torch.testing.assert_close(y_BTC.float(), expected(x_BTC.float()), rtol=0.02, atol=0.02)
    gradients = torch.autograd.grad(y_BTC.float().sum(), norm.parameters())
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 2


@pytest.mark.unit
def test_is_that_of_pytorch_without_autocast():
    norm, expected = LayerNorm(64), nn.LayerNorm(64)
    x_BTC = torch.randn(2, 5, 64)
    assert torch.equal(norm(x_BTC), expected(x_BTC))
    assert norm.bfloat16()(x_BTC.bfloat16()).dtype == torch.bfloat16
