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

"""Stream the audio of a manifest and compute its features, for labelling, k-means and analyses."""

from typing import Callable, Iterable, Iterator, List, NamedTuple, Optional, Union

import numpy as np
import torch
from torch import Tensor

from nemo_mshubert.clustering.features import FeatureMaker
from nemo_mshubert.data.audio import load_audio_and_rate
from nemo_mshubert.data.manifest import SAMPLE_RATE, Entry, Line, utterance_id
from nemo_mshubert.data.read_ahead import read_ahead
from nemo_mshubert.modules.frames import RECEPTIVE_FIELD_SAMPLES

WINDOW_SECONDS = 600  # of audio; within it, feature makers batch utterances of similar length
LeaveOut = Callable[[Entry, str], None]  # entry, reason


class Utterance(NamedTuple):
    where: str  # "file:line"
    entry: Entry
    samples: np.ndarray  # float32 [S], 16 kHz
    file_rate: Optional[int] = None  # Hz, of the audio file itself


def audio_windows(lines: Iterable[Line], leave_out: Optional[LeaveOut] = None) -> Iterator[List[Utterance]]:
    """Load the audio of lines, in order, in windows of at least `WINDOW_SECONDS`.

    Args:
        leave_out: called with the entry of a line whose audio is missing or unusable, and with the reason. With None,
            such a line is an error.
    """
    window: List[Utterance] = []
    window_samples = 0
    for utterance in read_ahead(lines, _load_or_reason, lambda line: line[1].get("duration") or 0):
        if isinstance(utterance, Exception):
            if leave_out is None:
                raise utterance
            leave_out(utterance.entry, str(utterance))
            continue
        window.append(utterance)
        window_samples += len(utterance.samples)
        if window_samples >= WINDOW_SECONDS * SAMPLE_RATE:
            yield window
            window, window_samples = [], 0
    if window:
        yield window


def window_features(window: List[Utterance], features: FeatureMaker) -> List[Tensor]:
    """Features ``[T, D]`` of each utterance, on their device; raises ``ValueError`` if they are not finite."""
    outputs = features([utterance.samples for utterance in window])
    are_finite = torch.stack([output.isfinite().all() for output in outputs]).tolist()  # one wait for the GPU
    for utterance, is_finite in zip(window, are_finite):
        if not is_finite:
            raise ValueError(
                f"{utterance.where}: {features.name} of {utterance_id(utterance.entry)} are not finite. If other "
                "lines fail too the encoder is broken: train it again; else remove the line."
            )
    return outputs


def _load(where: str, entry: Entry) -> Utterance:
    samples, file_rate = load_audio_and_rate(entry, where)
    if len(samples) < RECEPTIVE_FIELD_SAMPLES:
        raise ValueError(
            f"{where}: {utterance_id(entry)}: {len(samples)} samples, fewer than the {RECEPTIVE_FIELD_SAMPLES} of one "
            "frame. Remove the line."
        )
    return Utterance(where, entry, samples, file_rate)


def _load_or_reason(line: Line) -> Union[Utterance, Exception]:
    """The utterance, or the error with the entry of its line as an attribute."""
    try:
        return _load(*line)
    except (ValueError, FileNotFoundError) as error:
        error.entry = line[1]
        return error
