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

"""Features of an encoder by name."""

import pytest

from nemo_mshubert.models import hidden_features
from nemo_mshubert.models.hidden_features import load_hidden_features
from nemo_mshubert.models.loading import load_encoder
from tests.convert.conftest import assert_same_weights

pytestmark = pytest.mark.unit


def test_layer_and_device_are_those_asked_for(ssl_path, monkeypatch):
    """Labels of another layer look like any others, and on another GPU than this rank's they would crowd its
    memory."""
    monkeypatch.setattr(hidden_features, "HiddenFeatures", lambda *given: given)
    encoder, layer, device = load_hidden_features(str(ssl_path), 3, "cuda:1")
    assert (layer, device) == (3, "cuda:1")
    assert_same_weights(encoder.state_dict(), load_encoder(ssl_path).state_dict())
