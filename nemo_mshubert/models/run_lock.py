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

"""Only one run per folder: a second one would overwrite the checkpoints of the first."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO, List

import lightning.pytorch as pl

from nemo_mshubert.file_lock import try_to_lock
from nemo_mshubert.whole_files import make_folder

_held: List[IO] = []  # a lock ends when its file is closed


def hold_folder(folder: Path, trainer: pl.Trainer) -> None:
    """Lock ``folder`` on rank 0 until the process ends, however it ends.

    The lock belongs to the process (POSIX), so loader processes that outlive a killed run do not keep it.

    Raises:
        RuntimeError: another process holds the lock.
    """
    if not trainer.is_global_zero:
        return
    make_folder(folder)
    stream = open(folder / "run.lock", "a+", encoding="utf-8")
    if not try_to_lock(stream, fcntl.lockf):
        stream.seek(0)
        raise RuntimeError(
            f"{folder}: another run is under way in it ({stream.read() or 'just started'}). They would overwrite each "
            "other's checkpoints. Wait for it or end it, or give this run another name=."
        )
    stream.truncate(0)
    stream.write(f"pid {os.getpid()} on {socket.gethostname()}")
    stream.flush()
    _held.append(stream)
