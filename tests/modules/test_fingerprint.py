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

"""If these fail, labels and results of one model pass for those of another, or its own are not known again."""

import pytest
import torch
from torch import nn

from nemo_mshubert.modules.fingerprint import weights_fingerprint


def test_fingerprint_sees_every_weight_and_nothing_else():
    """Labels of one encoder must not pass for another's, and the same encoder must be recognised after saving."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    original = weights_fingerprint(module)
    assert len(original) == 16 and int(original, 16) >= 0
    copy = nn.Linear(3, 2)
    copy.load_state_dict(module.state_dict())
    assert weights_fingerprint(copy.eval()) == original
    with torch.no_grad():
        copy.bias[1] = torch.nextafter(copy.bias[1], torch.tensor(9.0))
    assert weights_fingerprint(copy) != original
    renamed = nn.Module()
    renamed.other = module
    assert weights_fingerprint(renamed) != original
    reshaped = nn.ParameterDict({"weight": module.weight.detach().view(3, 2), "bias": module.bias.detach()})
    assert weights_fingerprint(reshaped) != original


@pytest.mark.unit
def test_fingerprint_does_not_depend_on_the_order_of_definition():
    """A version that defines the parts of its encoder in another order would refuse all labels and k-means of
    before."""
    torch.manual_seed(0)
    first, second = nn.Linear(3, 2), nn.Linear(2, 2)
    module, reordered = nn.Module(), nn.Module()
    module.first, module.second = first, second
    reordered.second, reordered.first = second, first
    assert list(module.state_dict()) != list(reordered.state_dict())
    assert weights_fingerprint(module) == weights_fingerprint(reordered)


@pytest.mark.unit
def test_fingerprint_in_bf16_is_that_of_the_module_in_bf16():
    """Whether an evaluation with --precision bf16 is of these weights; the module must stay in fp32 meanwhile."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))  # which counts in int64
    module[1].num_batches_tracked += 257  # not a number in bf16
    original = weights_fingerprint(module)
    in_bf16 = weights_fingerprint(module, torch.bfloat16)
    assert weights_fingerprint(module) == original and module[0].weight.dtype == torch.float32
    assert in_bf16 != original and in_bf16 == weights_fingerprint(module.to(torch.bfloat16))
