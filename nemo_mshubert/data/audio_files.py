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

"""Find the audio files of a folder, at any depth."""

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Iterator, List, Tuple

import soundfile

from nemo_mshubert.whole_files import PathLike

logger = logging.getLogger(__name__)

# Other suffixes of the formats of libsndfile. NIST's .sph is not among them: lhotse needs another program for it.
OTHER_SUFFIXES = {
    "AIFF": ("aif", "aifc"),
    "AU": ("snd",),
    "MP3": ("mp2", "mpga"),
    "OGG": ("oga", "opus"),
    "WAV": ("wave",),
}
NO_SUFFIXES = ("raw",)  # has no header


def audio_suffixes() -> List[str]:
    """Suffixes, in lower case and with their dot, of the files that libsndfile, and therefore lhotse, can read."""
    formats = soundfile.available_formats()
    names = {name.lower() for name in formats} - set(NO_SUFFIXES)
    names.update(name for kind, others in OTHER_SUFFIXES.items() if kind in formats for name in others)
    return sorted(f".{name}" for name in names)


def find_audio(data: Path) -> Tuple[List[str], List[str]]:
    """Sorted paths below ``data`` of all files with `audio_suffixes`, and the problems with folders and names.

    Raises:
        FileNotFoundError: no such folder, or no audio in it.
    """
    if not data.is_dir():
        raise FileNotFoundError(f"{data}: no such folder. Give the folder of the recordings as --data.")
    suffixes = audio_suffixes()
    problems: List[str] = []
    files = [path.relative_to(data) for path in _visible_files(data, problems)]
    names = sorted(path.as_posix() for path in files if path.suffix.lower() in suffixes)
    found = sorted(path.suffix.lower() for path in files)
    others = Counter(suffix or "without suffix" for suffix in found if suffix not in suffixes)
    left_out = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(10)) or "nothing"
    if not names and not problems:
        raise FileNotFoundError(
            f"{data}: no audio in it. Looked for {', '.join(suffixes)}, at any depth; found {left_out}. Convert "
            "recordings of other kinds, for instance: ffmpeg -i IN.m4a -ac 1 -ar 16000 OUT.flac"
        )
    if others:
        logger.info("%s: not taken for audio: %s", data, left_out)
    return [name for name in names if _is_utf8(data / name, problems)], problems


def _visible_files(data: Path, problems: List[str]) -> Iterator[Path]:
    """All files that are not hidden; every folder is visited once.

    Links to folders are followed after all real folders have been visited, so that files in ``data`` keep their own
    names. Circular links come to an end.
    """
    folders, seen = [data], set()

    def complain(error: OSError) -> None:
        problems.append(f"{_printable(error.filename)}: cannot be read ({error.strerror})")

    while folders:
        for folder, subfolders, names in os.walk(folders.pop(0), onerror=complain):
            status = os.stat(folder)
            is_new = (status.st_dev, status.st_ino) not in seen
            seen.add((status.st_dev, status.st_ino))
            subfolders[:] = sorted(name for name in subfolders if is_new and not name.startswith("."))
            folders += [path for path in (Path(folder, name) for name in subfolders) if path.is_symlink()]
            yield from (Path(folder, name) for name in names if is_new and not name.startswith("."))


def _is_utf8(path: Path, problems: List[str]) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        problems.append(f"{_printable(path)}: the name is not UTF-8, as those in a manifest must be; rename it")
        return False
    return True


def _printable(path: PathLike) -> str:
    return str(path).encode("utf-8", "backslashreplace").decode()
