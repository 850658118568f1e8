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

"""A broken line of a manifest is named, with what to do, before it can end a run in the middle."""

import codecs
import gzip
import json
import math
import os

import pytest

from nemo_mshubert.data.audio import iter_with_audio
from nemo_mshubert.data.manifest import (
    absolute_path,
    check_for_nemo,
    iter_manifest,
    read_manifest,
    utterance_id,
    write_manifest,
)

pytestmark = pytest.mark.unit
GOOD = {"audio_filepath": "a.wav", "duration": 1.0, "text": "schön"}


def test_lines_come_with_their_number_and_an_absolute_path(write, tmp_path):
    """Empty lines and line ends of Windows are no errors, but count."""
    path = write(GOOD, b"", b"  \t", json.dumps({**GOOD, "audio_filepath": "/b.wav"}).encode() + b"\r")
    first, second = iter_manifest(path)
    assert first == (f"{path}:1", {**GOOD, "audio_filepath": str(tmp_path / "a.wav")})
    assert second == (f"{path}:4", {**GOOD, "audio_filepath": "/b.wav"})


def test_a_folder_in_place_of_a_manifest_is_named_with_the_way_out(tmp_path):
    """The first thing that someone with recordings tries."""
    for read in (read_manifest, check_for_nemo):
        with pytest.raises(FileNotFoundError, match=f"{tmp_path}: a folder.*prepare_folder.py --data {tmp_path} "):
            read(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone.json: no such manifest.*prepare_librispeech.*prepare_folder.py"):
        read_manifest(tmp_path / "gone.json")


@pytest.mark.parametrize("written", ["clips/a.wav", "~/clips/a.wav"])
def test_paths_are_looked_for_where_nemo_looks(write, tmp_path, monkeypatch, written):
    """A manifest that NeMo's own scripts train on, with paths from the working directory or ~, was refused."""
    get_full_path = pytest.importorskip("nemo.collections.common.parts.preprocessing.manifest").get_full_path
    home = tmp_path / "home"
    (home / "clips").mkdir(parents=True)
    (home / "clips" / "a.wav").touch()
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    path = write({**GOOD, "audio_filepath": written})
    list(iter_with_audio(path))
    (entry,) = read_manifest(path)
    assert entry["audio_filepath"] == get_full_path(written, str(path)) and os.path.isfile(entry["audio_filepath"])
    below = tmp_path / written
    below.parent.mkdir(parents=True)
    below.touch()
    (entry,) = read_manifest(path)
    assert entry["audio_filepath"] == get_full_path(written, str(path)) == str(below)


def test_a_line_of_a_tar_is_no_file_of_the_working_directory(write, tmp_path, monkeypatch):
    """It would be taken for audio that happens to bear its name."""
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "a.wav").touch()
    monkeypatch.chdir(tmp_path / "cwd")
    path = write({**GOOD, "shard_id": 0})
    assert read_manifest(path)[0]["audio_filepath"] == str(tmp_path / "a.wav")
    with pytest.raises(FileNotFoundError, match="a.wav: no such audio file: the line is of a tarred dataset"):
        list(iter_with_audio(path))


def test_a_line_that_is_not_utf8_is_named(write):
    """A transcript in Latin-1; the lines before it are decoded, those behind it are not touched."""
    path = write(GOOD, json.dumps(GOOD, ensure_ascii=False).encode("latin-1"), GOOD)
    with pytest.raises(ValueError, match=f"{path}:2: not UTF-8 .byte 0xf6 at column .*iconv -f latin1 -t utf-8"):
        read_manifest(path)


def test_a_file_name_that_is_not_utf8_is_named(write):
    """Python reads such names of old disks as half characters, which nothing can write."""
    path = write(GOOD, json.dumps({**GOOD, "audio_filepath": os.fsdecode(b"caf\xe9.wav")}).encode())
    with pytest.raises(ValueError, match=f"{path}:2: the name of the file.*is not UTF-8. Rename"):
        read_manifest(path)


@pytest.mark.parametrize(
    "escaped, shown", [(rb"so \ud83d", "ud83d"), (rb"sch\udcf6n", "udcf6"), (rb"\uDE00\uD83D", "ude00")]
)
def test_text_that_no_file_can_hold_is_named(write, tmp_path, escaped, shown):
    """Half an emoji of a text that was cut: labels of the first ten minutes, or a tar, were lost to an error without a
    line. A whole one is text as any other."""
    whole = rb'{"audio_filepath": "a.wav", "text": "so \ud83d\ude00 \\ud83d"}'
    (entry,) = read_manifest(write(whole))
    assert entry["text"] == r"so 😀 \ud83d"
    write_manifest(tmp_path / "again.json", [entry])
    path = write(whole, b'{"audio_filepath": "a.wav", "text": "' + escaped + b'"}')
    with pytest.raises(ValueError, match=f"{path}:2: 'text' holds '.{shown}', half of a character .*Correct the line"):
        read_manifest(path)


def test_a_byte_order_mark_is_no_part_of_a_line(write):
    """Windows writes it, no editor shows it: the line looked as it should."""
    path = write(GOOD, GOOD)
    expected = read_manifest(path)
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert read_manifest(path) == expected
    path.write_text(path.read_text(encoding="utf-8-sig"), encoding="utf-16")
    with pytest.raises(ValueError, match=f"{path}:1: UTF-16. .*iconv -f utf-16"):
        read_manifest(path)


def test_what_nemo_cannot_read_is_named(write):
    """NeMo's reader is lazy: a blank line at the end of the validation manifest ended the run after its first
    validation."""
    check_for_nemo(write(GOOD, json.dumps(GOOD).encode() + b"\r"))
    path = write(GOOD, GOOD, b" \t", GOOD)
    with pytest.raises(ValueError, match=f"{path}:3: a blank line.* grep"):
        check_for_nemo(path)
    path.write_bytes(codecs.BOM_UTF8 + json.dumps(GOOD).encode())
    with pytest.raises(ValueError, match=f"{path}:1: begins with a byte order mark.* sed"):
        check_for_nemo(path)


def test_a_compressed_manifest_is_recognised(write):
    path = write(GOOD)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path}:1: compressed with gzip. Unpack the manifest with gunzip"):
        read_manifest(path)


@pytest.mark.parametrize(
    "field, value",
    [
        *[("offset", value) for value in (-1, -0.01, "1.0", math.nan, math.inf, True, [1])],
        *[("duration", value) for value in (0, -2.0, "2.0", math.nan, math.inf, False, {})],
    ],
)
def test_times_are_numbers_of_seconds(write, field, value):
    """Found by Lhotse, they are bare assertions in the middle of a run."""
    path = write(GOOD, {**GOOD, field: value})
    with pytest.raises(ValueError, match=f'{path}:2: "{field}" is .*, expected a number of seconds.*Correct the line'):
        read_manifest(path)


@pytest.mark.parametrize("times", [{}, {"offset": None, "duration": None}, {"offset": 0, "duration": 2}])
def test_times_may_be_left_out(write, times):
    (entry,) = read_manifest(write({"audio_filepath": "/a.wav", **times}))
    assert entry == {"audio_filepath": "/a.wav", **times}


@pytest.mark.parametrize("line", [[], "a.wav", {}, {"audio_filepath": ""}, {"audio_filepath": ["a.wav"]}])
def test_a_line_without_audio_is_named(write, line):
    path = write(GOOD, line)
    with pytest.raises(ValueError, match=f'{path}:2: expected a JSON object with "audio_filepath".*Correct the line'):
        read_manifest(path)


def test_segments_of_one_file_have_ids_of_their_own():
    """Two words of one second would share an id: their alignments and predictions would be mixed up."""
    ids = [utterance_id({"audio_filepath": "far/a.wav", "offset": offset}) for offset in (1.2, 1.35, 0.0, None)]
    assert ids == ["a-1200ms", "a-1350ms", "a", "a"]
    assert utterance_id({"audio_filepath": "a.wav", "offset": 1.2, "utt_id": "mine"}) == "mine"


@pytest.mark.parametrize("length, is_relative", [(254, True), (255, False)])
def test_names_that_nemo_does_not_look_for_beside_the_manifest_are_absolute(tmp_path, length, is_relative):
    """Nested folders of podcasts: NeMo would miss every file, in training."""
    name = f"{'d' * 200}/{'n' * (length - 201 - 4)}.wav"
    assert len(name) == length
    write_manifest(tmp_path / "train.json", [{"audio_filepath": str(tmp_path / name), "duration": 1.0}])
    written = json.loads((tmp_path / "train.json").read_text())["audio_filepath"]
    assert written == (name if is_relative else str(tmp_path / name))


@pytest.mark.parametrize("path", ["a.wav", "b/../a.wav", "/x/../y//z/./a.wav", "../../a.wav", "/../a.wav"])
def test_other_paths_are_made_absolute_as_text(path):
    """A folder of audio that is a link keeps its name: else lines would no longer be relative to the manifest."""
    assert str(absolute_path(path)) == os.path.abspath(path)


def test_links_that_are_not_left_stay(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "audio")
    assert absolute_path(tmp_path / "link" / "a.wav") == tmp_path / "link" / "a.wav"
    assert absolute_path(tmp_path / "link" / "b" / ".." / "a.wav") == tmp_path / "link" / "a.wav"
