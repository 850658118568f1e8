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

"""Words (or phones) of aligned speech: chooses units, instances and frames, and computes mean hidden states.

The recipe is that of Pasad et al. (2021, section 3; ankitapasad/layerwise-analysis): the 500 most frequent words of
the training set, 15 random instances of each from the development set, the mean over the frames of an instance.

    alignments ------> commonest units --+
    manifest + alignments of it ---------+--> Sample: N instances of K units --> pooled hidden states [L + 1, N, D]
"""

import hashlib
import logging
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from nemo_mshubert.analysis.audio_source import audio_source
from nemo_mshubert.analysis.hidden_states import AllHiddenStates, utterance_groups
from nemo_mshubert.clustering.audio_windows import Utterance, window_features
from nemo_mshubert.data.alignments import Alignments, aligned_lines, check_aligned
from nemo_mshubert.data.manifest import SAMPLE_RATE, Line, iter_manifest, utterance_id
from nemo_mshubert.modules.frames import FRAME_RATE, frame_count
from nemo_mshubert.whole_files import PathLike

logger = logging.getLogger(__name__)

SILENCES = {"", "sp", "sil", "<eps>", "<sil>"}
NOT_A_UNIT = SILENCES | {"spn", "<unk>", "[unk]"}  # noise, unknown
SLACK_SECONDS = 1 / FRAME_RATE  # an alignment has its own time grid and may end so much later than the audio


# --- Units -----------------------------------------------------------------------------------------------------------


def commonest_units(alignments: Alignments, top: Optional[int]) -> List[str]:
    """The ``top`` most frequent units (None: all), most frequent first, ties in alphabetical order; no silence.

    Raises:
        ValueError: there are fewer than ``top``.
    """
    counts = np.zeros(len(alignments.names), np.int64)
    for _, _, unit in alignments.intervals.values():
        np.add.at(counts, unit, 1)
    found = {name: count for name, count in zip(alignments.names, counts) if not _is_silence(name)}
    if top is not None and len(found) < top:
        raise ValueError(
            f"{len(found)} different {alignments.kind}s in the alignments of {len(alignments.intervals)} utterances, "
            f"fewer than the {top} wanted. Lower --top, or give more --train_alignments."
        )
    return sorted(found, key=lambda name: (-found[name], name))[:top]


def _is_silence(name: str) -> bool:
    return name.lower() in NOT_A_UNIT


# --- Instances -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """N instances of units: rows of the first view, in the order of the manifest and of time."""

    kind: str
    names: List[str]  # of the K units that have instances
    unit: np.ndarray  # [N], 0 to K - 1
    utterance: List[str]  # [N], ids
    start: np.ndarray  # [N], seconds
    end: np.ndarray  # [N]
    lines: List[Line]  # of the utterances that have instances
    missing_units: List[str]  # requested units without an instance
    unaligned: int  # utterances of the manifest that have no alignment and are left out

    @property
    def id(self) -> str:
        """16 hex digits that differ for samples with other units, times, audio files or contents of audio files."""
        digest = hashlib.sha256(repr((self.kind, self.names)).encode())
        for _, entry in self.lines:
            digest.update(repr((utterance_id(entry), audio_source(entry))).encode())
        digest.update(repr(self.utterance).encode())
        digest.update(self.unit.tobytes() + self.start.tobytes() + self.end.tobytes())
        return digest.hexdigest()[:16]

    def summary(self) -> Dict[str, Any]:
        """The description of the sample in result files."""
        counts = np.bincount(self.unit).tolist()
        return {
            "id": self.id,
            "units": f"{self.kind}s",
            "instances": len(self.unit),
            "instances_per_unit": dict(zip(self.names, counts)),
            "units_without_instance": self.missing_units,
            "utterances": len(self.lines),
            "utterances_without_alignment": self.unaligned,
        }


def sample_instances(
    manifests: Sequence[PathLike], alignments: Alignments, units: Sequence[str], instances: int, seed: int = 0
) -> Sample:
    """Up to ``instances`` random instances of each of ``units`` from the aligned utterances of ``manifests``.

    Raises:
        ValueError: an aligned utterance occurs twice, none is aligned, none of the units occurs, or an instance
            lies beyond its audio.
    """
    check_aligned(manifests, alignments)
    lines = [line for manifest in manifests for line in iter_manifest(manifest)]
    aligned = list(aligned_lines(lines, alignments))
    if len(aligned) < len(lines):
        _warn_of_unaligned(manifests, lines, alignments)
    ids = [utterance_id(entry) for _, entry in aligned]
    found = _find_instances(alignments, units, ids)
    if not found:
        raise ValueError(f"{_names(manifests)}: none of the {len(units)} {alignments.kind}s wanted is spoken there.")
    rng = np.random.default_rng(seed)
    chosen = []
    names = [name for name in units if name in found]
    for number, name in enumerate(names):
        picks = rng.permutation(len(found[name]))[:instances]
        chosen += [(*found[name][pick], number) for pick in picks]
    chosen.sort()
    place, start, end, unit = (np.array(column) for column in zip(*chosen))
    sample = Sample(
        kind=alignments.kind,
        names=names,
        unit=unit.astype(np.int64),
        utterance=[ids[index] for index in place],
        start=start,
        end=end,
        lines=[aligned[index] for index in np.unique(place)],
        missing_units=[name for name in units if name not in found],
        unaligned=len(lines) - len(aligned),
    )
    _check_durations(sample)
    return sample


def _warn_of_unaligned(manifests: Sequence[PathLike], lines: Sequence[Line], alignments: Alignments) -> None:
    ids = (utterance_id(entry) for _, entry in lines)
    unaligned = [utt_id for utt_id in ids if utt_id not in alignments.intervals]
    logger.warning(
        "%s: %d of %d utterances have no alignment and are left out, such as %s.",
        _names(manifests),
        len(unaligned),
        len(lines),
        unaligned[0],
    )


def _find_instances(alignments: Alignments, units: Sequence[str], aligned: Sequence[str]):
    """``{unit: [(index of the utterance in aligned, start, end), ...]}`` for the units that occur."""
    wanted = set(units)
    found: Dict[str, List[Tuple[int, float, float]]] = defaultdict(list)
    for place, utt_id in enumerate(aligned):
        for start, end, unit in zip(*(column.tolist() for column in alignments.intervals[utt_id])):
            if alignments.names[unit] in wanted:
                found[alignments.names[unit]].append((place, start, end))
    return found


def _check_durations(sample: Sample) -> None:
    """Compare with the durations of the manifest now, rather than after hours of audio."""
    lines = {utterance_id(entry): (where, entry) for where, entry in sample.lines}
    for index, utt_id in enumerate(sample.utterance):
        where, entry = lines[utt_id]
        if entry.get("duration") is not None:
            check_times(sample, index, where, entry["duration"])


def check_times(sample: Sample, index: int, where: str, seconds: float) -> None:
    """Raise ``ValueError`` if an instance does not lie within ``seconds`` of audio (plus one frame of slack)."""
    start, end = sample.start[index], sample.end[index]
    if not 0 <= start <= end <= seconds + SLACK_SECONDS or start >= seconds:
        raise ValueError(
            f"{where}: {sample.utterance[index]}: {sample.kind} {sample.names[sample.unit[index]]!r} is aligned to "
            f"{start:g}-{end:g} s of {seconds:g} s of audio. The alignment belongs to another recording or cut: align "
            "this utterance again, or remove it from the alignments."
        )


def _names(manifests: Sequence[PathLike]) -> str:
    return ", ".join(map(str, manifests))


# --- Frames ----------------------------------------------------------------------------------------------------------


def frame_span(start: float, end: float, num_frames: int, drop_thirds: bool) -> Tuple[int, int]:
    """First frame of ``start`` to ``end`` seconds, and the frame after the last: at least one of ``num_frames``.

        seconds    0.05       0.13
        frames   0    1    2    3    4    5    6    7      floor(0.05 / 0.02) = 2 to ceil(0.13 / 0.02) = 7
                           |=======================|

    ``drop_thirds`` keeps only the middle: it removes floor((frames + 1) / 3) frames at each side. It is for phones,
    whose edges sound like their neighbours. Unlike in the reference code, a time on the grid stays there: 0.58 s is
    frame 29, although 0.58 / 0.02 is 28.999... in floating point.
    """
    first = min(math.floor(round(start * FRAME_RATE, 6)), num_frames - 1)
    last = min(max(math.ceil(round(end * FRAME_RATE, 6)), first + 1), num_frames)
    if drop_thirds:
        dropped = (last - first + 1) // 3
        first, last = first + dropped, max(last - dropped, first + dropped + 1)
    return first, last


# --- Hidden states ---------------------------------------------------------------------------------------------------


def pool_instances(sample: Sample, features: AllHiddenStates) -> np.ndarray:
    """Mean hidden states ``float32 [L + 1, N, D]`` over the frames of each instance, computed from whole utterances.

    Raises:
        FileNotFoundError, ValueError: audio that is missing or unusable, an instance beyond its end, or hidden states
            that are not finite; the message names the line.
    """
    rows = defaultdict(list)
    for index, utt_id in enumerate(sample.utterance):
        rows[utt_id].append(index)
    pooled = np.empty((features.num_states, len(sample.unit), features.width), np.float32)
    with tqdm(total=len(sample.lines), desc="hidden states", unit=" utterances", disable=None) as progress:
        for group in utterance_groups(sample.lines):
            for utterance, states in zip(group, window_features(group, features)):
                _pool_utterance(sample, rows[utterance_id(utterance.entry)], utterance, states.cpu().numpy(), pooled)
            progress.update(len(group))
    return pooled


def _pool_utterance(
    sample: Sample, rows: List[int], utterance: Utterance, states: np.ndarray, pooled: np.ndarray
) -> None:
    """Fill ``rows`` of ``pooled [L + 1, N, D]`` from the ``states [T, (L + 1) D]`` of an utterance."""
    num_samples = len(utterance.samples)
    assert len(states) == frame_count(num_samples)
    for row in rows:
        check_times(sample, row, utterance.where, num_samples / SAMPLE_RATE)
        first, last = frame_span(sample.start[row], sample.end[row], len(states), sample.kind == "phone")
        pooled[:, row] = states[first:last].mean(axis=0, dtype=np.float64).reshape(len(pooled), -1)
