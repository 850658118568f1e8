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

"""A file of lines that an interrupted call leaves beside its output, so that the same call can continue it."""

import fcntl
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Iterator, Tuple

from nemo_mshubert.file_lock import locked
from nemo_mshubert.whole_files import naming


@contextmanager
def locked_partial(output: Path, identity: str, work: str) -> Iterator[Tuple[Path, IO[str]]]:
    """The path ``.<output>.<identity>.partial`` beside ``output``, and this file, open after its last line.

    Args:
        identity: stands for everything that the lines depend on.
        work: for the error message: "is labelling these lines. Wait for it."

    Raises:
        RuntimeError: another process holds it; the message ends with ``work``.
    """
    partial = output.with_name(f".{output.name}.{identity}.partial")
    # flock belongs to the file as opened here: a lockf would end when the lines are read through another open file
    with naming(partial), locked(partial, fcntl.flock, work) as stream:
        yield partial, stream
