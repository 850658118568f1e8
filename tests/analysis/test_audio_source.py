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

"""Audio is the same only if file, part and content are."""

import os

import pytest

from nemo_mshubert.analysis.audio_source import audio_source

pytestmark = pytest.mark.unit


def test_another_part_of_a_file_is_other_audio(tmp_path):
    """One long recording, cut anew: the hidden states of the old parts would be taken from the files of an earlier
    call."""
    path = str(tmp_path / "long.flac")
    parts = [(None, None), (0.0, 2.0), (1.0, 2.0), (0.0, 3.0)]
    entries = [{"audio_filepath": path, "offset": offset, "duration": duration} for offset, duration in parts]
    assert len(set(map(audio_source, entries))) == 4


def test_a_path_written_otherwise_is_the_same_audio(tmp_path, monkeypatch):
    """The same command from another folder, or through a link, would compute all again."""
    (tmp_path / "a.wav").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    paths = [tmp_path / "a.wav", tmp_path / "link" / "a.wav", "a.wav"]
    assert len({audio_source({"audio_filepath": str(path)}) for path in paths}) == 1
    os.truncate("a.wav", 5)
    assert len({audio_source({"audio_filepath": str(path)}) for path in [*paths, tmp_path / "gone.wav"]}) == 2
