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

"""Locks by which processes that would overwrite each other's files notice one another."""

import errno
import fcntl
import logging
import os
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Callable, Iterator

from nemo_mshubert.whole_files import make_folder

logger = logging.getLogger(__name__)


def try_to_lock(stream: IO, lock: Callable[[IO, int], None]) -> bool:
    """Lock an open file until it is closed; False where another process holds the lock.

    Where the file system has no locks: a warning, and True.

    Args:
        lock: ``fcntl.lockf``: a lock of this process alone, which ends when the process closes the file anywhere; or
            ``fcntl.flock``: one of this open file, which processes forked from this one keep.
    """
    try:
        lock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        logger.warning("%s: cannot be locked (%s). Take care that no second process uses it.", stream.name, error)
    return True


def _is_file_of(stream: IO, path: Path) -> bool:
    """Whether an open file is still the one of this name: its process may have renamed or removed it since."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def locked(path: Path, lock: Callable[[IO, int], None], work: str) -> Iterator[IO]:
    """The file of this name, locked by `try_to_lock` and open to append; its folder is made.

    Raises:
        RuntimeError: another process has it; ends with ``work``.
    """
    make_folder(path.parent)
    while True:
        with open(path, "a", encoding="utf-8") as stream:
            if not try_to_lock(stream, lock):
                raise RuntimeError(f"{path}: another process {work}")
            if not _is_file_of(stream, path):  # the other process renamed or removed it behind the open
                continue
            yield stream
            return


@contextmanager
def alone(lock: Path, work: str) -> Iterator[None]:
    """Hold the file ``lock``, which is there for that alone, and remove it. Of a process that is killed the file
    stays, without a lock.

    Args:
        work: for the error: "evaluates into this folder. Wait for it."

    Raises:
        RuntimeError: another process has it; ends with ``work``.
    """
    with locked(lock, fcntl.lockf, work):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def in_turn(lock: Path, work: str) -> Iterator[None]:
    """`alone`, but behind a process that has the file: where the second goes on with what the first has made."""
    with ExitStack() as stack:
        is_told = False
        while True:
            try:
                stack.enter_context(alone(lock, work))
                break
            except RuntimeError as error:
                if not is_told:
                    logger.warning("%s This one waits for it.", error)
                is_told = True
                time.sleep(1)
        yield
