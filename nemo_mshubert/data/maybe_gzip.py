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

"""Files that are compressed with gzip if their name ends in ``.gz``."""

import gzip
import zlib
from contextlib import contextmanager
from typing import BinaryIO, Iterator

from nemo_mshubert.whole_files import PathLike, atomic_write


@contextmanager
def open_maybe_gzip(path: PathLike) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked if its name ends in ``.gz``.

    Raises:
        ValueError: the file is damaged, or not compressed in spite of its name; raised while it is read.
    """
    try:
        with gzip.open(path) if _is_gzip(path) else open(path, "rb") as stream:
            yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: damaged, or not compressed with gzip ({error}). Get it again, or rename it without .gz."
        ) from error


def write_maybe_gzip(path: PathLike, text: str) -> None:
    """Write a file whole or not at all. It has no time stamp, so the same text gives the same bytes."""
    with atomic_write(path, "wb") as stream:
        stream.write(gzip.compress(text.encode(), mtime=0) if _is_gzip(path) else text.encode())


def _is_gzip(path: PathLike) -> bool:
    return str(path).endswith(".gz")
