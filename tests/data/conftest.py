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

import json

import pytest

from tests.data.librispeech_folder import add_chapter


@pytest.fixture
def corpus(tmp_path):
    """A folder as LibriSpeech is, of two speakers."""
    add_chapter(tmp_path / "data/LibriSpeech/dev-clean", "84", "121123", ["GO, DO YOU HEAR", "BUT IT'S HE"])
    add_chapter(tmp_path / "data/LibriSpeech/dev-clean", "174", "50561", ["FORGOTTEN TOO"])
    (tmp_path / "data/LibriSpeech/SPEAKERS.TXT").write_text(
        ";ID  |SEX| SUBSET           |MINUTES| NAME\n"
        "84   | F | dev-clean        |  8.02 | Christie Nowak\n"
        "174  | M | dev-clean        |  8.04 | Peter | Eastman\n"
    )
    return tmp_path / "data"


@pytest.fixture
def write(tmp_path):
    """``write(entry, ...)``: a manifest of these lines; objects become JSON."""

    def write_lines(*lines):
        path = tmp_path / "train.json"
        lines = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path

    return write_lines
