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

"""Identifies the audio of a manifest line, so that results computed from it can be found again."""

import os
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

Place = Tuple[str, Optional[float], Optional[float]]  # path, offset and duration in seconds
FileState = Optional[Tuple[int, int]]  # size in bytes, time of change in nanoseconds


def audio_place(entry: Dict[str, Any]) -> Place:
    """Where the audio of a manifest line is."""
    return str(Path(entry["audio_filepath"]).resolve()), entry.get("offset"), entry.get("duration")


def file_state(entry: Dict[str, Any]) -> FileState:
    """A value that changes when the audio file is replaced; None if it is not a local file (a URL, for example)."""
    try:
        status = os.stat(entry["audio_filepath"])
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def audio_source(entry: Dict[str, Any]) -> Tuple[Place, FileState]:
    """A value that differs for different files, parts of a file, and contents of a file."""
    return audio_place(entry), file_state(entry)
