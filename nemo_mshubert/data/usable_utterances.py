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

"""Count and check, once before a long run, which lines of manifests NeMo's loaders use."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, NamedTuple, Optional

import torch
from nemo.utils import logging
from omegaconf import DictConfig

from nemo_mshubert.data.manifest import Line, check_for_nemo, iter_manifest
from nemo_mshubert.data.tarred import all_paths, has_remote_paths, local_paths

LEAST_HEARD = 0.2  # share of the audio that an epoch must use, else a warning; tiny uses a third of LibriSpeech


class Counts(NamedTuple):
    """Number of lines of manifests and of usable ones, and seconds of the latter before and after cropping."""

    lines: int = 0
    usable: int = 0
    seconds: float = 0.0
    heard: float = 0.0


def usable_lines(config: DictConfig) -> Callable[[Dict[str, Any]], bool]:
    """A function that tells whether NeMo's loader uses a manifest line: by its duration after cropping, and by the
    fields that exclude it from use."""
    return partial(
        _is_usable,
        shortest=config.get("min_duration") or 0,
        longest=config.get("max_duration") or float("inf"),
        crop=_crop(config),
        status=config.get("keep") or "pass",
    )


def _crop(config: DictConfig) -> float:
    return config.get("truncate_duration") or float("inf")


def _is_usable(entry: Dict[str, Any], shortest: float, longest: float, crop: float, status: str) -> bool:
    duration = _duration(entry, entry["audio_filepath"])
    is_chosen = not entry.get("_skipme") and entry.get("validation_status", status) == status
    return is_chosen and shortest <= min(duration, crop) <= longest


def _duration(entry: Dict[str, Any], where: str) -> float:
    if not isinstance(entry.get("duration"), (int, float)):
        raise ValueError(f'{where}: "duration" (seconds) is missing. Write the manifest again with its durations.')
    return entry["duration"]


def count_utterances(config: DictConfig, rank: int = 0, world_size: int = 1) -> Optional[Counts]:
    """Read the local manifests once before a long run; within a process group, every rank reads its share.

    Args:
        config: NeMo's Lhotse options.

    Returns:
        the counts of all manifests; None if some manifests are remote.

    Raises:
        FileNotFoundError, ValueError: a manifest is missing, a line is broken (file and line are named), no utterance
            is between ``min_duration`` and ``max_duration`` (Lhotse would search tars for one forever), there are more
            buckets than utterances, or NeMo would read another segment of a file than its line says.
    """
    manifests = local_paths(config.manifest_filepath)[rank::world_size]
    if config.get("tarred_audio_filepaths") is None:  # NeMo does not read shards
        for manifest in manifests:
            check_for_nemo(manifest)
            if len(all_paths(config.manifest_filepath)) > 1:
                check_for_mixing(manifest)
    counts = counts_of(config, itertools.chain.from_iterable(map(iter_manifest, manifests)))
    if world_size > 1:
        of_ranks = [(0, Counts())] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(of_ranks, (rank, counts))
        # By rank, since ranks with the same share of the data have counted the same lines.
        counts = Counts(*map(sum, zip(*dict(of_ranks).values())))
    if has_remote_paths(config.manifest_filepath):
        return None
    check_counts(config, counts)
    return counts


def counts_of(config: DictConfig, entries: Iterable[Line]) -> Counts:
    """The counts of lines of manifests, as `iter_manifest` yields them.

    Raises:
        ValueError: a line has no duration, is from a tarred dataset whose tars are not given, or is a segment of a
            file of which NeMo would read another segment; names file and line.
    """
    is_usable, crop = usable_lines(config), _crop(config)
    has_tars = config.get("tarred_audio_filepaths") is not None
    lines = usable = 0
    seconds = heard = 0.0
    for where, entry in entries:
        lines += 1
        duration = _duration(entry, where)
        if not has_tars:
            _check_plain_line(entry, where)
        if is_usable(entry):
            usable, seconds, heard = usable + 1, seconds + duration, heard + min(duration, crop)
    return Counts(lines, usable, seconds, heard)


def check_for_mixing(manifest: str) -> None:
    """Raise ``ValueError`` if a manifest has no line end: NeMo mixes several manifests by their numbers of line ends,
    and would stop once the others are read."""
    with open(manifest, "rb") as stream:
        if not stream.readline().endswith(b"\n"):
            raise ValueError(
                f"{manifest}: empty, or one line without its end, which NeMo takes for none: at the end of an epoch "
                "of several manifests it would end the training. Leave it out, or end its line: echo >> FILE."
            )


def _check_plain_line(entry: Dict[str, Any], where: str) -> None:
    if entry.get("offset") and (entry.get("sampling_rate") or entry.get("sample_rate")):
        raise ValueError(
            f"{where}: offset beside sampling_rate, with which NeMo takes the duration of the segment for that of the "
            "whole file. Remove sampling_rate from lines with an offset (scripts/label.py does)."
        )
    if entry.get("shard_id") is not None and not Path(entry["audio_filepath"]).is_file():
        raise ValueError(
            f"{where}: of a tarred dataset (it has a shard_id). Give the tars too, for training as train_tars."
        )


def check_counts(config: DictConfig, counts: Counts) -> None:
    """Raise ``ValueError`` if the manifests hold no usable utterance, or too few for the buckets; log how many are
    left out."""
    durations = f"{config.get('min_duration') or 0} to {config.get('max_duration') or float('inf')} s"
    if counts.usable == 0:
        raise ValueError(
            f"{config.manifest_filepath}: no utterance of {durations}. Change min_duration and max_duration, or fill "
            "the manifest if it is empty."
        )
    if counts.usable < counts.lines:
        logging.info(
            f"{config.manifest_filepath}: {counts.lines - counts.usable} of {counts.lines} utterances are left out, "
            f"as they are not of {durations} (min_duration and max_duration) or are marked not to be used."
        )
    num_buckets = config.get("num_buckets", 30)
    if config.get("use_bucketing") and num_buckets < 2:
        raise ValueError(f"num_buckets={num_buckets}: one bucket is none. Set use_bucketing=false.")
    if config.get("use_bucketing") and counts.usable < num_buckets:
        raise ValueError(
            f"{config.manifest_filepath}: {counts.usable} utterances are too few for num_buckets {num_buckets}. Lower "
            "it (to 2 at least), or set use_bucketing=false."
        )
    measured = config.get("num_cuts_for_bins_estimate", 10_000)
    if config.get("use_bucketing") and config.get("bucket_duration_bins") is None and measured < num_buckets:
        raise ValueError(
            f"num_cuts_for_bins_estimate={measured}: so many utterances are measured to bound "
            f"num_buckets={num_buckets}. Raise it, or lower num_buckets."
        )


def log_hours(counts: Counts, crop: Optional[float]) -> None:
    """Log how much audio there is to train on, and warn if the crops leave out most of it."""
    hours, heard = counts.seconds / 3600, counts.heard / 3600
    cropped = f", with lines cropped to {crop:g} s" if crop else ""
    logging.info(
        f"Training on {counts.usable} utterances. They last {hours:.2f} h, "
        f"of which an epoch hears {heard:.2f} h{cropped}."
    )
    if counts.heard < LEAST_HEARD * counts.seconds:
        logging.warning(
            f"An epoch hears {heard:.2f} of {hours:.2f} h: of every line it takes one crop, of {crop:g} s at most "
            "(truncate_duration), and most are far longer. To hear more of them, cut them into shorter ones with "
            f"scripts/prepare_folder.py --segment_seconds {crop:g}, and label those."
        )
