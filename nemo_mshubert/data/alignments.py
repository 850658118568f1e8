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

"""Time-aligned words or phones: how they are read, and which utterances of a manifest have them.

The unit of frame ``t`` is the one at its centre, ``(320 t + 200) / 16000`` seconds.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from nemo_mshubert.data.manifest import SAMPLE_RATE, Line, distinct_utterances, iter_manifest, not_empty, utterance_id
from nemo_mshubert.data.maybe_gzip import open_maybe_gzip
from nemo_mshubert.data.textgrid import read_textgrid
from nemo_mshubert.modules.frames import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES
from nemo_mshubert.whole_files import PathLike

ARPABET_STRESS = re.compile(r"(?<=^[A-Z]{2})[012]$")  # the "0" of "AH0"
Intervals = Tuple[np.ndarray, np.ndarray, np.ndarray]  # start [N] and end [N] in seconds, unit index [N]


@dataclass(frozen=True)
class Alignments:
    """Time-aligned units. ``kind`` is "phone" or "word", ``names`` are those of the units, ``intervals`` are given by
    utterance id."""

    kind: str
    names: List[str]
    intervals: Dict[str, Intervals]

    def frame_units(self, utt_id: str, num_frames: int) -> Optional[np.ndarray]:
        """Unit index ``[num_frames]``, -1 outside any unit; ``None`` if the utterance is not aligned."""
        if utt_id not in self.intervals:
            return None
        start, end, unit = self.intervals[utt_id]
        centre = (HOP_SAMPLES * np.arange(num_frames) + RECEPTIVE_FIELD_SAMPLES // 2) / SAMPLE_RATE
        index = np.searchsorted(start, centre, side="right") - 1
        return np.where((index >= 0) & (centre < end[index]), unit[index], -1)

    def digest(self) -> str:
        """Hexadecimal digest, which differs between alignments with other units, utterances or times."""
        digest = hashlib.sha256(repr((self.kind, self.names)).encode())
        for utt_id, columns in sorted(self.intervals.items()):
            digest.update(utt_id.encode())
            for column in columns:
                digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_alignments(paths: Sequence[PathLike], kind: Optional[str] = None) -> Alignments:
    """Alignments from all ``paths``: JSONL (.gz), TextGrids, or folders that hold TextGrids at any depth.

    A line of JSONL is ``{"utt_id": ..., "phones": [{"phone", "start", "end"}]}``, or the same with "words". The
    utterance id of a TextGrid is its file name without suffix. Its tier is called "words" or "phones", or a name that
    ends in " - words", as MFA names the tier of a speaker. The stress of ARPAbet phones is dropped.

    Args:
        kind: "phone" or "word"; by default the kind in the first file, or phones if that is a TextGrid with both.

    Raises:
        FileNotFoundError: no such file, or a folder without TextGrids.
        ValueError: a file is malformed (names the line) or of the other kind, or an utterance is aligned twice.
    """
    index: Dict[str, int] = {}
    merged: Dict[str, Intervals] = {}
    for path in map(Path, paths):
        for source, alignments in _sources(path, kind):
            kind = kind or alignments.kind
            if alignments.kind != kind:
                raise ValueError(
                    f"{source}: aligns {alignments.kind}s, expected {kind}s. Give another file; analyze_cca.py takes "
                    "either (--units)."
                )
            names = [ARPABET_STRESS.sub("", name) if kind == "phone" else name for name in alignments.names]
            numbers = np.array([index.setdefault(name, len(index)) for name in names])
            for utt_id, (start, end, unit) in alignments.intervals.items():
                if utt_id in merged:
                    raise ValueError(f"{source}: {utt_id} is aligned twice. Name each file of alignments once.")
                merged[utt_id] = start, end, numbers[unit]
    return Alignments(kind, list(index), merged)


def _sources(path: Path, kind: Optional[str]) -> Iterator[Tuple[Path, Alignments]]:
    """The alignments of the one JSONL file, or of each TextGrid."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such alignments. Expected JSONL (.gz), a TextGrid or a folder of them.")
    if path.is_dir() or path.suffix.lower() == ".textgrid":
        grids = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() == ".textgrid")
        if not grids:
            raise FileNotFoundError(f"{path}: the folder holds no TextGrid.")
        yield from ((grid, _read_textgrid(grid, kind)) for grid in grids)
    else:
        yield path, _read_jsonl(path)


def _read_jsonl(path: Path) -> Alignments:
    """Alignments of a JSONL file, whose lines must all have the same kind and different utterances."""
    names: Dict[str, int] = {}
    intervals: Dict[str, Intervals] = {}
    line_of: Dict[str, int] = {}
    kind = None
    with open_maybe_gzip(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                entry = json.loads(line)
                kind = kind or ("phone" if "phones" in entry else "word")
                units = sorted(entry[f"{kind}s"], key=lambda unit: unit["start"])
                start, end = (np.array([unit[key] for unit in units], np.float64) for key in ("start", "end"))
                index = np.array([names.setdefault(unit[kind], len(names)) for unit in units], np.int64)
                utt_id, first = entry["utt_id"], line_of.setdefault(entry["utt_id"], number)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f'{path}:{number}: not an alignment like the first line\'s ({error!r}). Expected {{"utt_id": ..., '
                    f'"{kind or "phone"}s": [{{"{kind or "phone"}": ..., "start": seconds, "end": seconds}}]}}.'
                ) from error
            if first != number:
                raise ValueError(
                    f"{path}:{number}: {utt_id} is aligned in line {first} already. Remove one of the lines, or give "
                    'different utterances different "utt_id", here and in the manifest.'
                )
            if len(units):
                intervals[utt_id] = start, end, index
    if not intervals:
        raise ValueError(f"{path}: no aligned utterance.")
    return Alignments(kind, list(names), intervals)


def _read_textgrid(path: Path, kind: Optional[str]) -> Alignments:
    tiers = read_textgrid(path)
    if kind is None:
        kind = "phone" if _tiers_of("phone", tiers) else "word"
    wanted = _tiers_of(kind, tiers)
    if not wanted:
        raise ValueError(f"{path}: no tier {kind + 's'!r} among {sorted(tiers)}. Align with MFA, or rename the tier.")
    intervals = sorted(interval for name in wanted for interval in tiers[name])
    names = {text: number for number, text in enumerate(dict.fromkeys(text for _, _, text in intervals))}
    columns = (
        np.array([start for start, _, _ in intervals], np.float64),
        np.array([end for _, end, _ in intervals], np.float64),
        np.array([names[text] for _, _, text in intervals], np.int64),
    )
    return Alignments(kind, list(names), {path.stem: columns} if intervals else {})


def _tiers_of(kind: str, names: Iterable[str]) -> List[str]:
    return [name for name in names if name.lower() == f"{kind}s" or name.lower().endswith(f" - {kind}s")]


# --- Utterances of a manifest ----------------------------------------------------------------------------------------


def aligned_lines(lines: Iterable[Line], alignments: Alignments) -> Iterator[Line]:
    """The lines whose utterances are aligned; raises ``ValueError`` if two of them share one alignment."""
    return distinct_utterances(line for line in lines if utterance_id(line[1]) in alignments.intervals)


def check_aligned(manifests: Sequence[PathLike], alignments: Alignments) -> None:
    """Raise ``ValueError`` if no utterance is aligned, or if two of them share one alignment."""
    if sum(1 for _ in aligned_lines(_lines_of(manifests), alignments)):
        return
    ids = [utterance_id(entry) for _, entry in _lines_of(manifests)]
    raise ValueError(
        f"{', '.join(map(str, manifests))}: none of {len(ids)} utterances is aligned. Ids of the manifest look like "
        f"{ids[0]!r}, of the alignments like {next(iter(alignments.intervals), None)!r}; give the manifest such ids "
        'as "utt_id".'
    )


def _lines_of(manifests: Sequence[PathLike]) -> Iterator[Line]:
    return (line for manifest in manifests for line in not_empty(iter_manifest(manifest), manifest))
