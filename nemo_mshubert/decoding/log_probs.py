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

"""Cache of CTC log-probabilities: the acoustic model runs once, and decoding many times.

The cache is a safetensors file. It holds ``log_probs [F, V]``, the concatenated frames of all utterances, and
``ends [U]`` (int64), the index of the frame after each utterance. Its header holds the labels, utterance ids and
references as JSON.
"""

import json
from pathlib import Path
from typing import Any, Iterable, List, NamedTuple, Sequence, Tuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from nemo_mshubert.whole_files import PathLike, atomic_write


def checked_log_probs(log_probs_TV: Any, num_labels: int, utterance: str) -> np.ndarray:
    """One utterance's log-probabilities (numpy or torch, any float type) as a float32 array ``[T, num_labels + 1]``.

    Raises:
        ValueError: wrong shape, NaN or positive infinity; names the utterance. (-inf, a probability of zero, is
            allowed.)
    """
    if hasattr(log_probs_TV, "detach"):  # a torch tensor; this module need not import torch
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


def write_log_probs(path: PathLike, labels: Sequence[str], utterances: Iterable[Tuple[str, str, Any]]) -> None:
    """Write ``(utterance id, reference, log_probs_TV)`` triples.

    Raises:
        ValueError: there are no utterances, or `checked_log_probs` rejects a shape or value.
    """
    checked = [(name, text, checked_log_probs(array, len(labels), name)) for name, text, array in utterances]
    if not checked:
        raise ValueError(f"{path}: no utterances to write. Is the manifest of this set empty?")
    ids, references, arrays = zip(*checked)
    tensors = {"log_probs": np.concatenate(arrays), "ends": np.cumsum([len(array) for array in arrays])}
    header = {"labels": list(labels), "utterances": ids, "references": references}
    with atomic_write(path, "wb") as stream:
        stream.write(save(tensors, {key: json.dumps(value) for key, value in header.items()}))


class LogProbs(NamedTuple):
    """The content of a file that `write_log_probs` has written.

    Attributes:
        labels: the model's labels, without the blank.
        utterances: ids, in order.
        references: transcripts, in the same order.
        log_probs: for each utterance, float32 ``[T, V]``.
    """

    labels: List[str]
    utterances: List[str]
    references: List[str]
    log_probs: List[np.ndarray]


def read_log_probs(path: PathLike) -> LogProbs:
    """Read a file of `write_log_probs`; raises ``FileNotFoundError``, or ``ValueError`` for another kind of file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file. Write it with scripts/evaluate.py, from a dev manifest.")
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata()
            texts = [json.loads(header[key]) for key in ("labels", "utterances", "references")]
            frames, ends = file.get_tensor("log_probs"), file.get_tensor("ends")
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a file of log-probabilities ({error}). Write it anew with scripts/evaluate.py."
        ) from error
    return LogProbs(*texts, np.split(frames, ends[:-1]))
