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

"""Download LibriSpeech and Libri-Light's limited sets. Downloads are resumable and checked by checksums; archives are
unpacked whole or not at all."""

import http.client
import logging
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence

from tqdm import tqdm

from nemo_mshubert.data.digest import file_digest
from nemo_mshubert.data.librispeech import LIBRILIGHT, LIBRILIGHT_FOLDER, SOURCES, TRAIN_960, corpus_roots
from nemo_mshubert.file_lock import alone
from nemo_mshubert.whole_files import PathLike, naming

logger = logging.getLogger(__name__)


class Archive(NamedTuple):
    url: str
    algorithm: str
    digest: str  # hexadecimal


# MD5 as in https://www.openslr.org/resources/12/md5sum.txt
OPENSLR_MD5 = {
    "dev-clean": "42e2234ba48799c1f50f24a7926300a1",
    "dev-other": "c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean": "32fa31d27d2e1cad72775fee3f4849a9",
    "test-other": "fb5a50374b501bb3bac4815ee91d3135",
    "train-clean-100": "2a93770f6d5c6c964bc36631d331a522",
    "train-clean-360": "c0e676e450a7ff2f54aeade5171606fa",
    "train-other-500": "d1a0fd59409feb2c614ce4d30c387708",
}
ARCHIVES = {
    name: Archive(f"https://www.openslr.org/resources/12/{name}.tar.gz", "md5", digest)
    for name, digest in OPENSLR_MD5.items()
}
# Libri-Light publishes no checksum; this one is torchaudio's (torchaudio/datasets/librilight_limited.py).
ARCHIVES[LIBRILIGHT_FOLDER] = Archive(
    "https://dl.fbaipublicfiles.com/librilight/data/librispeech_finetuning.tgz",
    "sha256",
    "5d1efdc777b548194d7e09ba89126e2188026df9fd57aa57eb14408d2b2342af",
)
ATTEMPTS = 5  # long downloads are interrupted; each attempt continues where the last one stopped
CHUNK_BYTES = 1 << 20


def _verify(path: Path, archive: Archive) -> None:
    found = file_digest(path, archive.algorithm)
    if found != archive.digest:
        raise ValueError(
            f"{path}: {archive.algorithm} is {found}, expected {archive.digest} for {archive.url}. "
            "Delete the file and download it again."
        )


def _fetch_rest(url: str, path: Path) -> None:
    """Append to ``path`` the missing part of ``url``; if the server ignores the range, the download restarts."""
    done = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:  # range not satisfiable: the file is complete
            return
        raise
    with response:
        if response.status != 206:
            done = 0
        length = response.headers["Content-Length"]
        size = int(length) + done if length else None  # a proxy may not send it: the checksum decides
        with (
            open(path, "ab" if done else "wb") as stream,
            tqdm(total=size, initial=done, unit="B", unit_scale=True, desc=path.name) as bar,
        ):
            while chunk := response.read(CHUNK_BYTES):
                stream.write(chunk)
                bar.update(len(chunk))
    if size is not None and path.stat().st_size != size:
        raise ConnectionError(f"{url}: broke off after {path.stat().st_size} of {size} bytes")


def download(archive: Archive, path: Path) -> None:
    """Download to ``path``, and continue an earlier ``.part`` file. ``path`` appears only once its checksum is right.

    Raises:
        ConnectionError: the server cannot be reached, or interrupts every attempt; another call continues.
        ValueError: the checksum is wrong; the download is deleted.
    """
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch_rest(archive.url, part)
            break
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and broken connections
            if attempt == ATTEMPTS or isinstance(error, urllib.error.HTTPError):
                raise ConnectionError(
                    f"{archive.url}: {error}. Run again to go on, or put the file at {path} yourself."
                ) from error
            logger.warning("%s: %s; attempt %d of %d", archive.url, error, attempt + 1, ATTEMPTS)
    try:
        _verify(part, archive)
    except ValueError:
        part.unlink()
        raise
    part.replace(path)


def extract(path: Path, destination: Path) -> None:
    """Unpack what ``destination`` does not have yet; each subset appears whole or not at all.

    Raises:
        tarfile.FilterError: a member would be written outside ``destination``, or is a device or a link to outside.
    """
    logger.info("unpacking %s", path)
    with tarfile.open(path) as tar:
        top = destination / Path(tar.next().name).parts[0]
        # unpack in LibriSpeech itself, which may be a link to another disk: the result is renamed, not copied
        place = top if top.name == "LibriSpeech" and top.is_dir() else destination
        with tempfile.TemporaryDirectory(dir=place, prefix=".unpacking-") as temporary:
            with naming(place):
                tar.extractall(temporary, filter="data")
            _move_what_is_missing(Path(temporary), destination)


def _move_what_is_missing(unpacked: Path, destination: Path) -> None:
    for top in sorted(unpacked.iterdir()):
        # LibriSpeech's archives share the folder LibriSpeech; Libri-Light's archive has its own
        members = top.iterdir() if top.name == "LibriSpeech" else [top]
        for member in sorted(members):
            target = destination / member.relative_to(unpacked)
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                member.rename(target)


def download_corpora(data: PathLike, subsets: Optional[Sequence[str]] = None) -> None:
    """Download and unpack into ``data`` the archives that ``subsets`` need and ``data`` lacks; without ``subsets``,
    all archives.

    An archive that is in ``data`` already is checked and used. Archives are kept.

    Raises:
        ConnectionError, ValueError: see `download`; ValueError also for a name that no archive holds.
        RuntimeError: another process is downloading into ``data``.
    """
    data = Path(data)
    wanted = list(subsets or ARCHIVES)
    names: List[str] = []
    for subset in wanted:
        names += TRAIN_960 if subset == "train-960" else [LIBRILIGHT_FOLDER if subset in LIBRILIGHT else subset]
    unknown = sorted(set(names) - set(ARCHIVES))
    if unknown:
        known = sorted({*OPENSLR_MD5, *SOURCES})
        raise ValueError(f"Cannot download {', '.join(unknown)}. There are: {', '.join(known)}.")
    with alone(data / ".download.lock", "downloads into this folder. Wait for it."):
        _download_missing(data, list(dict.fromkeys(names)))


def _download_missing(data: Path, names: Sequence[str]) -> None:
    for left_over in (path for root in corpus_roots(data) for path in root.glob(".unpacking-*")):
        shutil.rmtree(left_over)  # from a killed call: up to 30 GB
    present = {folder.name for root in corpus_roots(data) if root.is_dir() for folder in root.iterdir()}
    for name in names:
        if name in present:
            continue
        archive = ARCHIVES[name]
        path = data / archive.url.rpartition("/")[2]
        if path.exists():
            _verify(path, archive)
        else:
            download(archive, path)
        extract(path, data)
