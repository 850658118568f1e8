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

"""Shards of NeMo's tarred datasets, read one at a time.

For a local shard, the lines of the manifest are enough to choose batches; the bytes of an utterance are read from the
tar when its batch is loaded. So the buffers of loader processes for shuffling and bucketing need little memory, and a
resumed run skips millions of utterances without reading their audio. A tar behind an address or a pipe is read from
start to end, and its audio is held with the lines.
"""

import io
import re
import tarfile
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from lhotse import AudioSource, MonoCut, Recording
from lhotse.cut import Cut, MultiCut
from lhotse.serialization import open_best
from lhotse.utils import fastcopy
from nemo.collections.common.data.lhotse.nemo_adapters import LazyNeMoTarredIterator, expand_sharded_filepaths

from nemo_mshubert.data.manifest import SAMPLE_RATE, Entry, iter_lines, parse_lines
from nemo_mshubert.data.tarred import is_local

MEMBER = "_mshubert_member"  # key of a cut's custom fields
# NeMo's converter names the segments of one member <stem>-sub1, -sub2... in the manifest.
SUB = re.compile(r"-sub\d+(?P<ext>\.\w+)?$")


@dataclass
class Shard:
    """A tar and the manifest of its members.

    Args:
        manifest: path of the manifest of this tar, or, with ``lines``, of the manifest that they were taken from.
        tar: path of the tar.
        lines: the lines of this shard, if several shards share one manifest.
    """

    manifest: str
    tar: str
    lines: Optional[List[Entry]] = None

    def entries(self) -> List[Entry]:
        """All lines. Raises what `iter_lines` raises, and ``OSError`` if an address or a command fails."""
        if self.lines is not None:
            return self.lines
        if is_local(self.manifest):
            return [entry for _, entry in iter_lines(self.manifest)]
        with _open_remote(self.manifest) as stream:
            lines = io.BytesIO(stream.read())
        return [entry for _, entry in parse_lines(lines, self.manifest)]

    def cuts(
        self, chosen: List[Tuple[int, Entry]], channel_selector: Union[int, str, None]
    ) -> Iterator[Tuple[int, Cut]]:
        """``(number, cut)`` for each chosen ``(number, line)``, for `with_audio`; from a remote tar, in the tar's
        order.

        Args:
            channel_selector: NeMo's option: a channel, or the field of the line that holds one.
        """
        if is_local(self.tar):
            for number, entry in chosen:
                yield number, _cut(entry, Member(self, entry["audio_filepath"], _channel(entry, channel_selector)))
            return
        lines_of = defaultdict(list)
        for number, entry in chosen:
            lines_of[entry["audio_filepath"]].append((number, entry))
        segments = defaultdict(list)  # by the member that holds them
        for name in lines_of:
            segments[_member_of(name)].append(name)
        for name, data in self._stream():
            # A file may itself be named like a segment of another. Not a set, whose order differs between processes.
            lines = [line for own in dict.fromkeys((name, *segments[name])) for line in lines_of.pop(own, ())]
            for number, entry in lines:
                yield number, _cut(entry, Member(self, name, _channel(entry, channel_selector), data))
        if lines_of:
            raise self._no_member(next(iter(lines_of)))

    def _stream(self) -> Iterator[Tuple[str, bytes]]:
        with _open_remote(self.tar) as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
            for member in tar:
                if member.isreg():
                    yield member.name, tar.extractfile(member).read()

    @cached_property
    def members(self) -> Dict[str, Tuple[int, int]]:
        """First byte and number of bytes of the members of a local tar; raises ``ValueError`` if it is damaged."""
        try:
            with tarfile.open(self.tar, "r:") as tar:
                return {member.name: (member.offset_data, member.size) for member in tar if member.isreg()}
        except tarfile.TarError as error:
            raise ValueError(
                f"{self.tar}: damaged ({error}). Remove it and run scripts/make_tarred.py again."
            ) from error

    def read(self, name: str) -> bytes:
        """The bytes of the member of a local tar that a line names ``name``.

        Raises:
            FileNotFoundError, ValueError: no such tar, no such member, or the tar has become shorter.
        """
        if name not in self.members:
            name = _member_of(name)
        if name not in self.members:
            raise self._no_member(name)
        start, size = self.members[name]
        with open(self.tar, "rb") as stream:
            stream.seek(start)
            data = stream.read(size)
        if len(data) < size:
            raise ValueError(f"{self.tar}: truncated. Remove it and run scripts/make_tarred.py again.")
        return data

    def _no_member(self, name: str) -> ValueError:
        return ValueError(
            f"{self.tar}: no member {name}, which {self.manifest} names: truncated, or of another packing. Run "
            "scripts/make_tarred.py again into a new folder."
        )


@contextmanager
def _open_remote(path: str) -> Iterator[BinaryIO]:
    """A stream of bytes from an address or a command.

    Raises:
        OSError: it cannot be opened, or not read to its end, whatever error its library raises.
    """
    try:
        stream = open_best(path, "rb")
    except Exception as error:
        cause = error.__context__ or error  # Lhotse's own error always advises to install a library
        raise OSError(
            f"{path}: cannot be opened ({_named(cause)}). Addresses need their library (for s3://: pip install "
            "'smart_open[s3]') and its credentials."
        ) from error
    try:
        with stream:
            yield stream
            while stream.read(2**20):  # read what tarfile leaves, else the command is cut off and seems to fail
                pass
        if getattr(stream, "status", 0):  # exit status of a command; Lhotse's close ignores it
            raise OSError(f"the command ended with {stream.status}")
    except Exception as error:
        raise OSError(f"{path}: cannot be read to its end ({_named(error)}). The same command goes on.") from error


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@dataclass
class Member:
    """What a cut needs to find its audio; ``data`` holds the bytes of a member of a remote tar."""

    shard: Shard
    name: str
    channel: Optional[int]
    data: Optional[bytes] = None


def _channel(entry: Entry, selector: Union[int, str, None]) -> Optional[int]:
    if not isinstance(selector, str):
        return selector
    if selector not in entry:
        raise ValueError(
            f"{entry['audio_filepath']}: its line has no field {selector!r}, which channel_selector names. Add it to "
            "all lines, or give the number of the channel."
        )
    return entry[selector]


def _member_of(name: str) -> str:
    """Name of the tar member that holds the audio of a line."""
    return SUB.sub(lambda found: found["ext"] or "", name)


def _cut(entry: Entry, member: Member) -> Cut:
    duration, offset = entry["duration"], entry.get("offset") or 0.0
    recording = Recording(
        id=member.name,
        sources=[AudioSource("memory", [0], b"")],
        sampling_rate=SAMPLE_RATE,
        num_samples=round((offset + duration) * SAMPLE_RATE),
        duration=offset + duration,
    )
    custom = {**entry, MEMBER: member}
    return MonoCut(f"{member.name}-{offset}", offset, duration, 0, recording=recording, custom=custom)


def with_audio(cut: Cut) -> Cut:
    """A cut of `Shard.cuts` with its recording in memory, at 16 kHz, followed by the transforms that NeMo's loader
    has added (a codec, for example).

    A recording that cannot be read keeps its bytes, so that decoding raises the same error as for a broken file.
    """
    member = cut.custom[MEMBER]
    data = member.shard.read(member.name) if member.data is None else member.data
    try:
        recording = Recording.from_bytes(data, member.name).resample(SAMPLE_RATE)
    except Exception:  # whatever the codec raises on broken bytes
        return fastcopy(cut, recording=fastcopy(cut.recording, sources=[AudioSource("memory", [0], data)]))
    if cut.recording.transforms:
        recording = fastcopy(recording, transforms=[*(recording.transforms or []), *cut.recording.transforms])
    if member.channel is None and recording.num_channels > 1:
        return MultiCut(cut.id, cut.start, cut.duration, recording.channel_ids, recording=recording, custom=cut.custom)
    return fastcopy(cut, recording=recording, channel=member.channel or 0)


def shards_of(manifests: Union[str, Sequence], tars: Union[str, Sequence]) -> List[Shard]:
    """The shards of all tarred sets, always in the same order.

    Args:
        manifests, tars: NeMo's ``manifest_filepath`` and ``tarred_audio_filepaths``: patterns, or (nested) lists of
            them.

    Raises:
        ValueError: sets have weights, or manifests and tars do not match.
    """
    if isinstance(manifests, str):
        return _shards_of_set(manifests, tars if isinstance(tars, str) else list(tars))
    if isinstance(tars, str) or len(manifests) != len(tars):
        raise ValueError(
            f"manifests {manifests} and tars {tars} do not match: give a list of tars as long as that of the "
            "manifests."
        )
    return [shard for pair in zip(manifests, tars) for shard in _shards_of_set(*map(only_path, pair))]


def only_path(part: Union[str, Sequence]) -> str:
    """The path of an item of NeMo's lists, ``path`` or ``[path]``; raises ``ValueError`` for ``[path, weight]``."""
    if isinstance(part, str):
        return part
    if len(part) != 1:
        raise ValueError(
            f"{list(part)}: every utterance is read once in an epoch, so sets take no weights. List a set twice to "
            "have it read twice."
        )
    return part[0]


def _shards_of_set(manifest: str, tars: Union[str, List[str]]) -> List[Shard]:
    paths, tar_paths = expand_sharded_filepaths(manifest), expand_sharded_filepaths(tars)
    if len(paths) == len(tar_paths) == 1:
        return [Shard(*paths, *tar_paths)]
    try:
        stock = LazyNeMoTarredIterator(manifest, tars)  # pairs them by the numbers in their names
    except AssertionError as error:  # from NeMo, for a file name without a number or a number without a partner
        raise ValueError(
            f"{manifest} and {tars} do not match. Name the same shards in both patterns, as in "
            f"manifest__OP_0..7_CL_.json and audio__OP_0..7_CL_.tar. {error}"
        ) from error
    except KeyError as error:
        raise ValueError(
            f"{manifest}: a line has no {error}, which tells the tar it is in. Name the sharded manifests, or make "
            "the tars again with scripts/make_tarred.py."
        ) from error
    tar_of, lines_of = stock.shard_id_to_tar_path, stock.shard_id_to_manifest
    if len(paths) > 1:
        return [Shard(lines.path, tar_of[number]) for number, lines in lines_of.items()]
    return [Shard(paths[0], tar_of[number], lines) for number, lines in lines_of.items()]
