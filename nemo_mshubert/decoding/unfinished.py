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

"""What an evaluation has computed, kept until its end: if it is interrupted, the same call goes on from there.

Each rank processes its utterances in windows. When it has the log-probabilities and texts of a window, it writes them
into a hidden folder of the output, one for each manifest and rank. The folder's name has a digest of all that the
texts depend on, so that they are not mixed with those of another model, manifest or beam search.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np

from nemo_mshubert.data.digest import short_digest
from nemo_mshubert.decoding.log_probs import read_log_probs, write_log_probs
from nemo_mshubert.parallel.launched import LaunchedRanks
from nemo_mshubert.whole_files import PathLike, write_json


class Window(NamedTuple):
    """What was computed for some utterances of a manifest.

    Attributes:
        log_probs: for each utterance, float32 ``[T, V + 1]``; nothing for a model with BPE tokens.
        texts: per decoder, those of the utterances.
    """

    log_probs: List[np.ndarray]
    texts: Dict[str, List[str]]


class Unfinished:
    """The finished windows of one manifest on one rank.

    Args:
        output: folder of the evaluation.
        name: of the manifest.
        setup: JSON values on which log-probabilities and texts depend.
    """

    def __init__(self, output: PathLike, name: str, setup: Dict[str, Any], ranks: LaunchedRanks):
        self.folder = Path(output) / f".{name}.{short_digest(setup)}.{ranks.rank}of{ranks.count}.partial"

    def has(self, number: int) -> bool:
        return self._texts(number).is_file()

    def read(self, number: int) -> Window:
        arrays = self._log_probs(number)
        texts = json.loads(self._texts(number).read_text(encoding="utf-8"))
        return Window(read_log_probs(arrays).log_probs if arrays.is_file() else [], texts)

    def write(self, number: int, labels: Sequence[str], window: Window) -> None:
        if window.log_probs:
            rows = ((str(index), "", log_probs_TV) for index, log_probs_TV in enumerate(window.log_probs))
            write_log_probs(self._log_probs(number), labels, rows)
        write_json(self._texts(number), window.texts)  # last: it tells that the window is finished

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _log_probs(self, number: int) -> Path:
        return self.folder / f"{number}.safetensors"

    def _texts(self, number: int) -> Path:
        return self.folder / f"{number}.json"
