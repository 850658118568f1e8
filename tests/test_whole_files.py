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

"""Files and folders are there whole or not at all, whatever ends the writing."""

import errno
import io
import json
import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from nemo_mshubert import whole_files
from nemo_mshubert.whole_files import (
    atomic_folder,
    atomic_path,
    atomic_write,
    claim_json,
    naming,
    remove_left_over,
    temporary_neighbour,
    write_json,
)
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit


def test_a_full_disk_is_named_and_leaves_the_file_before(tmp_path):
    """After a day of label making the user learns which disk is full, and has yesterday's file."""
    path = tmp_path / "labels.json"
    with atomic_write(path) as stream:
        stream.write("before")

    def rank():  # a process of its own, whose files may grow no further
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with pytest.raises(OSError) as error, atomic_write(path) as stream:
            stream.write("x" * 200_000)
        return str(error.value)

    (message,) = run_on_ranks(1, rank)
    assert "File too large" in message and message.endswith(f"'{path}'")
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["labels.json"]


def test_only_a_full_disk_is_given_a_name():
    """Another file's error must not be blamed on the one that is being written."""
    for error in (
        OSError(errno.ENOSPC, "No space left on device", "other"),
        OSError(errno.EPIPE, "Broken pipe"),
        OSError("no number"),
    ):
        before = str(error)
        with pytest.raises(OSError) as found, naming("mine"):
            raise error
        assert found.value is error and str(error) == before
    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(OSError, match=f"{os.strerror(number)}: 'mine'"), naming("mine"):
            raise OSError(number, os.strerror(number))


def test_json_of_any_name(tmp_path):
    """Results name their files, of which Linux takes any bytes: one in Latin-1 ended a run when all was measured."""
    content = {"é": [1, "\udce8"], "mod\u00e8le\n": None}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert json.loads(text) == content and "é" in text


def as_safetensors():
    """What it said on a full disk; let it write itself, and it would put a file in the place of the device."""
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize(
    "write",
    [
        lambda: np.zeros(100_000).tofile("/dev/full"),
        lambda: np.zeros((1000, 200))[:, :100].tofile("/dev/full"),
        lambda: torch.save(torch.zeros(1_000_000), "/dev/full"),
        as_safetensors,
    ],
    ids=["NumPy", "NumPy, rows that lie apart", "torch", "safetensors"],
)
def test_a_full_disk_is_named_whichever_library_writes(write):
    """They tell of an "unexpected pos" or of bytes that were requested, and no file."""
    with pytest.raises(OSError, match="No space left on device: 'mine'"), naming("mine"):
        write()


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO])
def test_a_disk_that_is_not_full_is_not_called_so(number):
    """A network file system failed once while a checkpoint was written: torch.save speaks of an "unexpected pos", and
    the user was sent to make room where there was enough."""

    class FailsOnce(io.BytesIO):
        has_failed = False

        def write(self, data):
            if self.tell() and not self.has_failed:
                self.has_failed = True
                raise OSError(number, os.strerror(number))
            return super().write(data)

    with pytest.raises(OSError, match=f"{os.strerror(number)}: 'mine'$") as error, naming("mine"):
        torch.save(torch.zeros(1_000_000), FailsOnce())
    assert error.value.errno == number


def test_a_quota_that_safetensors_meets_is_named():
    """As above, of an export into a home folder with a quota; the error was of no file."""
    with pytest.raises(OSError, match="Disk quota exceeded: 'mine'$"), naming("mine"):
        raise SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)")


@pytest.mark.parametrize("output", ["folder", "file/a.txt", "file/below/a.txt"])
def test_a_place_where_no_file_can_be(tmp_path, output):
    """Else a mistyped --output ends in an error about a hidden temporary file that the user never named."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    named = tmp_path / ("folder" if output == "folder" else "file")
    for write in (atomic_write, atomic_path):
        with pytest.raises((IsADirectoryError, FileExistsError), match=f"^{re.escape(str(named))}: a .*Name a"):
            with write(tmp_path / output):
                pytest.fail("work was done for a file that cannot be written")
    with pytest.raises((IsADirectoryError, FileExistsError), match=f"^{re.escape(str(named))}: a .*Name a"):
        claim_json(tmp_path / output, {})
    if output != "folder":
        with pytest.raises(FileExistsError, match=f"^{re.escape(str(named))}: a file, .*Name another"):
            with atomic_folder(tmp_path / output):
                pytest.fail("work was done for a folder that cannot be written")
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_folder_takes_its_place_when_it_is_whole(tmp_path):
    """An export that broke off would pass for a model."""
    folder = tmp_path / "export"
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broke off"), atomic_folder(folder) as inside:
            (inside / "half").touch()
            raise RuntimeError("broke off")
        assert not os.listdir(tmp_path)
    folder.mkdir()  # empty: that is as good as none
    with atomic_folder(folder) as inside:
        (inside / "weights").touch()
        assert not os.listdir(folder)
    assert os.listdir(folder) == ["weights"] and os.listdir(tmp_path) == ["export"]
    for taken in (folder, folder / "weights"):
        with pytest.raises(FileExistsError, match="Choose another folder"), atomic_folder(taken):
            pass


def test_what_ends_a_folder_is_told(tmp_path):
    """A full disk, which names no file, and a place that was taken meanwhile: the export was lost, and its command
    ended well."""
    folder = tmp_path / "export"
    with pytest.raises(OSError, match=f"No space left on device: '{folder}'$"), atomic_folder(folder):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(NotADirectoryError, match=f"'{folder}'$"), atomic_folder(folder):
        folder.write_text("a file")
    assert os.listdir(tmp_path) == ["export"]


@pytest.mark.parametrize("name", ["n" * 255, "語" * 85, "😀" * 63], ids=["one byte", "three bytes", "four bytes"])
def test_names_may_be_as_long_as_the_file_system_takes(tmp_path, name):
    """Features and mono mixes of recordings with long titles could not be written, though files of those names can."""
    path = tmp_path / name
    with atomic_write(path) as stream:
        stream.write("features")
    assert path.read_text() == "features" and os.listdir(tmp_path) == [name]
    path.unlink()
    with atomic_folder(path) as inside:
        (inside / "weights").touch()
    assert os.listdir(path) == ["weights"] and os.listdir(tmp_path) == [name]


def test_of_two_folders_the_first_stays(tmp_path):
    """A second process had filled it meanwhile: the error was of rmdir, or of a hidden folder."""
    folder = tmp_path / "export"
    with pytest.raises(FileExistsError, match="export: another process has filled it meanwhile; it is left so."):
        with atomic_folder(folder) as inside:
            (inside / "weights").write_text("second")
            folder.mkdir()
            (folder / "weights").write_text("first")
    assert (folder / "weights").read_text() == "first" and os.listdir(tmp_path) == ["export"]


@pytest.mark.parametrize("has_links", [True, False])
def test_what_a_folder_is_of_is_said_by_one(tmp_path, monkeypatch, has_links):
    """Two processes with other options looked, found nothing, and each took the folder for its own."""
    path, links = tmp_path / "made" / "below" / "source.json", os.link

    def comes_second(source, target):
        write_json(target, {"of": "the first"})
        links(source, target)

    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", comes_second if has_links else refuse)
    first = "the first" if has_links else "the second"
    assert claim_json(path, {"of": "the second"}) == {"of": first}
    assert claim_json(path, {"of": "a third"}) == {"of": first} and os.listdir(path.parent) == ["source.json"]


def test_a_full_disk_is_told_where_nothing_could_be_claimed(tmp_path, monkeypatch):
    """The error was of a hidden file that is not there."""

    def refuse(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(whole_files, "write_json", refuse)
    with pytest.raises(OSError, match="No space left on device"):
        claim_json(tmp_path / "source.json", {})
    assert not os.listdir(tmp_path)


def test_what_killed_processes_left_is_removed(tmp_path):
    for suffix in ("", ".nemo"):
        temporary_neighbour(tmp_path / "run.nemo", suffix).touch()
    temporary_neighbour(tmp_path / "audio_1.tar").touch()
    (tmp_path / "run.nemo").touch()
    remove_left_over(tmp_path, "audio_*.tar")
    assert len(os.listdir(tmp_path)) == 3
    remove_left_over(tmp_path)
    assert os.listdir(tmp_path) == ["run.nemo"]


def test_what_ends_while_it_is_removed_is_no_error(tmp_path, monkeypatch):
    """Another process renames what it has written between the look and the removal: the run would end with a
    FileNotFoundError of a hidden file."""
    monkeypatch.setattr(Path, "glob", lambda folder, _: iter([temporary_neighbour(folder / "run.nemo")]))
    remove_left_over(tmp_path)


def test_two_writers_of_one_pid_do_not_share_a_file(tmp_path):
    """Containers on two machines: the one took the half-written file of the other for its own."""
    path = tmp_path / "out.json"
    with atomic_write(path) as slow:
        slow.write("slow")
        with atomic_write(path) as quick:
            quick.write("quick")
        assert path.read_text() == "quick"
    assert path.read_text() == "slow" and list(tmp_path.iterdir()) == [path]
