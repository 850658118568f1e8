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

"""NeMo manifests of any folder of recordings, without transcripts: the first step of pre-training on your own data.

    <data>/radio/2024/monday.mp3    an hour     -> 231 lines of 15.6 s, radio/2024/monday-0000 to .../monday-0230
    <data>/calls/7.wav              12 s        -> one line, calls/7

Long files are cut because pre-training takes one crop, of at most 15.6 s, from every line in an epoch. From a line of
one hour it would use 15.6 s per epoch, no more than from a line of 15.6 s.
"""

import hashlib
import logging
import math
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from tqdm import tqdm

from nemo_mshubert.data.audio_files import find_audio
from nemo_mshubert.data.audio_header import AudioHeader, read_audio_header
from nemo_mshubert.data.manifest import SAMPLE_RATE, Entry, manifest_lines
from nemo_mshubert.data.mono_mix import mix_to_mono
from nemo_mshubert.data.problems import report_problems
from nemo_mshubert.whole_files import PathLike, atomic_write

logger = logging.getLogger(__name__)

SEGMENT_SECONDS = 15.6  # longest line: the crop that base takes from a line
DEV_SHARE = 0.01  # of the files


class Recording(NamedTuple):
    """One audio file of the folder."""

    path: Path  # named in the manifest: the file, or its mix
    name: str  # path of the file below the folder
    utt_id: str
    header: AudioHeader


def utterance_ids(names: Sequence[str]) -> List[str]:
    """Paths without their suffix. The suffix is kept if the shortened path is also that of another file, with or
    without suffix, or could be the id of a segment of another file."""
    stems = [os.path.splitext(name)[0] for name in names]
    counts = Counter([*stems, *names])

    def is_unique(stem: str) -> bool:
        whole = re.sub(r"-\d{4,}$", "", stem)  # the file of which this could be a segment
        return counts[stem] == 1 and (whole == stem or not counts[whole])

    return [stem if is_unique(stem) else name for stem, name in zip(stems, names)]


def read_folder(data: Path, workers: int) -> Tuple[List[Recording], List[str]]:
    """All recordings in ``data`` with at least one frame, according to their headers, and complaints about broken
    files."""
    names, problems = find_audio(data)
    recordings: List[Recording] = []
    headers = _in_threads(lambda name: _read_header(data / name), names, workers, "reading")
    for name, utt_id, (header, complaint) in zip(names, utterance_ids(names), headers):
        if header is None:
            problems.append(f"{data / name}: {complaint}")
        else:
            recordings.append(Recording(data / name, name, utt_id, header))
    return recordings, problems


def _read_header(path: Path) -> AudioHeader:
    from nemo_mshubert.modules.frames import RECEPTIVE_FIELD_SAMPLES  # imports torch; --help stays quick

    if not path.is_file():
        raise ValueError("no file, but a link that leads nowhere, or a pipe")
    header = read_audio_header(path)
    if header.frames * SAMPLE_RATE < RECEPTIVE_FIELD_SAMPLES * header.sampling_rate:
        raise ValueError(
            f"{header.frames} samples at {header.sampling_rate} Hz, shorter than one frame, the "
            f"{RECEPTIVE_FIELD_SAMPLES} samples at {SAMPLE_RATE} Hz that a label is of"
        )
    return header


def mono_recordings(
    recordings: Sequence[Recording], mono: Optional[Path], workers: int
) -> Tuple[List[Recording], List[str]]:
    """The recordings with one channel, mixes below ``mono`` in place of those with several, and complaints about those
    that cannot be used."""

    several = [each for each in recordings if each.header.channels > 1]
    if mono is None:
        remedy = "expected 1. Mix down, or give a folder for mixes as --mono"
        problems = [f"{each.path}: {each.header.channels} channels, {remedy}" for each in several]
        return [each for each in recordings if each.header.channels == 1], problems

    def mix(recording: Recording) -> Recording:
        path = mono / f"{recording.utt_id}.flac"
        return recording._replace(path=path, header=mix_to_mono(recording.path, path, recording.header))

    mixes = dict(zip(several, _in_threads(mix, several, workers, "mixing")))
    found = [mixes.get(each, (each, ""))[0] for each in recordings]
    problems = [f"{each.path}: {complaint}" for each, (mixed, complaint) in mixes.items() if mixed is None]
    return [each for each in found if each is not None], problems


def _in_threads(
    function: Callable[[Any], Any], items: Sequence[Any], workers: int, title: str
) -> List[Tuple[Optional[Any], str]]:
    """``(result, "")`` for each item, in order, or ``(None, text of its ValueError)``; with a progress bar."""

    def attempt(item: Any) -> Tuple[Optional[Any], str]:
        try:
            return function(item), ""
        except ValueError as error:
            return None, str(error)

    with ThreadPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(attempt, items), total=len(items), desc=title, unit="file", disable=not items))


def entries_of(recording: Recording, segment_seconds: Optional[float]) -> List[Entry]:
    """Lines of a recording: one, or pieces of equal length if it is longer than ``segment_seconds``.

    Pieces have no ``sampling_rate``: with that field, NeMo takes the duration of a segment to be that of the file.
    """
    frames, rate, path = recording.header.frames, recording.header.sampling_rate, str(recording.path)
    count = math.ceil(recording.header.seconds / segment_seconds) if segment_seconds else 1
    if count == 1:
        whole = {"audio_filepath": path, "duration": recording.header.seconds, "utt_id": recording.utt_id}
        # With the rate, NeMo need not open every file before training, and a file that breaks later is skipped.
        return [{**whole, "sampling_rate": rate}]
    ends = [frames * piece // count for piece in range(count + 1)]  # in samples of the file
    return [
        {
            "audio_filepath": path,
            "offset": start / rate,
            "duration": (end - start) / rate,
            "utt_id": f"{recording.utt_id}-{piece:04d}",
        }
        for piece, (start, end) in enumerate(zip(ends, ends[1:]))
    ]


def place_in_split(name: str) -> float:
    """A number from 0 to 1, from a hash of the path: a file stays on its side when others are added."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def split(recordings: Sequence[Recording], dev_share: float) -> Tuple[List[Recording], List[Recording]]:
    """Recordings of train and of dev; each file is on one side only.

    Raises:
        ValueError: one side is empty.
    """
    places = [place_in_split(each.name) for each in recordings]
    dev = [each for each, place in zip(recordings, places) if place < dev_share]
    if len(recordings) < 2:
        raise ValueError(f"{len(recordings)} file cannot be shared by train and dev. Leave out --dev_output.")
    if not dev:
        least = math.ceil(min(places) * 1e4 + 1e-6) / 1e4
        raise ValueError(
            f"none of {len(recordings)} files falls to dev with --dev_share {dev_share:g}. Give --dev_share {least:g} "
            "or more."
        )
    if len(dev) == len(recordings):
        raise ValueError(
            f"all of {len(recordings)} files fall to dev with --dev_share {dev_share:g}. Give a smaller one."
        )
    return [each for each, place in zip(recordings, places) if place >= dev_share], dev


def prepare_folder(
    data: PathLike,
    output: PathLike,
    dev_output: Optional[PathLike] = None,
    dev_share: float = DEV_SHARE,
    segment_seconds: Optional[float] = SEGMENT_SECONDS,
    mono: Optional[PathLike] = None,
    workers: int = 8,
    skip_broken: bool = False,
) -> Dict[str, List[Entry]]:
    """Write a manifest of all recordings below ``data``; with ``dev_output`` also a dev manifest, which gets the share
    ``dev_share`` of the files.

    Files longer than ``segment_seconds`` are cut into pieces, one per line, unless it is 0 or None. All problems with
    the files are listed in ``problems.txt`` beside ``output``. Several channels are a problem unless ``mono`` is
    given: then they are mixed down to files below that folder, which are kept for the next call.

    Returns:
        manifest -> its entries.

    Raises:
        FileNotFoundError: no audio in ``data``.
        ValueError: there are problems and ``skip_broken`` is not set, an argument is wrong, or one of the manifests
            would be empty. No manifest is written then.
    """
    _check_arguments(Path(data), output, dev_output, dev_share, segment_seconds, mono)
    beside = Path(output).parent
    recordings, problems = read_folder(Path(data), workers)
    if mono is not None and not skip_broken:
        report_problems(beside, problems, skip_broken)  # before hours of mixing
    recordings, more = mono_recordings(recordings, None if mono is None else Path(mono), workers)
    report_problems(beside, problems + more, skip_broken)
    if not recordings:
        raise ValueError(f"{data}: no file is left. See {beside / 'problems.txt'}.")
    sides = [recordings] if dev_output is None else split(recordings, dev_share)
    outputs = [str(path) for path in (output, dev_output) if path is not None]
    manifests = {
        path: [entry for recording in side for entry in entries_of(recording, segment_seconds)]
        for path, side in zip(outputs, sides)
    }
    write_manifests(manifests)
    return manifests


def _check_arguments(
    data: Path,
    output: PathLike,
    dev_output: Optional[PathLike],
    dev_share: float,
    segment_seconds: Optional[float],
    mono: Optional[PathLike],
) -> None:
    """Check the arguments before work that may take hours."""
    outputs = [Path(path) for path in (output, dev_output) if path is not None]
    for path in outputs:
        if path.is_dir():
            raise ValueError(f"{path}: a folder. Name a file in it.")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise ValueError(f"{output}: both manifests would be this file. Give another --dev_output.")
    if not 0 < dev_share < 1:
        raise ValueError(f"--dev_share {dev_share:g}: expected a share of the files, between 0 and 1.")
    if segment_seconds and not 1 <= segment_seconds < math.inf:
        raise ValueError(f"--segment_seconds {segment_seconds:g}: expected 1 or more, or 0 for whole files.")
    if mono is not None and Path(mono).resolve().is_relative_to(data.resolve()):
        raise ValueError(
            f"{mono}: lies in {data}, where the next call would take the mixes for recordings. Give another --mono."
        )


def write_manifests(manifests: Dict[str, List[Entry]]) -> None:
    """Write all manifests, or none."""
    with ExitStack() as stack:
        for path, entries in manifests.items():
            stream = stack.enter_context(atomic_write(path))
            stream.writelines(manifest_lines(path, entries))
            stream.flush()  # a full disk is noticed now, before the first manifest has its name
        for path in list(manifests)[:-1]:  # the last one gets its name first: a kill leaves no old one beside it
            Path(path).unlink(missing_ok=True)
