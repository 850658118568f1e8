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

"""NeMo's tarred datasets: ``audio_{i}.tar``, ``sharded_manifests/manifest_{i}.json`` and
``tarred_audio_manifest.json``.

The layout is that of NeMo's ``convert_to_tarred_audio_dataset.py``. Every manifest key, labels included, is kept, and
``shard_id`` is added, so stock readers accept it too. A shard exists whole or not at all, and another run makes the
missing shards.
"""

import io
import json
import os
import random
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Dict, List, Tuple, Union

import soundfile
from tqdm import tqdm

from nemo_mshubert.data.audio import check_length, load_audio, require_audio_file
from nemo_mshubert.data.digest import file_digest
from nemo_mshubert.data.manifest import SAMPLE_RATE, Entry, read_manifest
from nemo_mshubert.file_lock import alone
from nemo_mshubert.whole_files import PathLike, atomic_write, claim_json, remove_left_over

TAR_END = bytes(2 * tarfile.BLOCKSIZE)  # two zero blocks close an archive
SOURCE = "source.json"  # in a tarred dataset: what it was made from
SHARDED = "sharded_manifests"  # NeMo's name for the folder of the shards' manifests


def make_tarred(manifest: PathLike, output: PathLike, num_shards: int, seed: int = 0, num_workers: int = 2) -> Path:
    """Write a tarred dataset and return the path of its ``tarred_audio_manifest.json``.

    Utterances are shuffled over shards by ``seed``. Files are copied byte for byte; a line with an offset becomes a
    FLAC member that holds only its segment.

    Raises:
        FileNotFoundError, ValueError: a file is missing or unreadable; two lines have the same audio file and offset;
            there are fewer utterances than shards; or the output folder holds another dataset.
        RuntimeError: another process is packing into the folder.
    """
    output = Path(output)
    entries = [
        (_member_name(entry, Path(os.path.abspath(manifest)).parent), entry) for entry in read_manifest(manifest)
    ]
    _check_unique(entries, manifest)
    if not 1 <= num_shards <= len(entries):
        raise ValueError(
            f"num_shards: expected 1 to {len(entries)} (the utterances of {manifest}), found {num_shards}."
        )
    random.Random(seed).shuffle(entries)
    jobs = [(output, shard, entries[shard::num_shards]) for shard in range(num_shards)]
    joined = output / "tarred_audio_manifest.json"
    with alone(output / ".lock", "is packing into this folder. Wait for it, or give another --output."):
        _claim_folder(output, manifest, num_shards, seed)
        for folder, name in ((output, "audio_*.tar"), (output, joined.name), (output / SHARDED, "manifest_*.json")):
            remove_left_over(folder, name)  # from killed calls: gigabytes
        with ThreadPoolExecutor(num_workers) as pool:
            for _ in tqdm(pool.map(_write_shard, *zip(*jobs)), total=num_shards, desc="shards", unit="shard"):
                pass
        with atomic_write(joined) as stream:
            for shard in range(num_shards):
                stream.write(_manifest_path(output, shard).read_text(encoding="utf-8"))
    return joined


def _manifest_path(output: Path, shard: int) -> Path:
    return output / SHARDED / f"manifest_{shard}.json"


def _member_name(entry: Entry, root: Path) -> str:
    """Flat name of the audio in a tar: its path below the manifest's folder, with separators replaced by ``_``."""
    path = Path(os.path.abspath(entry["audio_filepath"]))
    stem, suffix = os.path.splitext(str(path.relative_to(root) if path.is_relative_to(root) else path))
    squashed = stem.strip("/").replace("/", "_").replace(".", "_")
    if entry.get("offset") is None:
        return squashed + suffix
    return f"{squashed}_at{round(entry['offset'] * SAMPLE_RATE)}.flac"


def _check_unique(entries: List[Tuple[str, Entry]], manifest: PathLike) -> None:
    paths: Dict[str, str] = {}
    for name, entry in entries:
        path = entry["audio_filepath"]
        if paths.get(name) == path:
            raise ValueError(
                f"{manifest}: {path} occurs twice (with the same offset). A tar holds one member per utterance; "
                "remove the double line."
            )
        if name in paths:
            raise ValueError(
                f"{manifest}: {paths[name]} and {path} would both be {name} in a tar. Rename one of them."
            )
        paths[name] = path


def _claim_folder(output: Path, manifest: PathLike, num_shards: int, seed: int) -> None:
    """Note what the shards are made from, so that shards of different datasets are never mixed."""
    source = {"manifest_sha256": file_digest(manifest), "num_shards": num_shards, "seed": seed}
    note = output / SOURCE
    if not note.exists():
        found = next(chain(output.glob("audio_*.tar"), output.glob(f"{SHARDED}/manifest_*.json")), None)
        if found:
            raise ValueError(
                f"{found}: of a tarred dataset, of which no {SOURCE} in {output} says what it was made of. Give "
                "another --output, or remove the folder."
            )
    if claim_json(note, source) != source:
        raise ValueError(
            f"{output} holds a tarred dataset of another manifest, number of shards or seed. Give another --output, "
            "or remove the folder."
        )


def _write_shard(output: Path, shard: int, entries: List[Tuple[str, Entry]]) -> None:
    """Write the tar first and its manifest last: a shard with a manifest is complete."""
    manifest, tar_path = _manifest_path(output, shard), output / f"audio_{shard}.tar"
    if manifest.exists() and tar_path.exists():
        return
    with atomic_write(tar_path, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for name, entry in entries:
            data = _audio_bytes(entry)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with atomic_write(manifest) as stream:
        for name, entry in entries:
            stream.write(
                json.dumps({**_without_offset(entry), "audio_filepath": name, "shard_id": shard}, ensure_ascii=False)
                + "\n"
            )


def _audio_bytes(entry: Entry) -> bytes:
    if entry.get("offset") is None:
        path = Path(entry["audio_filepath"])
        require_audio_file(entry, str(path))
        data = path.read_bytes()
        _check_header(data, path, entry)
        return data
    buffer = io.BytesIO()
    soundfile.write(buffer, load_audio(entry), SAMPLE_RATE, format="FLAC")
    return buffer.getvalue()


def _check_header(data: bytes, path: Path, entry: Entry) -> None:
    """Raise ``ValueError`` for broken audio: stock readers silently skip a member whose header they cannot read, or
    that is shorter than ``min_duration``."""
    from lhotse import Recording  # as in read_header: tools that read manifests alone stay fast

    try:
        recording = Recording.from_bytes(data, path.stem)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as audio ({error}). Replace the file or remove the line.") from error
    check_length(recording, entry, str(path))


def _without_offset(entry: Entry) -> Entry:
    entry = {key: value for key, value in entry.items() if key != "offset"}
    if isinstance(entry.get("labels"), dict):
        entry["labels"] = {key: value for key, value in entry["labels"].items() if key != "offset"}
    return entry


def check_shards(manifests: Union[str, List], tars: Union[str, List], rank: int = 0, world_size: int = 1) -> None:
    """Check every local shard before a long run, which would find a broken one only when it reaches it.

    Logs a warning if shards of a dataset are left out.

    Args:
        manifests, tars: NeMo's ``manifest_filepath`` and ``tarred_audio_filepaths``.
        rank, world_size: this process checks its share.

    Raises:
        FileNotFoundError, ValueError: a shard is missing, or a tar has no end mark (is truncated).
    """
    manifest_paths, tar_paths = local_paths(manifests), local_paths(tars)
    for path in manifest_paths[rank::world_size] + tar_paths[rank::world_size]:
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{path}: no such shard. Run scripts/make_tarred.py again: it makes what is missing."
            )
    for path in tar_paths[rank::world_size]:
        with open(path, "rb") as stream:
            stream.seek(max(os.path.getsize(path) - len(TAR_END), 0))
            if stream.read() != TAR_END:
                raise ValueError(
                    f"{path}: truncated, the end mark of a tar is missing. Remove it and run scripts/make_tarred.py "
                    "again."
                )
    _warn_of_shards_left_out(tar_paths)


def _warn_of_shards_left_out(tar_paths: List[str]) -> None:
    from nemo.utils import logging  # as in read_header

    for folder, count in Counter(Path(path).parent for path in set(tar_paths)).items():
        source = folder / SOURCE
        made = json.loads(source.read_text(encoding="utf-8")).get("num_shards", count) if source.is_file() else count
        if count < made:
            logging.warning(
                f"{folder}: {count} of its {made} shards are used. To use all, end the patterns of manifests and tars "
                f"with _OP_0..{made - 1}_CL_."
            )


def is_local(path: str) -> bool:
    """Whether it is a path in the file system, not an address or a command, which NeMo's readers also accept."""
    return "://" not in path and not path.startswith("pipe:")


def local_paths(paths: Union[str, List]) -> List[str]:
    """The local paths among `all_paths`."""
    return [path for path in all_paths(paths) if is_local(path)]


def has_remote_paths(paths: Union[str, List]) -> bool:
    """Whether some of `all_paths` are addresses or commands."""
    return not all(map(is_local, all_paths(paths)))


def all_paths(paths: Union[str, List]) -> List[str]:
    """Every path that is named in NeMo's way, by a pattern or a (nested) list of patterns.

    Raises:
        ValueError: a file has a name that NeMo takes for a pattern.
    """
    from nemo.collections.common.data.lhotse.nemo_adapters import expand_sharded_filepaths

    if isinstance(paths, str):
        found = expand_sharded_filepaths(paths)
        if found != [paths] and Path(paths).is_file():
            raise ValueError(
                f"{paths}: NeMo reads the brackets ()[]<>{{}} in a path as a pattern. Rename the file or its folder, "
                "or give a link to it."
            )
        return found
    return [path for part in paths if not isinstance(part, (int, float)) for path in all_paths(part)]
