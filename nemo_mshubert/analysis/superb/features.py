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

"""Hidden states of a frozen encoder, read from a cache on disk, or computed from the audio once a budget is used up.

A base model's 13 states of LibriSpeech's train-clean-100 take 360 GB in float16, hence the budget. Cached states and
states computed during training are the same numbers: both are rounded to float16.

    <folder>/<encoder>/<place>-<state>.npy      float16 [T, L + 1, D]; each encoder has its own folder

A cache file is identified by the place of its audio and by the size and modification time of the audio file. If that
file is replaced, the states are computed again.
"""

import hashlib
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
import torch
from tqdm import tqdm

from nemo_mshubert.analysis.audio_source import audio_place, file_state
from nemo_mshubert.analysis.hidden_states import AllHiddenStates, groups_of, utterance_groups
from nemo_mshubert.clustering.audio_windows import Utterance, window_features
from nemo_mshubert.data.audio import load_audio
from nemo_mshubert.data.manifest import Line, utterance_id
from nemo_mshubert.file_lock import in_turn
from nemo_mshubert.modules.frames import RECEPTIVE_FIELD_SAMPLES
from nemo_mshubert.whole_files import PathLike, atomic_write

GIGABYTE = 1e9
PLACE_DIGITS, STATE_DIGITS = 32, 8  # hexadecimal digits in a file name


class CacheUse(NamedTuple):
    """The result of a call of `FrozenFeatures.fill`."""

    utterances: int  # number of the lines given
    cached: int  # how many of them are in the cache now
    gigabytes: float  # of all files of this encoder


class FrozenFeatures:
    """All hidden states of utterances, as `AllHiddenStates` gives them.

    Args:
        hidden_states: of the frozen encoder.
        folder: of the cache; None to compute everything whenever it is requested.
        gigabytes: limit for the cache of this encoder; utterances beyond it are computed whenever they are requested.
    """

    def __init__(self, hidden_states: AllHiddenStates, folder: Optional[PathLike] = None, gigabytes: float = 0.0):
        self.hidden_states = hidden_states
        self.folder = Path(folder) / f"{hidden_states.fingerprint}{hidden_states.scaling}" if folder else None
        self.gigabytes = gigabytes

    @property
    def num_states(self) -> int:
        return self.hidden_states.num_states

    @property
    def width(self) -> int:
        return self.hidden_states.width

    def fill(self, lines: Sequence[Line]) -> CacheUse:
        """Put utterances into the cache, window by window, until the budget is used up. Cached ones cost nothing.

        If two processes (of two tasks, for example) call this, the second waits: it would compute the same states, and
        use the budget a second time. States of audio that has been replaced are removed.

        Raises:
            FileNotFoundError, ValueError: audio that is missing or unusable, or states that are not finite.
        """
        if self.folder is None:
            return CacheUse(len(lines), 0, 0.0)
        with in_turn(self.folder / ".lock", "fills this cache."):
            return self._fill(lines)

    def _fill(self, lines: Sequence[Line]) -> CacheUse:
        paths = {where: self._path(entry) for where, entry in lines}  # names for the audio as it is before reading
        self._remove_replaced(set(paths.values()))
        used = sum(path.stat().st_size for path in self.folder.glob("*.npy"))
        missing = [line for line in lines if not paths[line[0]].is_file()]
        with tqdm(total=len(missing), desc="caching hidden states", unit=" utterances", disable=None) as progress:
            for utterance, states in self._computed(missing):
                if used + states.nbytes > self.gigabytes * GIGABYTE:
                    break
                with atomic_write(paths[utterance.where], "wb") as stream:
                    np.save(stream, states)
                used += states.nbytes
                progress.update()
        cached = sum(paths[where].is_file() for where, _ in lines)
        return CacheUse(len(lines), cached, used / GIGABYTE)

    def _remove_replaced(self, current: Set[Path]) -> None:
        """Remove states of audio that was replaced, which would otherwise use up the budget."""
        places = {path.name[:PLACE_DIGITS] for path in current}
        for path in self.folder.glob("*.npy"):
            if path.name[:PLACE_DIGITS] in places and path not in current:
                path.unlink(missing_ok=True)  # another process may have removed it first

    def _computed(self, lines: Sequence[Line]) -> Iterator[Tuple[Utterance, np.ndarray]]:
        for group in utterance_groups(lines):
            yield from zip(group, self._run(group))

    def load(self, line: Line) -> np.ndarray:
        """The part that a loader process can do: cached states ``float16 [T, L + 1, D]``, or samples ``float32 [S]``.

        Raises:
            FileNotFoundError, ValueError: audio that is missing, unusable or shorter than a frame; a damaged file.
        """
        where, entry = line
        path = self._path(entry) if self.folder else None
        if path is None or not path.is_file():
            samples = load_audio(entry, where)
            if len(samples) < RECEPTIVE_FIELD_SAMPLES:
                raise ValueError(f"{where}: {utterance_id(entry)}: shorter than one frame. Remove the line.")
            return samples
        try:
            return np.load(path)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path}: damaged ({error}). Delete it; the next call makes it again.") from error

    def finish(self, lines: Sequence[Line], loaded: Sequence[np.ndarray]) -> List[np.ndarray]:
        """States ``float16 [T, L + 1, D]`` from the results of `load`: samples now go through the encoder."""
        rows = [row for row, array in enumerate(loaded) if array.ndim == 1]
        states = list(loaded)
        for group in groups_of(rows):
            computed = self._run([Utterance(*lines[row], loaded[row]) for row in group])
            for row, array in zip(group, computed):
                states[row] = array
        return states

    def _run(self, group: List[Utterance]) -> List[np.ndarray]:
        with torch.autocast(self.hidden_states.device.type, enabled=False):  # cached states are made without it
            computed = window_features(group, self.hidden_states)
        states = []
        for utterance, features in zip(group, computed):
            array = features.cpu().numpy()
            with np.errstate(over="ignore"):
                rounded = array.reshape(len(array), self.num_states, -1).astype(np.float16)
            if not np.isfinite(rounded).all():
                raise ValueError(
                    f"{utterance.where}: hidden states reach {np.abs(array).max():g}, beyond float16 (65504). This "
                    "encoder's states cannot be probed."
                )
            states.append(rounded)
        return states

    def _path(self, entry: Dict[str, Any]) -> Path:
        place, state = (_digest(value) for value in (audio_place(entry), file_state(entry)))
        return self.folder / f"{place[:PLACE_DIGITS]}-{state[:STATE_DIGITS]}.npy"


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
