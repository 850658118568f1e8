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

"""Writes ``.nemo`` files whole or not at all, also when NeMo's checkpoint callback writes them."""

from pathlib import Path
from typing import Any, Mapping

from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

from nemo_mshubert.whole_files import atomic_path, naming


class WholeFile(SaveRestoreConnector):
    """Packs under a temporary name, then renames; NeMo's own connector leaves a partial file if it is killed."""

    @staticmethod
    def _make_nemo_file_from_folder(filename: str, source_dir: str) -> None:
        with atomic_path(Path(filename), ".nemo") as temporary:
            SaveRestoreConnector._make_nemo_file_from_folder(str(temporary), source_dir)

    def _save_state_dict_to_disk(self, state_dict: Mapping[str, Any], filepath: str) -> None:
        with naming(filepath):  # in the folder of temporary files, which may be on another disk
            super()._save_state_dict_to_disk(state_dict, filepath)


class WholeWeights(WholeFile):
    """For a model that is split over ranks: writes the weights that it is given instead of those of one rank."""

    def __init__(self, state_dict: Mapping[str, Any]):
        super().__init__()
        self._whole = state_dict

    def _save_state_dict_to_disk(self, state_dict: Mapping[str, Any], filepath: str) -> None:
        super()._save_state_dict_to_disk(self._whole, filepath)
