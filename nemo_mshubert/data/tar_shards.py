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

Of a local shard the lines of the manifest are enough to choose batches; the bytes of an utterance are read from the tar
when its batch is loaded. Thus what loader processes hold back for shuffling and bucketing weighs little, and a resumed run
passes over millions of utterances without reading their audio. A tar behind an address or a pipe is read by NeMo's reader,
from its start to its end.
"""

import re
import tarfile
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from lhotse import AudioSource, MonoCut, Recording
from lhotse.cut import Cut, MultiCut
from lhotse.lazy import LazyJsonlIterator
from lhotse.utils import fastcopy
from nemo.collections.common.data.lhotse.nemo_adapters import LazyNeMoTarredIterator

from nemo_mshubert.data.manifest import SAMPLE_RATE, iter_lines
from nemo_mshubert.data.tarred import is_local

Entry = Dict[str, Any]
# NeMo's converter names the lines of the segments of one member <stem>-sub1, -sub2...
SUB = re.compile(r"-sub\d+(?P<ext>\.\w+)?$")


@dataclass
class Shard:
    """A tar and the manifest of its members.

    Args:
        manifest: path of the lines of this tar, or, with ``lines``, of the manifest that they were taken from.
        tar: its path; of remote tars that share one manifest their pattern.
        lines: of this shard, where one manifest is for several.
    """

    manifest: str
    tar: Union[str, List[str]]
    lines: Optional[List[Entry]] = None

    def entries(self) -> List[Entry]:
        """All lines. Raises what `iter_lines` raises."""
        if self.lines is not None:
            return self.lines
        if is_local(self.manifest):
            return [entry for _, entry in iter_lines(self.manifest)]
        return list(LazyJsonlIterator(self.manifest))

    def cuts(
        self, chosen: List[Tuple[int, Entry]], channel_selector: Union[int, str, None]
    ) -> Iterator[Tuple[int, Cut]]:
        """``(number, cut)`` of the chosen ``(number, line)``: without audio (see `with_audio`), or from a remote tar with it.

        Args:
            channel_selector: NeMo's option: a channel, or the field of the line that holds one.
        """
        if isinstance(self.tar, str) and is_local(self.tar):
            for number, entry in chosen:
                yield number, self._cut_without_audio(entry, channel_selector)
            return
        number_of = {(_member_of(entry["audio_filepath"]), entry.get("offset")): number for number, entry in chosen}
        for cut in LazyNeMoTarredIterator(self.manifest, self.tar):
            number = number_of.get((cut.recording.id, cut.custom.get("offset")))
            if number is not None:
                yield number, cut

    def _cut_without_audio(self, entry: Entry, channel_selector: Union[int, str, None]) -> Cut:
        name, duration, offset = entry["audio_filepath"], entry["duration"], entry.get("offset") or 0.0
        recording = Recording(
            id=name,
            sources=[AudioSource("memory", [0], b"")],
            sampling_rate=SAMPLE_RATE,
            num_samples=round((offset + duration) * SAMPLE_RATE),
            duration=offset + duration,
        )
        channel = entry[channel_selector] if isinstance(channel_selector, str) else channel_selector
        custom = {**entry, "shard": self, "channel": channel}
        return MonoCut(f"{name}-{offset}", offset, duration, 0, recording=recording, custom=custom)

    @cached_property
    def members(self) -> Dict[str, Tuple[int, int]]:
        """First byte and number of bytes of the members of a local tar."""
        with tarfile.open(self.tar, "r:") as tar:
            return {member.name: (member.offset_data, member.size) for member in tar if member.isreg()}

    def read(self, name: str) -> bytes:
        """The bytes of the member of a local tar that a line calls ``name``.

        Raises:
            FileNotFoundError, ValueError: no such tar, no such member, or a tar that is shorter than it was.
        """
        if name not in self.members:
            name = _member_of(name)
        if name not in self.members:
            raise ValueError(
                f"{self.tar}: no member {name}, which {self.manifest} names. Run scripts/make_tarred.py again into a new folder."
            )
        start, size = self.members[name]
        with open(self.tar, "rb") as stream:
            stream.seek(start)
            data = stream.read(size)
        if len(data) < size:
            raise ValueError(f"{self.tar}: truncated. Remove it and run scripts/make_tarred.py again.")
        return data


def with_audio(cut: Cut) -> Cut:
    """A cut of `Shard.cuts` with its recording in memory, at 16 kHz; a remote one holds it already.

    A recording that cannot be read keeps its bytes, so that decoding it raises as that of a broken file does.
    """
    shard = (cut.custom or {}).get("shard")
    if shard is None:
        return cut
    name, channel = cut.recording.id, cut.custom["channel"]
    data = shard.read(name)
    try:
        recording = Recording.from_bytes(data, name).resample(SAMPLE_RATE)
    except Exception:  # whatever the codec raises on broken bytes
        return fastcopy(cut, recording=fastcopy(cut.recording, sources=[AudioSource("memory", [0], data)]))
    if channel is None and recording.num_channels > 1:
        return MultiCut(cut.id, cut.start, cut.duration, recording.channel_ids, recording=recording, custom=cut.custom)
    return fastcopy(cut, recording=recording, channel=channel or 0)


def _member_of(name: str) -> str:
    """Name of the tar member that holds the audio of a line."""
    return SUB.sub(lambda found: found["ext"] or "", name)


def shards_of(manifests: Union[str, Sequence], tars: Union[str, Sequence]) -> List[Shard]:
    """The shards of all tarred sets, in an order that is always the same.

    Args:
        manifests, tars: NeMo's ``manifest_filepath`` and ``tarred_audio_filepaths``: patterns, or (nested) lists of them.

    Raises:
        ValueError: sets with weights, or a manifest and tars that do not match.
    """
    sets = [(manifests, tars)] if isinstance(manifests, str) else zip(manifests, tars)
    return [shard for manifest, tar in sets for shard in _shards_of_set(_only(manifest), _only(tar))]


def _only(path: Union[str, Sequence]) -> str:
    if isinstance(path, str):
        return path
    if len(path) != 1:
        raise ValueError(
            f"{list(path)}: every shard is read once in an epoch, so tarred sets take no weights. List a set twice to have "
            "it read twice."
        )
    return path[0]


def _shards_of_set(manifest: str, tar: str) -> List[Shard]:
    try:
        stock = LazyNeMoTarredIterator(manifest, tar)
    except AssertionError as error:  # what NeMo says of file names without a number, and of numbers without a partner
        raise ValueError(f"{manifest} and {tar} do not match: {error}") from error
    except KeyError as error:
        raise ValueError(
            f"{manifest}: a line has no {error}, which tells the tar it is in. Name the sharded manifests, or make the tars again "
            "with scripts/make_tarred.py."
        ) from error
    tar_of = stock.shard_id_to_tar_path
    if len(stock.paths) > 1:
        return [Shard(lines.path, tar_of[number]) for number, lines in stock.shard_id_to_manifest.items()]
    if len(tar_of) == 1:
        return [Shard(stock.paths[0], *tar_of.values())]
    if all(map(is_local, tar_of.values())):
        return [Shard(stock.paths[0], tar_of[number], lines) for number, lines in stock.shard_id_to_manifest.items()]
    return [Shard(stock.paths[0], tar)]
