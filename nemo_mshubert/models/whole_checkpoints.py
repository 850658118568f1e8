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

"""Writes checkpoints whole or not at all, and without space on another disk."""

from typing import Any, Dict

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from nemo_mshubert.whole_files import PathLike, atomic_write


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the checkpoint. Lightning's own checkpoints go through the folder of temporary files. If that is
    full, the run ends and another disk is blamed. If it is on another disk, a kill leaves half of a checkpoint, and a
    full disk leaves a whole one in that folder."""

    def save_checkpoint(self, checkpoint: Dict[str, Any], path: PathLike, storage_options: Any = None) -> None:
        with atomic_write(path, "wb") as stream:
            torch.save(checkpoint, stream)
