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

"""Label every line of a manifest, in one process or in shards.

Audio is streamed in windows of ten minutes, which threads read ahead. Of each window only the labels are kept.
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

MAX_ROUNDING = 0.01  # s by which "duration" may differ from its file: rounding to two decimals, less than a frame


class Shard(NamedTuple):
    """Part ``index`` (from 0) of ``count`` parts of a manifest: consecutive lines, so the parts in order make up the
    whole."""

    index: int = 0
    count: int = 1

    def lines(self, total: int) -> range:
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)

    def path(self, output: PathLike) -> Path:
        """The file for the lines of this shard: ``output`` itself, or ``<stem>.shard-2-of-8.json`` beside it."""
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
    """Write ``output``: the lines of ``manifest`` with labels of ``maker``, which replace any earlier labels.

    With a ``shard``, only its lines are written, to ``shard.path(output)``; `merge_shards` joins the shards.

    Lines go to ``.<output>.<id of maker>.partial`` beside ``output``, window by window. After an interruption, the
    same call keeps the leading lines that are unchanged in the manifest and have labels of the same maker, and
    continues after them. So one can repair a bad line without losing the work before it. With ``skip_unusable``, a bad
    line is left out instead, and written with the reason to the manifest of `LeftOut` beside ``output``.

    Returns:
        False if the output of this call, or the whole ``output``, exists already with the same lines and with labels
        of the same maker.

    Raises:
        FileNotFoundError, ValueError: ``features`` are not those of ``maker``; ``output``, or the shard's file, is
            the manifest itself or was not labelled by ``maker``; the audio of a line is missing or unusable, or its
            labels fail their checks (the first such line); with ``skip_unusable``, no line can be labelled.
        RuntimeError: another process is labelling these lines, or other lines into ``output``.
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
    # a process with another k-means has its own partial file, but the same manifest of lines left out
    lock = alone(output.with_name(f".{output.name}.lock"), f"is labelling into this file. {remedy}")
    with lock, locked_partial(output, maker.id, f"is labelling these lines. {remedy}") as (partial, stream):
        if _is_complete(manifest, output, maker.id, lines):  # another process finished it since the check above
            partial.unlink()
            return False
        if not partial.stat().st_size:
            left_out.clear()  # it is from an earlier output, or lists missing audio that may exist now
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
        _check_output(manifest, output, maker.id)  # a process with another k-means may have finished first
        os.replace(partial, output)
    logger.info("%s: %d utterances labelled.", output, len(lines) - len(left_out))
    if len(left_out):
        logger.warning("%s: the %d lines that were left out, with the reasons.", left_out.path, len(left_out))
    return True


def merge_shards(manifest: PathLike, output: PathLike, maker: LabelMaker, count: int) -> bool:
    """Join the ``count`` shards of `label_manifest` into ``output``, whole or not at all, and remove them.

    Returns:
        False if ``output`` existed already.

    Raises:
        ValueError: shards are missing, unfinished, or from another maker: they are named, and nothing is written.
            Or `label_manifest` would refuse ``output``. Or no line could be labelled: the shards are removed.
        RuntimeError: another process is joining them.
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
            if not partial.stat().st_size:  # else it belongs to a call without --shard, which may continue it
                partial.unlink()


def _join(manifest: PathLike, output: PathLike, maker: LabelMaker, count: int, total: int) -> bool:
    if _is_complete(manifest, Path(output), maker.id, range(total)):  # another process finished it meanwhile
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
    LeftOut(output).clear()  # from an earlier output
    if left_out:  # written before the labels, which are complete only together with it
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
    """Raise ``ValueError`` if writing would destroy a file that is not an earlier result of the same k-means."""
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
        return None  # whatever the file is, it has no labels


def window_labels(features: List[Tensor], maker: LabelMaker) -> List[Dict[int, np.ndarray]]:
    """Labels ``{clusters: uint16 [T]}`` of the stored sets for each utterance, computed on the features' device."""
    ends = np.cumsum([len(rows) for rows in features])
    sets = {k: np.split(labels, ends[:-1]) for k, labels in maker.label(torch.cat(features)).items()}
    return [dict(zip(sets, parts)) for parts in zip(*sets.values())]


def label_entry(utterance: Utterance, sets: Dict[int, np.ndarray], maker_id: str) -> Dict[str, Any]:
    """The manifest entry with its labels ``{clusters: uint16 [T]}``, its duration and the sampling rate of its audio
    (see `_rate_field`). Raises ``ValueError`` if the labels fail their checks."""
    entry = utterance.entry
    labels = FrameLabels(maker_id, len(utterance.samples), sets, offset=entry.get("offset"))
    labels.check(f"{utterance.where}: {utterance_id(entry)}")
    line = {key: value for key, value in entry.items() if key not in RATE_FIELDS}
    if entry.get("duration") is None:  # training needs it
        line["duration"] = len(utterance.samples) / SAMPLE_RATE
    return {**line, **_rate_field(utterance), "labels": labels.to_manifest()}


def label_entries(
    window: List[Utterance], labels: List[Dict[int, np.ndarray]], maker_id: str, leave_out: Optional[LeaveOut]
) -> List[Dict[str, Any]]:
    """`label_entry` of each utterance. With ``leave_out``, utterances whose labels fail their checks are left out."""
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
    """``sampling_rate`` of the file, whatever its line says: with this field, NeMo takes the length of the audio from
    ``duration``.

    Without it, NeMo opens every file before training and stops at one that is missing. But NeMo takes ``duration`` to
    be that of the whole file. So the field is omitted if the line is a segment, or its duration is not the file's.
    """
    entry, found = utterance.entry, len(utterance.samples) / SAMPLE_RATE
    duration = entry.get("duration", found)
    if entry.get("offset") is not None or duration is None or abs(duration - found) > MAX_ROUNDING:
        return {}
    return {"sampling_rate": utterance.file_rate}


def _lines_of(manifest: PathLike, lines: range) -> Iterator[Line]:
    """``("<file>:<line>", entry)`` of the given lines, counted from 0."""
    return itertools.islice(iter_manifest(manifest), lines.start, lines.stop)


def _is_complete(manifest: PathLike, labelled: Path, maker_id: str, lines: range) -> bool:
    """Whether ``labelled`` holds exactly these lines of the manifest, with labels of the maker."""
    if not labelled.is_file():
        return False
    found = _labelled_prefix(manifest, labelled, maker_id, lines, LeftOut(labelled))
    return found == (len(lines), labelled.stat().st_size)


def _labelled_prefix(
    manifest: PathLike, labelled: Path, maker_id: str, lines: range, left_out: LeftOut
) -> Tuple[int, int]:
    """How many of these lines of ``manifest`` are done, from the first on, and how many bytes of ``labelled`` they
    take. A line is done if ``labelled`` holds it next, with labels of the maker, or if it was left out."""
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
    """Whether ``line`` of the manifest ``labelled`` is ``entry`` with labels of the maker."""
    try:
        found = json.loads(line)
        labels_maker = found["labels"]["maker"]
        if entry.get("duration") is None:
            entry = {**entry, "duration": found["duration"]}
        same = unlabelled(found, labelled) == unlabelled(entry)
    except (ValueError, KeyError, TypeError):  # cut off in the middle of a write, or not labelled
        return False
    return line.endswith(b"\n") and labels_maker == maker_id and same
