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

"""Locks that keep processes from overwriting each other's files."""

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
    """Lock an open file until it is closed; False if another process holds the lock.

    If the file system has no locks, it logs a warning and returns True.

    Args:
        lock: ``fcntl.lockf``: the lock belongs to this process alone, and ends when the process closes the file
            anywhere; or ``fcntl.flock``: the lock belongs to this open file, and forked processes share it.
    """
    try:
        lock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        logger.warning("%s: cannot be locked (%s). Take care that no second process uses it.", stream.name, error)
    return True


def _is_file_of(stream: IO, path: Path) -> bool:
    """Whether an open file still has the name ``path``: another process may have renamed or removed it."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def locked(path: Path, lock: Callable[[IO, int], None], work: str) -> Iterator[IO]:
    """The file ``path``, locked by `try_to_lock` and open for appending; its folder is made.

    Raises:
        RuntimeError: another process holds it; the message ends with ``work``.
    """
    make_folder(path.parent)
    while True:
        with open(path, "a", encoding="utf-8") as stream:
            if not try_to_lock(stream, lock):
                raise RuntimeError(f"{path}: another process {work}")
            if not _is_file_of(stream, path):  # the other process renamed or removed it after it was opened
                continue
            yield stream
            return


@contextmanager
def alone(lock: Path, work: str) -> Iterator[None]:
    """Hold the file ``lock``, which has no other purpose, and remove it at the end. If the process is killed, the file
    stays, but unlocked.

    Args:
        work: for the error message: "evaluates into this folder. Wait for it."

    Raises:
        RuntimeError: another process holds it; the message ends with ``work``.
    """
    with locked(lock, fcntl.lockf, work):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def in_turn(lock: Path, work: str) -> Iterator[None]:
    """Like `alone`, but wait for a process that holds the file. It is used if the second process continues with what
    the first has made."""
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
