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

"""Half of an output, of which one process writes the rest."""

import os

import pytest

from nemo_mshubert import file_lock
from nemo_mshubert.partial_file import locked_partial

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("ending", [os.unlink, lambda path: os.replace(path, path.with_name("out"))])
def test_a_file_that_was_finished_behind_the_open_is_not_written_to(tmp_path, monkeypatch, ending):
    """The other process ends between open and lock: this one would add its lines to the finished output, or end with
    a FileNotFoundError of a hidden file."""
    made = []

    def finished_meanwhile(stream, kind):
        made.append(stream)
        if len(made) == 1:
            ending(tmp_path / ".out.id.partial")
        return True

    monkeypatch.setattr(file_lock, "try_to_lock", finished_meanwhile)
    with locked_partial(tmp_path / "out", "id", "is at it.") as (partial, stream):
        stream.write("a line")
        stream.flush()
        assert partial.read_text() == "a line" and made[0].closed
