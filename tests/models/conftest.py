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

"""Minuscule pre-training models."""

import pytest


@pytest.fixture
def make_model(model_config):
    """``make_model("model.swap=false", ...)``: a seeded model without a trainer, in eval mode."""
    import torch

    from nemo_mshubert.models import MSHuBERTModel

    def make(*overrides):
        torch.manual_seed(0)
        return MSHuBERTModel(model_config(*overrides)).eval()

    return make
