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

"""Downloads: they go on where they stopped, are checked, and leave nothing half done."""

import errno
import hashlib
import io
import re
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from nemo_mshubert.data.librispeech import prepare_librispeech
from nemo_mshubert.data.librispeech_download import ARCHIVES, Archive, download, download_corpora, extract

pytestmark = pytest.mark.unit


class Server:
    """Serves one body over HTTP; notes the ranges asked for, and breaks off after ``limit`` bytes of an answer."""

    def __init__(self, body: bytes, ranges=True, limit=None, says_length=True):
        self.asked, server = [], self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                server.asked.append(asked)
                start = int(asked.split("=")[1].rstrip("-")) if asked and ranges else 0
                if start and start >= len(body):
                    return self.send_error(416)
                self.send_response(206 if start else 200)
                if says_length:
                    self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                self.wfile.write(body[start:][:limit])

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/dev-clean.tar.gz"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


BODY = np.random.default_rng(0).bytes(100_000)


def archive_of(body: bytes, url: str) -> Archive:
    return Archive(url, "md5", hashlib.md5(body).hexdigest())


@pytest.mark.parametrize(
    "present, ranges, asked",
    [
        (0, True, None),
        (50_000, True, "bytes=50000-"),
        (50_000, False, "bytes=50000-"),
        (100_000, True, "bytes=100000-"),
    ],
)
def test_download_goes_on_where_it_stopped(tmp_path, present, ranges, asked):
    """Otherwise a connection lost at 29 of 30 GB costs all of them."""
    path = tmp_path / "dev-clean.tar.gz"
    if present:
        (tmp_path / "dev-clean.tar.gz.part").write_bytes(BODY[:present])
    with Server(BODY, ranges) as server:
        download(archive_of(BODY, server.url), path)
        assert server.asked == [asked]
    assert path.read_bytes() == BODY
    assert list(tmp_path.iterdir()) == [path]


def test_broken_connections_are_taken_up_again(tmp_path):
    """openslr.org does break off; nobody should have to sit beside it."""
    with Server(BODY, limit=30_000) as server:
        download(archive_of(BODY, server.url), tmp_path / "a")
        assert server.asked == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"]
    assert (tmp_path / "a").read_bytes() == BODY
    with Server(BODY, limit=10_000) as server:
        with pytest.raises(ConnectionError, match="broke off after 50000 of 100000 bytes. Run again"):
            download(archive_of(BODY, server.url), tmp_path / "b")
    assert (tmp_path / "b.part").read_bytes() == BODY[:50_000]


def test_a_server_need_not_say_how_long_a_file_is(tmp_path):
    """Behind some proxies: the checksum tells whether it is whole."""
    with Server(BODY, says_length=False) as server:
        download(archive_of(BODY, server.url), tmp_path / "dev-clean.tar.gz")
    assert (tmp_path / "dev-clean.tar.gz").read_bytes() == BODY


def test_libri_speech_may_lie_on_another_disk(corpus, tmp_path):
    """Where the folder is a link: a rename from one disk to another is an error, with all unpacked in vain."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "LibriSpeech").symlink_to(tmp_path / "disk")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(corpus, "LibriSpeech")
    renamed, rename = [], Path.rename

    def spy(path, target):
        renamed.append((path.resolve(), Path(target).resolve()))
        return rename(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", spy)
        extract(tmp_path / "a.tar.gz", tmp_path / "here")
    assert renamed and all(path.is_relative_to(tmp_path / "disk") for pair in renamed for path in pair)


def test_wrong_checksum_is_refused(tmp_path):
    """A damaged or exchanged archive must not become a training corpus."""
    with Server(BODY) as server:
        with pytest.raises(ValueError, match="md5 is .*, expected 0123"):
            download(Archive(server.url, "md5", "0123"), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_checksums_have_the_length_of_their_algorithm():
    """A mistyped checksum would refuse a good archive after hours of download."""
    for archive in ARCHIVES.values():
        assert re.fullmatch("[0-9a-f]{%d}" % (2 * hashlib.new(archive.algorithm).digest_size), archive.digest)


def tar_of(folder: Path, path: Path) -> bytes:
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return path.read_bytes()


def test_downloaded_subset_becomes_a_manifest_once(corpus, tmp_path, monkeypatch):
    """The one command of the README: fetch, check, unpack, write."""
    body = tar_of(corpus / "LibriSpeech", tmp_path / "made.tar.gz")
    with Server(body) as server:
        monkeypatch.setitem(ARCHIVES, "dev-clean", archive_of(body, server.url))
        for _ in range(2):
            download_corpora(tmp_path / "new", ["dev-clean"])
        assert len(server.asked) == 1  # the second time it is there
    manifests = prepare_librispeech(tmp_path / "new", tmp_path / "out", ["dev-clean"])
    assert [entry["gender"] for entry in manifests["dev-clean"]] == ["M", "F", "F"]
    assert not list((tmp_path / "new").glob(".*"))


def test_archive_that_lies_there_is_checked_and_used(corpus, tmp_path, monkeypatch):
    """Clusters without internet: the archive is copied there by hand, whole or not."""
    (tmp_path / "new").mkdir()
    body = tar_of(corpus / "LibriSpeech", tmp_path / "new/dev-clean.tar.gz")
    monkeypatch.setitem(ARCHIVES, "dev-clean", archive_of(b"other", "http://127.0.0.1:9/dev-clean.tar.gz"))
    with pytest.raises(ValueError, match="md5 is"):
        download_corpora(tmp_path / "new", ["dev-clean"])
    monkeypatch.setitem(ARCHIVES, "dev-clean", archive_of(body, "http://127.0.0.1:9/dev-clean.tar.gz"))
    download_corpora(tmp_path / "new", ["dev-clean"])
    assert (tmp_path / "new/LibriSpeech/dev-clean/84").is_dir()


def test_two_do_not_download_at_once(corpus, tmp_path, monkeypatch, held_elsewhere):
    """Both added to one file, whose checksum was wrong after 30 GB; and what a killed one had unpacked stayed."""
    first = held_elsewhere(tmp_path / "new" / ".download.lock")
    left = tmp_path / "new" / ".unpacking-x"
    (left / "LibriSpeech").mkdir(parents=True)
    body = tar_of(corpus / "LibriSpeech", tmp_path / "made.tar.gz")
    with Server(body) as server:
        monkeypatch.setitem(ARCHIVES, "dev-clean", archive_of(body, server.url))
        with pytest.raises(RuntimeError, match="another process downloads into this folder. Wait for it."):
            download_corpora(tmp_path / "new", ["dev-clean"])
        assert not server.asked and left.exists()
        first.kill()
        first.wait()
        download_corpora(tmp_path / "new", ["dev-clean"])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["LibriSpeech", "dev-clean.tar.gz"]


def test_archive_cannot_write_outside(tmp_path):
    """A prepared archive could otherwise overwrite any file of the user."""
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("../escaped.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    (tmp_path / "inner/data").mkdir(parents=True)
    with pytest.raises(tarfile.FilterError):
        extract(tmp_path / "bad.tar.gz", tmp_path / "inner/data")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    """60 GB are unpacked; which disk is full, the error of the system does not say."""
    with tarfile.open(tmp_path / "some.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("LibriSpeech/README.TXT"))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    (tmp_path / "data").mkdir()
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/data'"):
        extract(tmp_path / "some.tar.gz", tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_unknown_name_is_not_downloaded(tmp_path):
    with pytest.raises(ValueError, match="Cannot download dev-claen.*dev-clean"):
        download_corpora(tmp_path, ["dev-claen"])


def test_what_is_there_is_not_unpacked_again(corpus, tmp_path):
    """All archives of LibriSpeech hold SPEAKERS.TXT; one that was corrected by hand, or a subset, must stay."""
    tar_of(corpus / "LibriSpeech", tmp_path / "a.tar.gz")
    (tmp_path / "new").mkdir()
    extract(tmp_path / "a.tar.gz", tmp_path / "new")
    unpacked = tmp_path / "new" / "LibriSpeech"
    (unpacked / "SPEAKERS.TXT").write_text("corrected")
    (unpacked / "dev-clean" / "84" / "121123" / "84-121123.trans.txt").write_text("corrected")
    extract(tmp_path / "a.tar.gz", tmp_path / "new")
    corrected = {path.name for path in unpacked.rglob("*") if path.is_file() and path.read_bytes() == b"corrected"}
    assert corrected == {"SPEAKERS.TXT", "84-121123.trans.txt"} and not list(unpacked.parent.rglob(".unpacking*"))


@pytest.fixture
def asked(monkeypatch):
    """Names of the archives that are downloaded, none of which is."""
    names = []
    module = "nemo_mshubert.data.librispeech_download"
    monkeypatch.setattr(f"{module}.download", lambda archive, path: names.append((archive.url.split("/")[-1], path)))
    monkeypatch.setattr(f"{module}.extract", lambda path, destination: None)
    return names


def test_manifests_of_several_folders_get_all_their_archives(tmp_path, asked):
    """train-960 is three archives; the sets of Libri-Light are all of one, which is fetched once."""
    download_corpora(tmp_path, ["train-960", "10min", "1h", "10h", "dev-clean"])
    train = [f"train-{kind}.tar.gz" for kind in ("clean-100", "clean-360", "other-500")]
    expected = [*train, "librispeech_finetuning.tgz", "dev-clean.tar.gz"]
    assert asked == [(name, tmp_path / name) for name in expected]


def test_what_is_there_without_its_archive_is_not_fetched_again(tmp_path, asked):
    """Sixty gigabytes, where the archives were deleted to save disk; wherever the folders lie."""
    for folder in ("LibriSpeech/dev-clean", "dev-other", "librispeech_finetuning"):
        (tmp_path / folder).mkdir(parents=True)
    download_corpora(tmp_path, ["dev-clean", "dev-other", "10h"])
    assert asked == []
    download_corpora(tmp_path, ["test-clean"])
    assert [name for name, _ in asked] == ["test-clean.tar.gz"]
