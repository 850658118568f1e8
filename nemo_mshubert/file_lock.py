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
from typing import IO, Callable

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
