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

"""A ``.nemo`` of a model that is split over ranks holds the whole model."""

from typing import Any, Mapping

from nemo_mshubert.models.whole_file import WholeFile


class WholeWeights(WholeFile):
    """Writes the weights it is given in the place of those of one rank."""

    def __init__(self, state_dict: Mapping[str, Any]):
        super().__init__()
        self._whole = state_dict

    def _save_state_dict_to_disk(self, state_dict: Mapping[str, Any], filepath: str) -> None:
        super()._save_state_dict_to_disk(self._whole, filepath)
