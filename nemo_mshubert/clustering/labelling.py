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

"""Labels for every line of a manifest, by one process or in shards.

Audio streams in windows of ten minutes, read ahead by threads; nothing is kept of a window but its labels.
"""

import itertools
import json
import logging
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nemo_mshubert.clustering.audio_windows import LeaveOut, Utterance, audio_windows, window_features
from nemo_mshubert.clustering.features import FeatureMaker
from nemo_mshubert.clustering.label_maker import LabelMaker
from nemo_mshubert.clustering.left_out import RATE_FIELDS, LeftOut, left_out_path, unlabelled
from nemo_mshubert.data.labels import FrameLabels
from nemo_mshubert.data.manifest import (
    SAMPLE_RATE,
    Line,
    count_lines,
    iter_manifest,
    manifest_lines,
    utterance_id,
    write_manifest,
)
from nemo_mshubert.file_lock import alone
from nemo_mshubert.partial_file import locked_partial
from nemo_mshubert.whole_files import PathLike

logger = logging.getLogger(__name__)

MAX_ROUNDING = 0.01  # seconds between a file and the "duration" of its line: two decimals, and less than a frame


class Shard(NamedTuple):
    """Part ``index`` (from 0) of ``count`` of a manifest: neighbouring lines, so that parts in order are the whole."""

    index: int = 0
    count: int = 1

    def lines(self, total: int) -> range:
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)

    def path(self, output: PathLike) -> Path:
        """Where its lines are written: ``output`` itself, or ``<stem>.shard-2-of-8.json`` beside it."""
        output = Path(output)
        name = f"{output.stem}.shard-{self.index}-of-{self.count}{output.suffix}"
        return output if self.count == 1 else output.with_name(name)


def label_manifest(
    manifest: PathLike,
    output: PathLike,
    maker: LabelMaker,
    features: FeatureMaker,
    shard: Shard = Shard(),
    skip_unusable: bool = False,
) -> bool:
    """Write ``output``: the lines of ``manifest`` with labels of ``maker``, replacing labels they may have.

    A ``shard`` writes its lines alone, to ``shard.path(output)``; `merge_shards` joins them.

    Lines go to ``.<output>.<id of maker>.partial`` beside ``output``, window by window. After an interruption the same
    call goes on behind the last line that is in the manifest unchanged, with labels of the same maker; so a bad line
    can be repaired and nothing before it is lost. With ``skip_unusable`` it is left out instead, and written with the
    reason to the manifest of `LeftOut` beside ``output``.

    Returns:
        False if that was there already, with the same lines and labels of the same maker, or the whole ``output`` was.

    Raises:
        FileNotFoundError, ValueError: ``features`` are not those of ``maker``; ``output``, or that of the shard, is
            the manifest, or another file than one labelled by ``maker``; or the first line whose audio is missing or
            unusable, or whose labels fail their checks; with ``skip_unusable``, no line that can be labelled.
        RuntimeError: another process labels these lines, or others into ``output``.
    """
    maker.check_features(features.description)
    total = count_lines(manifest)
    _check_output(manifest, Path(output), maker.id)
    own, lines = shard.path(output), shard.lines(total)
    for path, expected in ((Path(output), range(total)), (own, lines)):
        if _is_complete(manifest, path, maker.id, expected):
            logger.info("%s: has labels of %s already.", path, maker.id)
            return False
    output = own
    _check_output(manifest, output, maker.id)
    left_out = LeftOut(output)
    leave_out = left_out.add if skip_unusable else None
    remedy = "Wait for it, or give this one another --shard or --output."
    # with another k-means it has lines of its own, and the same manifest of those left out
    lock = alone(output.with_name(f".{output.name}.lock"), f"is labelling into this file. {remedy}")
    with lock, locked_partial(output, maker.id, f"is labelling these lines. {remedy}") as (partial, stream):
        if _is_complete(manifest, output, maker.id, lines):  # by another process, since the look above
            partial.unlink()
            return False
        if not partial.stat().st_size:
            left_out.clear()  # of an earlier output, or of audio that was missing and may be there now
        done, size = _labelled_prefix(manifest, partial, maker.id, lines, left_out)
        os.truncate(partial, size)
        if done:
            logger.info("%s: going on behind line %d of %d.", output, done, len(lines))
        progress = tqdm(total=len(lines), initial=done, desc="labelling", unit=" utterances", disable=None)
        for window in audio_windows(_lines_of(manifest, lines[done:]), leave_out):
            labels = window_labels(window_features(window, features), maker)
            entries = label_entries(window, labels, maker.id, leave_out)
            stream.writelines(manifest_lines(partial, entries))
            stream.flush()
            progress.update(len(window))
        progress.close()
        if shard.count == 1 and not partial.stat().st_size:
            raise _none_labelled(manifest, total, left_out.path)
        _check_output(manifest, output, maker.id)  # with another k-means a second process may have been quicker
        os.replace(partial, output)
    logger.info("%s: %d utterances labelled.", output, len(lines) - len(left_out))
    if len(left_out):
        logger.warning("%s: the %d lines that were left out, with the reasons.", left_out.path, len(left_out))
    return True


def merge_shards(manifest: PathLike, output: PathLike, maker: LabelMaker, count: int) -> bool:
    """Join the ``count`` shards of `label_manifest` to ``output``, whole or not at all, and remove them.

    Returns:
        False if ``output`` was there already.

    Raises:
        ValueError: shards that are missing, unfinished, or of another maker; they are named, and nothing is written.
            Or ``output`` is what `label_manifest` refuses, or no line could be labelled, and the shards are removed.
        RuntimeError: another process joins them.
    """
    if count < 1:
        raise ValueError(f"{count} shards: expected the number that `label.py make --shard` was given, 1 or more.")
    total = count_lines(manifest)
    _check_output(manifest, Path(output), maker.id)
    if _is_complete(manifest, Path(output), maker.id, range(total)):
        return False
    work = "is labelling these lines, or joining their shards. Wait for it."
    with locked_partial(Path(output), maker.id, work) as (partial, _):
        try:
            return _join(manifest, output, maker, count, total)
        finally:
            if not partial.stat().st_size:  # else of a call without --shard, which may go on with it
                partial.unlink()


def _join(manifest: PathLike, output: PathLike, maker: LabelMaker, count: int, total: int) -> bool:
    if _is_complete(manifest, Path(output), maker.id, range(total)):  # by another process, since the look before
        return False
    shards = [Shard(index, count) for index in range(count)]
    missing = [
        shard.index for shard in shards if not _is_complete(manifest, shard.path(output), maker.id, shard.lines(total))
    ]
    if missing:
        raise ValueError(
            f"{output}: the shards {missing} of {count} are not there whole, with labels of {maker.id}. Run `label.py "
            f"make --shard {missing[0]}/{count}` (and so on); what they have is kept."
        )
    paths = [shard.path(output) for shard in shards]
    left_out = [path for path in map(left_out_path, paths) if path.is_file()]
    LeftOut(output).clear()  # of an earlier output
    if left_out:  # before the labels, which are whole with them alone
        write_manifest(left_out_path(output), (entry for path in left_out for _, entry in iter_manifest(path)))
    any_labelled = any(path.stat().st_size for path in paths)
    if any_labelled:
        write_manifest(output, (entry for path in paths for _, entry in iter_manifest(path)))
    for path in [*paths, *left_out]:
        path.unlink()
    if not any_labelled:
        raise _none_labelled(manifest, total, left_out_path(output))
    return True


def _none_labelled(manifest: PathLike, total: int, left_out: Path) -> ValueError:
    return ValueError(f"{manifest}: none of {total} lines can be labelled, see {left_out}.")


def _check_output(manifest: PathLike, output: Path, maker_id: str) -> None:
    """Raise ``ValueError`` where writing would destroy a file that is not an earlier result of the same k-means."""
    if left_out_path(output).exists() and left_out_path(output).samefile(manifest):
        raise ValueError(f"{manifest}: lists what was left out of --output {output}. Give another --output.")
    if not output.exists():
        return
    if output.is_dir():
        raise ValueError(f"{output}: a folder. Name a file in it as --output.")
    if output.samefile(manifest):
        raise ValueError(f"{output}: --manifest and --output are one file. Give another --output.")
    found = _maker_of_first_line(output)
    if found != maker_id:
        holds = f"labels of another k-means ({found}, not {maker_id})" if found else "no labels"
        raise ValueError(f"{output}: is there already, with {holds}. Give another --output, or remove the file.")


def _maker_of_first_line(manifest: Path) -> Optional[str]:
    try:
        _, entry = next(iter_manifest(manifest))
        return entry["labels"]["maker"]
    except (ValueError, KeyError, TypeError, StopIteration):
        return None  # whatever it is, it has no labels


def window_labels(features: List[Tensor], maker: LabelMaker) -> List[Dict[int, np.ndarray]]:
    """Labels ``{clusters: uint16 [T]}`` of the stored sets of each utterance, found on the device of the features."""
    ends = np.cumsum([len(rows) for rows in features])
    sets = {k: np.split(labels, ends[:-1]) for k, labels in maker.label(torch.cat(features)).items()}
    return [dict(zip(sets, parts)) for parts in zip(*sets.values())]


def label_entry(utterance: Utterance, sets: Dict[int, np.ndarray], maker_id: str) -> Dict[str, Any]:
    """The manifest entry with labels ``{clusters: uint16 [T]}``, its duration, and the rate of its audio, see
    `_rate_field`; raises ``ValueError`` where the labels fail their checks."""
    entry = utterance.entry
    labels = FrameLabels(maker_id, len(utterance.samples), sets, offset=entry.get("offset"))
    labels.check(f"{utterance.where}: {utterance_id(entry)}")
    line = {key: value for key, value in entry.items() if key not in RATE_FIELDS}
    if entry.get("duration") is None:  # which training needs
        line["duration"] = len(utterance.samples) / SAMPLE_RATE
    return {**line, **_rate_field(utterance), "labels": labels.to_manifest()}


def label_entries(
    window: List[Utterance], labels: List[Dict[int, np.ndarray]], maker_id: str, leave_out: Optional[LeaveOut]
) -> List[Dict[str, Any]]:
    """`label_entry` of each utterance; those whose labels fail their checks are left out where that is wanted."""
    entries = []
    for utterance, sets in zip(window, labels):
        try:
            entries.append(label_entry(utterance, sets, maker_id))
        except ValueError as reason:
            if leave_out is None:
                raise
            leave_out(utterance.entry, str(reason))
    return entries


def _rate_field(utterance: Utterance) -> Dict[str, int]:
    """``sampling_rate`` of the file, whatever its line says: NeMo then takes the length of the audio from
    ``duration``.

    Otherwise it opens every file before training, and ends the run at one that is gone. But it takes ``duration`` for
    that of the whole file, so the field is left out where it is that of a segment, or another than the file's.
    """
    entry, found = utterance.entry, len(utterance.samples) / SAMPLE_RATE
    duration = entry.get("duration", found)
    if entry.get("offset") is not None or duration is None or abs(duration - found) > MAX_ROUNDING:
        return {}
    return {"sampling_rate": utterance.file_rate}


def _lines_of(manifest: PathLike, lines: range) -> Iterator[Line]:
    """``("<file>:<line>", entry)`` of some lines, counted from 0."""
    return itertools.islice(iter_manifest(manifest), lines.start, lines.stop)


def _is_complete(manifest: PathLike, labelled: Path, maker_id: str, lines: range) -> bool:
    """Does ``labelled`` hold these lines of the manifest, with labels of the maker, and nothing else?"""
    if not labelled.is_file():
        return False
    found = _labelled_prefix(manifest, labelled, maker_id, lines, LeftOut(labelled))
    return found == (len(lines), labelled.stat().st_size)


def _labelled_prefix(
    manifest: PathLike, labelled: Path, maker_id: str, lines: range, left_out: LeftOut
) -> Tuple[int, int]:
    """How many of these lines of ``manifest`` are done, since ``labelled`` begins with them, with labels of the maker,
    or they were left out; and the bytes of ``labelled`` that they are."""
    count = size = 0
    with open(labelled, "rb") as stream:
        line = stream.readline()
        for _, entry in _lines_of(manifest, lines):
            if line and _is_labelled(line, labelled, entry, maker_id):
                size += len(line)
                line = stream.readline()
            elif entry not in left_out:
                break
            count += 1
    return count, size


def _is_labelled(line: bytes, labelled: Path, entry: Dict[str, Any], maker_id: str) -> bool:
    """Is ``line`` of the manifest ``labelled`` the ``entry`` with labels of the maker?"""
    try:
        found = json.loads(line)
        labels_maker = found["labels"]["maker"]
        if entry.get("duration") is None:
            entry = {**entry, "duration": found["duration"]}
        same = unlabelled(found, labelled) == unlabelled(entry)
    except (ValueError, KeyError, TypeError):  # cut off in the middle of a write, or not labelled
        return False
    return line.endswith(b"\n") and labels_maker == maker_id and same
