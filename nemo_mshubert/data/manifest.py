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

"""Read and write NeMo manifests (JSON lines), with errors that name file and line."""

import codecs
import json
import math
import os
import re
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterable, Iterator, List, Tuple

from nemo_mshubert.whole_files import PathLike, atomic_write

SAMPLE_RATE = 16000  # Hz
NEMO_LOOKS_UP = 255  # characters: NeMo looks beside the manifest only for names shorter than this
GZIP = b"\x1f\x8b"  # first bytes of a gzip file
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # an escaped surrogate; two of them may be one character
Entry = Dict[str, Any]  # content of a line
Line = Tuple[str, Entry]  # "<file>:<line>" and its entry


def iter_manifest(path: PathLike) -> Iterator[Line]:
    """Yield what `iter_lines` yields, with ``audio_filepath`` resolved as NeMo does: see `audio_path`."""
    for where, entry in iter_lines(path):
        entry["audio_filepath"] = audio_path(path, entry)
        yield where, entry


def audio_path(manifest: PathLike, entry: Dict[str, Any]) -> str:
    """The audio path of a line, taken below the manifest's folder. If no file is there, but one exists at the path as
    written (relative to the working directory, or with ~), that path is taken."""
    path = entry["audio_filepath"]
    below = str(Path(manifest).parent / path)  # an absolute path stays as it is
    if os.path.isabs(path) or entry.get("shard_id") is not None or os.path.isfile(below):  # no look for files in a tar
        return below
    as_written = os.path.expanduser(path)
    return as_written if os.path.isfile(as_written) else below


def iter_lines(path: PathLike) -> Iterator[Line]:
    """Yield ``("<file>:<line>", entry)`` for every line of a manifest, with its path as written.

    Raises:
        FileNotFoundError: no such manifest.
        ValueError: a line is not UTF-8 or not a JSON object, lacks ``audio_filepath``, or has an ``offset`` or a
            ``duration`` that is not a time in seconds; names the file and the line.
    """
    with _open_manifest(path) as stream:
        yield from parse_lines(stream, str(path))


def _open_manifest(path: PathLike) -> BinaryIO:
    if Path(path).is_dir():
        raise FileNotFoundError(
            f"{path}: a folder, where a manifest was expected. Make a manifest of the recordings in it with "
            f"scripts/prepare_folder.py --data {path} --output NAME.json, and give that."
        )
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no such manifest. Make one with scripts/prepare_librispeech.py, or of any folder of recordings "
            "with scripts/prepare_folder.py."
        )
    return open(path, "rb")


def parse_lines(stream: BinaryIO, name: str) -> Iterator[Line]:
    """`iter_lines` for an open manifest. It reads bytes, since a text stream decodes blocks of lines and cannot tell
    which line is broken."""
    for number, line in enumerate(stream, start=1):
        if not line.isspace():
            where = f"{name}:{number}"
            yield where, _parse_line(line, where)


def check_for_nemo(path: PathLike) -> None:
    """Look for what `iter_lines` accepts, but NeMo's manifest reader rejects when it reaches the line.

    Raises:
        FileNotFoundError: no such manifest.
        ValueError: a blank line, or a byte order mark; names file and line.
    """
    with _open_manifest(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.isspace():
                raise ValueError(
                    f"{path}:{number}: a blank line, at which NeMo's reader would end the training. Remove it: "
                    "grep '[^[:space:]]' OLD > NEW."
                )
            if line.startswith(codecs.BOM_UTF8):
                raise ValueError(
                    f"{path}:{number}: begins with a byte order mark, at which NeMo's reader would end the training. "
                    "Remove it: sed 's/^\\xef\\xbb\\xbf//' OLD > NEW."
                )


def _parse_line(line: bytes, where: str) -> Dict[str, Any]:
    try:
        entry = json.loads(line.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: {_not_utf8(line, error)}") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not JSON ({error.msg} at column {error.colno}). A manifest holds one JSON object per line; "
            "remove or repair this line."
        ) from error
    if not isinstance(entry, dict) or not entry.get("audio_filepath") or not isinstance(entry["audio_filepath"], str):
        raise ValueError(
            f'{where}: expected a JSON object with "audio_filepath", the path of one file, found '
            f"{line.decode().strip()[:80]!r}. Correct the line or remove it."
        )
    try:
        entry["audio_filepath"].encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: the name of the file, {entry['audio_filepath']!r}, is not UTF-8. Rename the file and correct "
            "the line."
        ) from error
    if SURROGATE.search(line):
        _check_surrogates(entry, where)
    offset, duration = entry.get("offset"), entry.get("duration")
    if offset is not None and not (type(offset) in (int, float) and 0 <= offset < math.inf):
        raise ValueError(_no_time("offset", offset, "0 or more", where))
    if duration is not None and not (type(duration) in (int, float) and 0 < duration < math.inf):
        raise ValueError(_no_time("duration", duration, "more than 0", where))
    return entry


def _check_surrogates(entry: Dict[str, Any], where: str) -> None:
    """Raise ``ValueError`` for characters that JSON can escape, but that UTF-8 cannot encode."""
    for field, value in entry.items():
        try:
            f"{field}{json.dumps(value, ensure_ascii=False)}".encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}: {field!r} holds {error.object[error.start]!r}, half of a character or a byte that was not "
                "UTF-8. Correct the line or remove it."
            ) from error


def _not_utf8(line: bytes, error: UnicodeDecodeError) -> str:
    if line.startswith(GZIP):
        return "compressed with gzip. Unpack the manifest with gunzip."
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16. Convert the manifest: iconv -f utf-16 -t utf-8 OLD > NEW."
    return (
        f"not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1}). Convert the manifest, for instance "
        "from Latin-1: iconv -f latin1 -t utf-8 OLD > NEW."
    )


def _no_time(field: str, value: Any, least: str, where: str) -> str:
    return (
        f'{where}: "{field}" is {value!r:.60}, expected a number of seconds, {least}, without quotes. Correct the '
        "line or remove it."
    )


def read_manifest(path: PathLike) -> List[Dict[str, Any]]:
    """All entries of a manifest; raises ``ValueError`` if it has none. See `iter_manifest`."""
    return [entry for _, entry in not_empty(iter_manifest(path), path)]


def not_empty(lines: Iterable[Line], manifest: PathLike) -> Iterator[Line]:
    """Pass on the lines of a manifest; raise ``ValueError`` if there are none."""
    empty = True
    for line in lines:
        empty = False
        yield line
    if empty:
        raise ValueError(f"{manifest}: the manifest is empty.")


def count_lines(manifest: PathLike) -> int:
    """The number of lines of a manifest. A broken line or an empty manifest raises an error now, rather than hours
    into the work."""
    return sum(1 for _ in not_empty(iter_manifest(manifest), manifest))


def distinct_utterances(lines: Iterable[Line]) -> Iterator[Line]:
    """Pass on lines of manifests; raise ``ValueError`` if two have the same `utterance_id`."""
    places: Dict[str, str] = {}
    for where, entry in lines:
        utt_id = utterance_id(entry)
        if utt_id in places:
            raise ValueError(
                f"{where}: utterance {utt_id} is at {places[utt_id]} already. Remove one of the lines, or give them "
                '"utt_id" that differ, such as the speaker before the name; and the same to alignments of them.'
            )
        places[utt_id] = where
        yield where, entry


def write_manifest(path: PathLike, entries: Iterable[Dict[str, Any]]) -> None:
    """Write one JSON object per line; paths of audio below the manifest's folder are relative to it."""
    with atomic_write(path) as stream:
        stream.writelines(manifest_lines(path, entries))


def manifest_lines(path: PathLike, entries: Iterable[Dict[str, Any]]) -> Iterator[str]:
    """The lines of `write_manifest`."""
    folder = Path(os.path.abspath(path)).parent  # not resolve(), so that a symlinked file keeps its own name
    for entry in entries:
        audio = absolute_path(entry["audio_filepath"])
        name = str(audio.relative_to(folder)) if audio.is_relative_to(folder) else str(audio)
        if len(name) >= NEMO_LOOKS_UP:
            name = str(audio)
        yield json.dumps({**entry, "audio_filepath": name}, ensure_ascii=False) + "\n"


def absolute_path(path: PathLike) -> Path:
    """``os.path.abspath``, but ``link/..`` is the folder that contains the target of ``link``, as for the operating
    system.

    Other symbolic links are kept, so that paths below a folder can be relative to it.
    """
    if ".." not in Path(path).parts:
        return Path(os.path.abspath(path))
    absolute = Path.cwd() / path
    found = Path(absolute.anchor)
    for part in absolute.parts[1:]:
        if part != "..":
            found /= part
        else:
            found = (Path(os.path.realpath(found)) if found.is_symlink() else found).parent
    return found


def utterance_id(entry: Dict[str, Any]) -> str:
    """``utt_id`` if the manifest has one, else the stem of the audio file, followed by the offset if there is one."""
    if entry.get("utt_id"):
        return str(entry["utt_id"])
    stem = Path(entry["audio_filepath"]).stem
    return f"{stem}-{round(entry['offset'] * 1000)}ms" if entry.get("offset") else stem
