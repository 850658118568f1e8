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

"""Read the header of an audio file, and check that the file has its end."""

from pathlib import Path
from typing import NamedTuple

import soundfile


class AudioHeader(NamedTuple):
    frames: int  # samples of one channel
    sampling_rate: int  # Hz
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sampling_rate


def read_audio_header(path: Path) -> AudioHeader:
    """The header of a file whose last sample could be decoded: an interrupted copy has a whole header, too.

    Raises:
        ValueError: the file is empty, unreadable or cut off, or its coding can only be read from the beginning.
    """
    if path.stat().st_size == 0:
        raise ValueError("empty file")
    try:
        with soundfile.SoundFile(path) as audio:
            if audio.frames == 0:
                raise ValueError("no samples")
            if not audio.seekable():
                raise ValueError(f"{audio.subtype_info}, which cannot be read from its middle on; convert it to FLAC")
            audio.seek(audio.frames - 1)
            if len(audio.read(1)) != 1:
                raise ValueError("cut off")
            return AudioHeader(audio.frames, audio.samplerate, audio.channels)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"broken or cut off ({error})") from error
