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

"""Files and folders that exist whole or not at all: they are written under a temporary name, then renamed."""

import errno
import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Union
from uuid import uuid4

PathLike = Union[str, Path]

# Messages of safetensors (also about a quota), NumPy (also for arrays that are not contiguous) and torch.save about a
# full disk, in errors without an errno.
FULL_DISK = re.compile(
    r"\(os error (28|122)\)|^\d+ requested and \d+ written|^problem writing element \d+ to file"
    r"|unexpected pos \d+ vs \d+"
)
NAME_CHARACTERS = 50  # of a file's name that its temporary neighbour takes over


def temporary_neighbour(path: Path, suffix: str = "") -> Path:
    """A hidden name beside ``path`` that no other process uses; a pid is not enough, as containers on several machines
    often have the same. A long name is shortened: file systems allow 255 bytes, and a character has up to four."""
    return path.with_name(f".{path.name[:NAME_CHARACTERS]}.{os.getpid()}.{uuid4().hex[:8]}.tmp{suffix}")


def remove_left_over(folder: Path, name: str = "*") -> None:
    """Remove the temporary files that killed processes left in ``folder``. This also removes those of a process that
    is writing now."""
    for path in [*folder.glob(f".{name}.*.tmp"), *folder.glob(f".{name}.*.tmp.nemo")]:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path, suffix: str = "") -> Iterator[Path]:
    """The path of a temporary neighbour, which replaces ``path`` on success, so that ``path`` is whole or absent.

    Raises:
        IsADirectoryError, FileExistsError: as in `make_place`, before any work is done; the system's own errors would
            name a hidden temporary file.
    """
    make_place(path)
    temporary = temporary_neighbour(path, suffix)
    try:
        with naming(path):
            yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: PathLike, mode: str = "w"):
    """Open the `atomic_path` of ``path`` for writing."""
    encoding = None if "b" in mode else "utf-8"
    with atomic_path(Path(path)) as temporary, open(temporary, mode, encoding=encoding) as stream:
        yield stream


def write_json(path: PathLike, content: Any) -> None:
    """`atomic_write` of JSON that people can read; names that are not UTF-8 are written with escapes."""
    with atomic_write(path, "wb") as stream:
        stream.write(json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace"))


def claim_json(path: PathLike, content: Any) -> Any:
    """Write ``content`` if there is no file yet, and return the content of the file. If two processes do this at the
    same time, one gets what the other wrote."""
    path = Path(path)
    if not path.is_file():
        make_place(path)
        own = temporary_neighbour(path)
        try:
            write_json(own, content)
            os.link(own, path)
        except FileExistsError:
            pass
        except OSError:
            if not own.is_file():
                raise
            os.replace(own, path)  # the file system has no links
        finally:
            own.unlink(missing_ok=True)
    return json.loads(path.read_text(encoding="utf-8"))


def make_place(path: Path) -> None:
    """Make the folder of a file; raises ``IsADirectoryError`` or ``FileExistsError`` if the file cannot be there."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder. Name a file in it.")
    make_folder(path.parent)


def make_folder(folder: PathLike) -> None:
    """Make a folder and its parents; raises ``FileExistsError`` if a file is in the place of one of them."""
    folder = Path(folder)
    for place in (folder, *folder.parents):
        if place.is_file():
            raise FileExistsError(f"{place}: a file, where a folder is to be. Name another output.")
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def atomic_folder(folder: PathLike) -> Iterator[Path]:
    """A temporary neighbour of ``folder`` that replaces it on success, so that ``folder`` is whole or absent.

    Raises:
        FileExistsError: the folder is not empty, or a file is in the place of one of its parents.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists and is not empty. Choose another folder.")
    make_folder(folder.parent)
    temporary = temporary_neighbour(folder)
    temporary.mkdir()
    try:
        with naming(folder):
            yield temporary
        try:  # also replaces an empty folder
            os.replace(temporary, folder)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FileExistsError(f"{folder}: another process has filled it meanwhile; it is left so.") from error
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Add ``path`` to the error about a full disk or quota, which names no file."""
    try:
        yield
    except Exception as error:
        full = FULL_DISK.search(str(error))
        if full:
            number = int(full[1] or errno.ENOSPC)
            stream = error.__context__  # what torch.save met when it wrote to a stream, which need not be a full disk
            if isinstance(stream, OSError) and stream.filename is None:
                number = stream.errno
            raise OSError(number, os.strerror(number), str(path)) from error
        if isinstance(error, OSError) and error.filename is None:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                error.filename = str(path)
        raise
