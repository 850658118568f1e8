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

"""Mix recordings with several channels down to one: the mean of the channels, as FLAC at the same rate."""

from pathlib import Path

import numpy as np
import soundfile

from nemo_mshubert.data.audio_header import AudioHeader, read_audio_header
from nemo_mshubert.whole_files import atomic_path

BLOCK_FRAMES = 1 << 20  # read at once: recordings may last hours
COMPARED_FRAMES = 1 << 16
ROUNDING = 1e-4  # to 16 bits
MORE_THAN_16_BITS = ("PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAC_20", "ALAC_24", "ALAC_32")


def mix_to_mono(source: Path, target: Path, header: AudioHeader) -> AudioHeader:
    """Write the mean of the channels of ``source`` to ``target``, unless it exists; ``header`` is that of ``source``.

    Returns:
        the header of ``target``.

    Raises:
        ValueError: ``source`` is broken, or ``target`` exists but is not its mix.
        OSError: ``target`` cannot be written.
    """
    mixed = header._replace(channels=1)
    if target.exists():
        if not (_has_header(target, mixed) and _begins_as_mix(target, source, mixed)):
            raise ValueError(f"{target} is there already, and is not its mix. Remove that, or give another --mono")
        return mixed
    with atomic_path(target) as temporary:
        with soundfile.SoundFile(source) as channels, _open_flac(temporary, channels) as mono:
            for start in range(0, header.frames, BLOCK_FRAMES):
                block = _read(channels, min(BLOCK_FRAMES, header.frames - start))
                _write(mono, block.mean(axis=1), target)
        if not _has_header(temporary, mixed):  # the encoder reports no full disk at its last block
            raise OSError(f"{target}: could not be written whole. Is the disk full?")
    return mixed


def _has_header(path: Path, header: AudioHeader) -> bool:
    try:
        return read_audio_header(path) == header
    except ValueError:
        return False


def _begins_as_mix(target: Path, source: Path, mixed: AudioHeader) -> bool:
    """Compare samples, since clips with the same name and length in another folder have the same header."""
    with soundfile.SoundFile(source) as channels, soundfile.SoundFile(target) as mono:
        count = min(COMPARED_FRAMES, mixed.frames)
        expected, found = _read(channels, count).mean(axis=1), _read(mono, count)[:, 0]
    loud = np.abs(expected) >= 1 - ROUNDING  # possible in lossy formats; FLAC cannot hold more than 1
    return bool((loud | (np.abs(expected - found) < ROUNDING)).all())


def _open_flac(path: Path, channels: soundfile.SoundFile) -> soundfile.SoundFile:
    subtype = "PCM_24" if channels.subtype in MORE_THAN_16_BITS else "PCM_16"
    return soundfile.SoundFile(path, "w", channels.samplerate, 1, subtype, format="FLAC")


def _read(audio: soundfile.SoundFile, frames: int) -> np.ndarray:
    """The next samples, ``float64 [frames, channels]``."""
    try:
        block = audio.read(frames, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"broken or cut off ({error})") from error
    if len(block) < frames:
        raise ValueError("cut off")
    if not np.isfinite(block).all():
        raise ValueError("NaN or infinite samples")
    return block


def _write(audio: soundfile.SoundFile, samples: np.ndarray, target: Path) -> None:
    """Write samples; errors are raised as ``OSError``, unlike in `_read`, since a full disk is no fault of the
    recording."""
    try:
        audio.write(samples)
    except soundfile.LibsndfileError as error:
        raise OSError(f"{target}: could not be written ({error}). Is the disk full?") from error
