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

"""Cache of CTC log-probabilities: the acoustic model runs once, decoding many times.

A safetensors file: ``log_probs [F, V]`` with the frames of all utterances one after another, ``ends [U]`` (int64, the
frame after each utterance), and in its header the labels, utterance ids and references as JSON. It is memory-mapped.
"""

import json
from pathlib import Path
from typing import Any, Iterable, Iterator, List, Sequence, Tuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from nemo_mshubert.data.manifest import PathLike
from nemo_mshubert.whole_files import atomic_write

DTYPES = {"F16": np.float16, "F32": np.float32}  # those of `write_log_probs`, as safetensors names them


def checked_log_probs(log_probs_TV: Any, num_labels: int, utterance: str) -> np.ndarray:
    """One utterance's log-probabilities (numpy or torch, any float type) as a float32 array ``[T, num_labels + 1]``.

    Raises:
        ValueError: wrong shape, NaN or positive infinity; names the utterance. (A probability of zero, -inf, is fine.)
    """
    if hasattr(log_probs_TV, "detach"):  # a torch tensor; this module does without importing torch
        log_probs_TV = log_probs_TV.detach().float().cpu().numpy()
    array = np.asarray(log_probs_TV, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != num_labels + 1:
        raise ValueError(
            f"{utterance}: log-probabilities of shape {array.shape}, expected [frames, {num_labels + 1}]: "
            f"{num_labels} labels and the CTC blank last. Use the labels of the model that computed them."
        )
    if np.isnan(array).any() or np.isposinf(array).any():
        frame = int(np.argmax((np.isnan(array) | np.isposinf(array)).any(axis=1)))
        raise ValueError(
            f"{utterance}: log-probabilities are NaN or infinite at frame {frame}. Check that the audio is finite and "
            "that the model's weights are (a training that diverged); compute them in float32 or bfloat16."
        )
    return array


def write_log_probs(
    path: PathLike,
    labels: Sequence[str],
    utterances: Iterable[Tuple[str, str, Any]],
    dtype: type = np.float32,
) -> None:
    """Write ``(utterance id, reference, log_probs_TV)`` triples; ``dtype`` float16 halves the file.

    Raises:
        ValueError: no utterances, or a shape or value that `checked_log_probs` refuses.
    """
    ids, references, arrays = [], [], []
    for utterance, reference, log_probs_TV in utterances:
        arrays.append(checked_log_probs(log_probs_TV, len(labels), utterance).astype(dtype))
        ids.append(utterance)
        references.append(reference)
    if not ids:
        raise ValueError(f"{path}: no utterances to write. Is the manifest of this set empty?")
    tensors = {"log_probs": np.concatenate(arrays), "ends": np.cumsum([len(array) for array in arrays])}
    header = {"labels": list(labels), "utterances": ids, "references": references}
    with atomic_write(path, "wb") as stream:
        stream.write(save(tensors, {key: json.dumps(value) for key, value in header.items()}))


class LogProbs:
    """A file of `write_log_probs`, read utterance by utterance.

    Attributes:
        labels: the model's labels, without the blank.
        utterances: ids, in order.
        references: transcripts, in the same order.
    """

    labels: List[str]
    utterances: List[str]
    references: List[str]

    def __init__(self, path: PathLike):
        """Open ``path``; raises ``FileNotFoundError`` or, where it is no such file, ``ValueError``."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file. Write it with scripts/evaluate.py, from a dev manifest.")
        try:
            self._file = safe_open(str(path), framework="numpy")
            header = self._file.metadata()
            self.labels, self.utterances, self.references = (
                json.loads(header[key]) for key in ("labels", "utterances", "references")
            )
            self._ends = self._file.get_tensor("ends").tolist()
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: not a file of log-probabilities ({error}). Write it anew with scripts/evaluate.py."
            ) from error
        self._frames = self._file.get_slice("log_probs")

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> np.ndarray:
        """Log-probabilities ``[T, V]`` of one utterance, in the file's float type; of the last one for -1."""
        index = range(len(self))[index]
        start, end = self._ends[index - 1] if index > 0 else 0, self._ends[index]
        if start == end:  # safetensors refuses an empty slice behind the last frame
            return np.empty((0, self._frames.get_shape()[1]), DTYPES[self._frames.get_dtype()])
        return self._frames[start:end]

    def __iter__(self) -> Iterator[Tuple[str, np.ndarray]]:
        """``(utterance id, log_probs_TV)`` in order."""
        return ((utterance, self[index]) for index, utterance in enumerate(self.utterances))
