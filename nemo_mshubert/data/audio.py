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

"""Read the audio of a manifest line, with errors that name the place."""

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, Tuple

import numpy as np

from nemo_mshubert.data.manifest import SAMPLE_RATE, Line, audio_path, iter_lines
from nemo_mshubert.whole_files import PathLike

if TYPE_CHECKING:
    from lhotse import Recording
    from lhotse.cut import Cut

MAX_DURATION_ERROR = 0.3  # s between file and manifest: allows rounding and the padding of MP3, but not another file


def load_audio(entry: Dict[str, Any], where: str = "") -> np.ndarray:
    """Mono 16 kHz float32 samples ``[S]`` of a manifest entry, read as NeMo's Lhotse loader reads it.

    Other sample rates are resampled by Lhotse.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the audio is unreadable, empty, not finite, has more than one channel, ends before the ``offset``,
            or does not have the line's ``duration``; names the file and the remedy.
    """
    return load_audio_and_rate(entry, where)[0]


def load_audio_and_rate(entry: Dict[str, Any], where: str = "") -> Tuple[np.ndarray, int]:
    """What `load_audio` returns, and the sample rate of the file itself, in Hz."""
    path = entry["audio_filepath"]
    where = f"{where}: {path}" if where else path
    require_audio_file(entry, where)
    recording = read_header(path, where)
    if recording.num_channels != 1:
        raise ValueError(
            f"{where}: {recording.num_channels} channels, expected 1. Mix down or select one channel first."
        )
    cut = cut_of_line(recording, entry, where)
    try:
        samples = cut.load_audio()[0]
    except Exception as error:
        raise ValueError(f"{where}: decoding failed ({error}). Replace the file or remove the line.") from error
    if not np.isfinite(samples).all():
        raise ValueError(f"{where}: holds NaN or infinite samples. Replace the file or remove the line.")
    return samples.astype(np.float32, copy=False), recording.sampling_rate


def read_header(path: PathLike, where: str = "") -> "Recording":
    """The header of an audio file.

    Raises:
        ValueError: it cannot be read; the message begins with ``where`` if given, else with the path.
    """
    from lhotse import Recording  # lhotse takes seconds to import; tools that read manifests alone stay fast

    try:
        return Recording.from_file(path)
    except Exception as error:
        raise ValueError(
            f"{where or path}: cannot be read as audio ({error}). Replace the file or remove the line."
        ) from error


def cut_of_line(recording: "Recording", entry: Dict[str, Any], where: str) -> "Cut":
    """The part of the audio file that a manifest line covers, as a lhotse cut at 16 kHz, after `check_length`."""
    check_length(recording, entry, where)
    offset, duration = entry.get("offset"), entry.get("duration")
    cut = recording.resample(SAMPLE_RATE).to_cut()
    return cut if offset is None else cut.truncate(offset=offset, duration=duration)


def check_length(recording: "Recording", entry: Dict[str, Any], where: str) -> None:
    """Compare a file with its manifest line.

    Raises:
        ValueError: the file is empty, ends before the ``offset``, or is longer or shorter than the ``duration``. A
            truncated WAV is shorter, and libsndfile does not report it.
    """
    if recording.num_samples == 0:
        raise ValueError(f"{where}: the file holds no samples. Remove the line.")
    offset, duration = entry.get("offset"), entry.get("duration")
    if offset is not None and offset >= recording.duration:
        raise ValueError(
            f"{where}: the offset of {offset} s is not within the {recording.duration} s of the file. Correct the "
            "line or remove it."
        )
    found = recording.duration - (offset or 0)
    error = 0 if duration is None else found - duration
    if error < -MAX_DURATION_ERROR or (offset is None and error > MAX_DURATION_ERROR):
        behind = "" if offset is None else f" behind the offset of {offset} s"
        raise ValueError(
            f"{where}: {found:g} s of audio{behind}, the manifest says {duration:g}. Replace the file, or correct the "
            "line or remove it."
        )


def require_audio_file(entry: Dict[str, Any], where: str) -> None:
    """Raise ``FileNotFoundError``, which begins with ``where``, if the audio file of a line does not exist."""
    if not Path(entry["audio_filepath"]).is_file():
        raise FileNotFoundError(f"{where}: {no_audio_file(entry)}")


def no_audio_file(entry: Dict[str, Any]) -> str:
    """The message for a line whose audio file does not exist."""
    if entry.get("shard_id") is None:
        return "no such audio file. Correct the manifest or remove the line."
    return (
        "no such audio file: the line is of a tarred dataset (it has a shard_id), whose audio is in its tars. Give "
        "the manifest that scripts/make_tarred.py was given."
    )


def iter_with_audio(manifest: PathLike) -> Iterator[Line]:
    """Yield what `iter_manifest` yields, and check that the audio file of every line exists, if it is local.

    Stock loaders skip missing files, and stop with an error of their own if a whole batch is missing.

    Raises:
        FileNotFoundError: an audio file is missing; names file and line.
        ValueError: an audio file ends before the ``offset`` of its line, or before the end of its segment.
    """
    header_of = lru_cache(maxsize=100)(read_header)  # segments of one file are close to each other
    for where, entry in iter_lines(manifest):
        path = entry["audio_filepath"]
        entry["audio_filepath"] = audio_path(manifest, entry)
        if "://" not in path:
            _look_for_audio(entry, f"{where}: {path}", header_of)
        yield where, entry


def _look_for_audio(entry: Dict[str, Any], where: str, header_of: Callable[[str], "Recording"]) -> None:
    if not os.path.isfile(entry["audio_filepath"]):
        raise FileNotFoundError(
            f"{where}: {no_audio_file(entry)} Where the audio is in tars, give them too (train_tars)."
        )
    if entry.get("offset") is None:
        return
    try:
        recording = header_of(entry["audio_filepath"])
    except ValueError:  # the loader reports it when it reaches this file
        return
    check_length(recording, entry, where)
