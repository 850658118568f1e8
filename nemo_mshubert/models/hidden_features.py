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

"""Features for k-means, by the name of their encoder."""

from nemo_mshubert.clustering.features import HiddenFeatures
from nemo_mshubert.device import choose_device
from nemo_mshubert.models.loading import Name, load_encoder


def load_hidden_features(encoder: Name, layer: int, device: str) -> HiddenFeatures:
    """Features of an encoder, given by a name as in `load_encoder`; ``device`` as in `choose_device`."""
    return HiddenFeatures(load_encoder(encoder), layer, choose_device(device))
