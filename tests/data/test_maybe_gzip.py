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

"""Compressed files, against Python's own gzip, and broken ones."""

import gzip

import pytest

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.data.alignments import read_alignments
from nemo_mshubert.data.maybe_gzip import open_maybe_gzip, write_maybe_gzip
from nemo_mshubert.decoding.ngram import listed_words, normalized_sentences

pytestmark = pytest.mark.unit


def test_the_name_tells(tmp_path):
    text = "größe\n" * 100
    write_maybe_gzip(tmp_path / "a.txt", text)
    write_maybe_gzip(tmp_path / "a.txt.gz", text)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == text
    assert gzip.decompress((tmp_path / "a.txt.gz").read_bytes()).decode() == text
    for name in ("a.txt", "a.txt.gz"):
        with open_maybe_gzip(tmp_path / name) as stream:
            assert stream.read().decode() == text


def test_the_same_text_is_the_same_bytes(tmp_path, monkeypatch):
    """What was made of a corpus knows it by its bytes."""
    written = []
    for now in (1e9, 2e9):
        monkeypatch.setattr("time.time", lambda: now)
        write_maybe_gzip(tmp_path / "a.gz", "text")
        written.append((tmp_path / "a.gz").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("damage", ["cut short", "not compressed", "overwritten", "other bytes"])
@pytest.mark.parametrize(
    "read, line",
    [
        (lambda path: list(normalized_sentences([path], ENGLISH_LABELS)), "the sea {}\n"),
        (listed_words, "word{}\n"),
        (lambda path: read_alignments([path]), '{{"utt_id": "{}", "words": []}}\n'),
    ],
    ids=["texts", "words", "alignments"],
)
def test_damaged_files_are_named(tmp_path, damage, read, line):
    """Of several texts of a language model nothing said which download had broken off."""
    path = tmp_path / "text.gz"
    whole = gzip.compress("".join(map(line.format, range(5000))).encode())
    bad = {
        "cut short": whole[:-20],
        "not compressed": b"the sea\n",
        "overwritten": whole[:12] + b"\xff" * 100 + whole[112:],
        "other bytes": whole[:-8] + bytes(8),
    }
    path.write_bytes(bad[damage])
    with pytest.raises(ValueError, match=f"{path}: damaged, or not compressed with gzip .* rename it without .gz"):
        read(path)
