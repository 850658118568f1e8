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

"""Frame labels in a NeMo manifest line: the format, its checks, and the check of a whole manifest.

    {"audio_filepath": ..., "labels": {"maker": "0123456789abcdef",         id of the label maker (k-means file)
                                       "frame_rate": 50, "num_frames": 7, "num_samples": 2500,
                                       "offset": 1.5,                       only if the line itself has an offset
                                       "sets": {"1000": "<base64>"}}}       clusters: little-endian uint16 [num_frames]

Labels are stored with their audio, so they cannot be matched to the wrong utterance by line number. Each line holds
enough to reject labels of other audio, another rate or another k-means (the silent label corruption of fairseq#4521,
#5097 and #5005). Integers are stored, never dictionary entries. `nested` label makers store the finest set only.
"""

import base64
import binascii
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

import numpy as np
from scipy.special import entr
from tqdm import tqdm

from nemo_mshubert.data.audio import cut_of_line, no_audio_file, read_header
from nemo_mshubert.data.manifest import SAMPLE_RATE, iter_manifest, not_empty
from nemo_mshubert.modules.frames import FRAME_RATE, frame_count
from nemo_mshubert.whole_files import PathLike

MAX_CLUSTERS = 65535  # labels are uint16
# In speech the label changes many times a second: two seconds of one label mean silence or a dead label maker.
MIN_CONSTANT_FRAMES = 100
MAX_PROBLEMS_SHOWN = 20
REMEDY = "Make the labels again with scripts/label.py make."

_FIELD_TYPES = {"maker": str, "frame_rate": int, "num_frames": int, "num_samples": int, "sets": dict}


@dataclass(frozen=True, eq=False)
class FrameLabels:
    """Labels of one utterance.

    Attributes:
        maker: id of the label maker.
        num_samples: 16 kHz samples of the labelled audio.
        sets: ``{clusters: uint16 [num_frames]}``.
        offset: seconds into the file, if the manifest line has an offset.
    """

    maker: str
    num_samples: int
    sets: Dict[int, np.ndarray]
    offset: Optional[float] = None

    @property
    def num_frames(self) -> int:
        return frame_count(self.num_samples)

    def to_manifest(self) -> Dict[str, Any]:
        """The ``labels`` field of a manifest line."""
        field = {
            "maker": self.maker,
            "frame_rate": FRAME_RATE,
            "num_frames": self.num_frames,
            "num_samples": self.num_samples,
            "sets": {
                str(clusters): base64.b64encode(labels.astype("<u2").tobytes()).decode("ascii")
                for clusters, labels in self.sets.items()
            },
        }
        return field if self.offset is None else {**field, "offset": self.offset}

    @classmethod
    def from_manifest(
        cls, field: Any, where: str, maker: Optional[str] = None, sets: Sequence[int] = ()
    ) -> "FrameLabels":
        """Read and check the ``labels`` field of a manifest line.

        Args:
            field: value of ``labels``; ``None`` if the line has none.
            where: ``file:line`` or an utterance, for the error message.
            maker: id of the label maker that must have made the labels; None for any.
            sets: numbers of clusters of the label sets that must be present.

        Raises:
            ValueError: anything is missing, malformed, inconsistent or not as required; names ``where`` and the
                remedy.
        """
        _check_field(field, where)
        found = {_clusters(key, where): _decode(text, f"{where}: set {key}") for key, text in field["sets"].items()}
        labels = cls(field["maker"], field["num_samples"], found, field.get("offset"))
        if field["num_frames"] != labels.num_frames:
            raise ValueError(
                f'{where}: "num_frames" is {field["num_frames"]}, but {labels.num_samples} samples have '
                f"{labels.num_frames} frames. {REMEDY}"
            )
        labels.check(where)
        if maker is not None:
            labels._check_maker(maker, where)
        labels._check_sets(sets, where)
        return labels

    def check(self, where: str) -> None:
        """Raise ``ValueError`` unless every set has the full length, is in range and is not constant."""
        for clusters, labels in self.sets.items():
            if len(labels) != self.num_frames:
                raise ValueError(
                    f"{where}: {len(labels)} labels of set {clusters} for {self.num_frames} frames "
                    f"({self.num_samples} samples). {REMEDY}"
                )
            if not self.num_frames:
                raise ValueError(f"{where}: {self.num_samples} samples are shorter than one frame. Remove the line.")
            highest = int(labels.max())
            if highest >= clusters:
                raise ValueError(f"{where}: label {highest} in a set of {clusters} clusters. {REMEDY}")
            if len(labels) >= MIN_CONSTANT_FRAMES and highest == labels.min():
                raise ValueError(
                    f"{where}: all {len(labels)} labels of set {clusters} are {highest}. The audio is silent (remove "
                    "the line), or the label maker is dead (then other lines fail too: fit the k-means again)."
                )

    def check_audio(self, num_samples: int, offset: Optional[float], where: str) -> None:
        """Raise ``ValueError`` unless the labels belong to ``num_samples`` of 16 kHz audio at ``offset`` seconds."""
        if (self.num_samples, self.offset) != (num_samples, offset):
            raise ValueError(
                f"{where}: labels of {self.num_samples} samples at offset {self.offset}, audio of {num_samples} "
                f"samples at offset {offset}: the audio or the line was changed after labelling. {REMEDY}"
            )

    def crop(self, start_frame: int, num_frames: int) -> Dict[int, np.ndarray]:
        """Labels of frames ``[start_frame, start_frame + num_frames)``: ``{clusters: int64 [num_frames]}``, a copy;
        raises ``ValueError`` if the utterance has fewer frames."""
        end_frame = start_frame + num_frames
        if start_frame < 0 or num_frames < 0 or end_frame > self.num_frames:
            raise ValueError(f"frames {start_frame} to {end_frame} of an utterance of {self.num_frames} frames.")
        return {clusters: labels[start_frame:end_frame].astype(np.int64) for clusters, labels in self.sets.items()}

    def _check_maker(self, expected: str, where: str) -> None:
        if self.maker != expected:
            raise ValueError(
                f"{where}: labels of label maker {self.maker}, expected {expected}. Labels of two k-means have "
                "nothing in common: use the k-means file these labels were made with, or make them again."
            )

    def _check_sets(self, expected: Sequence[int], where: str) -> None:
        missing = [clusters for clusters in expected if clusters not in self.sets]
        if missing:
            raise ValueError(
                f"{where}: the label sets {missing} are missing, found {sorted(self.sets)}. Label the manifest again "
                "with scripts/label.py and the label maker of this model."
            )


def check_labels_of(manifest: PathLike, maker: str, sets: Sequence[int], lines: Optional[int] = None) -> None:
    """Check the labels in the first ``lines`` (None: all) of a manifest, without the audio.

    Raises:
        ValueError: labels are missing, malformed, from another label maker, or lack one of ``sets``; names the line.
    """
    for where, entry in itertools.islice(iter_manifest(manifest), lines):
        FrameLabels.from_manifest(entry.get("labels"), where, maker, sets)


def cluster_usage(counts: np.ndarray) -> Dict[str, Any]:
    """Entropy (bits) and numbers of used and dead (never used) clusters, from label counts ``[clusters]``."""
    used = int(np.count_nonzero(counts))
    return {
        "entropy_bits": float(entr(counts / max(counts.sum(), 1)).sum() / np.log(2)),
        "used_clusters": used,
        "dead_clusters": len(counts) - used,
    }


def check_labelled_manifest(path: PathLike, maker: Optional[str] = None) -> Dict[str, Any]:
    """Check every line of a labelled manifest, also against the audio headers.

    Args:
        path: the manifest.
        maker: id of the label maker that all lines must have; ``None`` takes the id of the first line.

    Returns:
        ``maker``, ``utterances``, ``frames``, ``hours``, and ``sets``: `cluster_usage` of each stored set.

    Raises:
        FileNotFoundError: no such manifest, or the manifest of a tarred dataset.
        ValueError: lists the problems as ``file:line: ...``, the first 20 in full.
    """
    problems: List[str] = []
    num_problems = utterances = samples = frames = 0
    counts: Dict[int, np.ndarray] = {}
    lines = not_empty(_lines_or_problem(path), path)
    for where, entry in tqdm(lines, desc="checking labels", unit=" utterances", disable=None):
        try:
            labels = _check_line(where, entry, maker, sorted(counts))
        except ValueError as error:
            num_problems += 1
            problems += [str(error)] if num_problems <= MAX_PROBLEMS_SHOWN else []
            continue
        maker = labels.maker
        for clusters, stream in labels.sets.items():
            counts[clusters] = counts.get(clusters, 0) + np.bincount(stream, minlength=clusters)
        utterances, samples, frames = utterances + 1, samples + labels.num_samples, frames + labels.num_frames
    if num_problems:
        hidden = num_problems - len(problems)
        more = f"\n... and {hidden} more" if hidden else ""
        raise ValueError(f"{path}: {num_problems} lines with a problem:\n" + "\n".join(problems) + more)
    return {
        "maker": maker,
        "utterances": utterances,
        "frames": frames,
        "hours": samples / SAMPLE_RATE / 3600,
        "sets": {clusters: cluster_usage(counts[clusters]) for clusters in sorted(counts, reverse=True)},
    }


def _check_field(field: Any, where: str) -> None:
    if not isinstance(field, dict):
        raise ValueError(f'{where}: no "labels" object. {REMEDY}')
    for name, kind in _FIELD_TYPES.items():
        if name not in field:
            raise ValueError(f'{where}: "labels" lacks "{name}". {REMEDY}')
        if type(field[name]) is not kind:  # isinstance would take true for a number
            raise ValueError(
                f'{where}: "{name}" of "labels" is {field[name]!r:.60}, expected {kind.__name__}. {REMEDY}'
            )
    if type(field.get("offset", 0.0)) not in (int, float):
        raise ValueError(f'{where}: "offset" of "labels" is {field["offset"]!r}, expected seconds. {REMEDY}')
    if not field["sets"]:
        raise ValueError(f'{where}: "sets" of "labels" is empty. {REMEDY}')
    if field["frame_rate"] != FRAME_RATE:
        raise ValueError(
            f"{where}: labels at {field['frame_rate']} Hz, expected {FRAME_RATE} Hz. "
            "Make them with scripts/label.py make, which takes every second MFCC frame."
        )


def _clusters(key: str, where: str) -> int:
    if not (key.isdecimal() and 1 <= int(key) <= MAX_CLUSTERS):
        raise ValueError(f"{where}: label set {key!r} is not a number of clusters from 1 to {MAX_CLUSTERS}. {REMEDY}")
    return int(key)


def _decode(text: Any, where: str) -> np.ndarray:
    """``uint16 [T]``, read-only: a view of the decoded bytes."""
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype="<u2")
    except (binascii.Error, TypeError, ValueError) as error:
        raise ValueError(f"{where}: labels are not base64 of 16-bit integers ({error}). {REMEDY}") from error


def _lines_or_problem(path: PathLike) -> Iterator:
    """`iter_manifest`, with the error of a broken line in place of its entry; no line after it can be read."""
    try:
        yield from iter_manifest(path)
    except ValueError as error:
        yield "", error


def _check_line(where: str, entry: Any, maker: Optional[str], sets: List[int]) -> FrameLabels:
    """The labels of a line, checked alone, against ``maker`` and ``sets`` of the previous lines, and against the
    audio."""
    if isinstance(entry, ValueError):
        raise entry
    labels = FrameLabels.from_manifest(entry.get("labels"), where, maker)
    if sets and sorted(labels.sets) != sets:
        raise ValueError(f"{where}: label sets {sorted(labels.sets)}, the lines before have {sets}. {REMEDY}")
    labels.check_audio(_header_samples(entry, where), entry.get("offset"), where)
    return labels


def _header_samples(entry: Dict[str, Any], where: str) -> int:
    """The number of 16 kHz samples that `load_audio` would return, from the header of the audio file alone."""
    path = entry["audio_filepath"]
    if not Path(path).is_file():
        # in a tarred dataset this holds for all lines: a FileNotFoundError ends the check at the first
        kind = ValueError if entry.get("shard_id") is None else FileNotFoundError
        raise kind(f"{where}: {path}: {no_audio_file(entry)}")
    return cut_of_line(read_header(path, f"{where}: {path}"), entry, where).num_samples
