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

"""NeMo's Lhotse loader as one endless, numbered stream of batches that can start anywhere.

A resumed run starts the stream at the number of batches that it has consumed. Skipped batches are sampled, but not
loaded (remote tars must be read for this, but are not decoded).
"""

import itertools
import json
import os
from functools import partial
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import torch
from lhotse import CutSet
from lhotse.dataset.dataloading import worker_init_fn
from lhotse.dataset.sampling.base import CutSampler
from nemo.collections.common.data.lhotse import get_lhotse_dataloader_from_config
from nemo.collections.common.data.lhotse.cutset import data_type_parser
from nemo.utils import logging
from omegaconf import DictConfig, OmegaConf, open_dict
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from nemo_mshubert.data.shard_visits import ShardProgress, Visits, lines_of
from nemo_mshubert.data.shared_batches import Place, SharedBatches, last_before
from nemo_mshubert.data.tar_shards import only_path, shards_of, with_audio
from nemo_mshubert.data.tarred import all_paths, has_remote_paths, local_paths
from nemo_mshubert.data.usable_utterances import count_utterances, log_hours, usable_lines

VISITS = "mshubert_shard_visits"  # our type of data source for NeMo's loader
PER_BUCKET = 20  # utterances per bucket that a process buffers at least, so that most buckets can fill a batch
# Options of NeMo's loader that shift frames, or hide the recording that the labels belong to.
LEAVE_NO_LABELS = (
    "perturb_speed",
    "noise_path",
    "cut_into_windows_duration",
    "concatenate_samples",
    "pad_min_duration",
    "slice_length",
)
# Sources that NeMo's loader prefers to the manifests: their labels would be unchecked.
OTHER_SOURCES = ("input_cfg", "shar_path", "cuts_path")
RANK_SEED_STEP = 100_000  # difference between the seeds of two ranks, as in lhotse's worker_init_fn


class NumberedSampler:
    """For plain manifests: yields ``(batch number, cuts)`` from batch ``first`` on; runs in the training process.

    ``places`` holds a place in each epoch sampled before; the beginnings of further epochs are added to it. Sampling
    starts at the last place before ``first``, so that a resumed run discards less than one epoch of sampled batches.
    """

    def __init__(self, sampler: CutSampler, first: int, places: Dict[int, Place]):
        self.batches = SharedBatches(sampler)
        self.first = first
        self.places = places

    def __iter__(self) -> Iterator[Tuple[int, CutSet]]:
        place = last_before(self.places.values(), self.first)
        number = place.number
        while True:
            self.places[place.epoch] = place
            for cuts in self.batches.from_place(place):
                if number >= self.first:
                    yield number, cuts
                number += 1
            place = Place(place.epoch + 1, number=number)


class FiniteNumberedSampler:
    """Yields ``(batch number, cuts)`` in one pass over the sampler."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self) -> Iterator[Tuple[int, CutSet]]:
        return enumerate(self.sampler)


class NumberedShards(IterableDataset):
    """For tarred data: every loader process of every rank samples and reads its own stream of shards, see
    `shard_visits`.

    Process w of n yields the batches whose number is w modulo n, from the first batch of the streams on. The loader
    asks its processes in turn, so a resumed run rotates the roles: the process that is asked first takes the role of
    the one that owns batch ``first``. Each batch lists its manifest lines in ``lines``, for `VisitRecord`.
    """

    def __init__(self, dataset: Dataset, sampler, visits: Visits, first_of_streams: int, first: int):
        self.dataset = dataset
        self.sampler = sampler
        self.visits = visits
        self.first_of_streams = first_of_streams
        self.first = first

    def __iter__(self):
        info = get_worker_info()
        role, count = (info.id, info.num_workers) if info else (0, 1)  # `_start_worker` has set the id to the role
        numbers = itertools.count(self.first_of_streams + (role - self.first_of_streams) % count, count)
        for number, cuts in zip(numbers, self.sampler):
            if number >= self.first:
                batch = self.dataset[(number, CutSet.from_cuts(map(with_audio, cuts)))]
                yield {**batch, "lines": lines_of(cuts)}

    def role(self, worker_id: int, num_workers: int) -> int:
        return (worker_id + self.first) % num_workers


def _start_worker(worker_id: int, rank: int, world_size: int, seed: int) -> None:
    """Give a loader process its role and its stream."""
    info = get_worker_info()
    shards: NumberedShards = info.dataset
    role = shards.role(worker_id, info.num_workers)
    object.__setattr__(info, "id", role)  # Lhotse also seeds its choice of buckets with the id
    shards.visits.stream = (rank * info.num_workers + role, world_size * info.num_workers)
    worker_init_fn(role, rank=rank, world_size=world_size, seed=seed)


def _lhotse_options(config: DictConfig) -> DictConfig:
    """A copy of the options for NeMo's loader, without those of our dataset. NeMo's background thread is switched off,
    because its timing would determine the order of the batches."""
    options = OmegaConf.to_container(config, resolve=True)
    for ours in ("crop", "max_unreadable"):
        options.pop(ours, None)
    for option in LEAVE_NO_LABELS:
        if options.get(option):
            raise ValueError(
                f"{option}: {options[option]} would take the frames of an utterance from their labels. Remove it."
            )
    for option in OTHER_SOURCES:
        if options.get(option):
            raise ValueError(
                f"{option}: {options[option]}: pre-training reads NeMo manifests. Name them instead, several as "
                "[a.json,b.json]."
            )
    return OmegaConf.create({**options, "concurrent_bucketing": False, "truncate_offset_type": "start"})


def training_loader(
    config: DictConfig,
    dataset: Dataset,
    rank: int,
    world_size: int,
    first_batch: int = 0,
    places: Optional[Dict[int, Place]] = None,
    progress: Optional[ShardProgress] = None,
) -> DataLoader:
    """Endless loader of ``dataset[(number, cuts)]`` over NeMo manifests, plain or tarred, from batch ``first_batch``.

    Args:
        config: NeMo's Lhotse options (``manifest_filepath``, ``tarred_audio_filepaths``, ``batch_duration``,
            ``seed``...). Options that depend on timing or on true randomness are overridden, so that the stream is a
            function of the config, the rank and the number of loader processes.
        dataset: takes a number and cuts, see `PretrainingDataset`.
        places: for plain manifests, epoch -> `Place`, see `NumberedSampler`.
        progress: for tarred data.
    """
    config = _lhotse_options(config)
    parts = (rank, world_size) if torch.distributed.is_initialized() else (0, 1)
    counts = count_utterances(config, *parts)
    if counts is not None:
        log_hours(counts, config.get("truncate_duration"))
    if config.get("tarred_audio_filepaths") is not None:
        _limit_buffer(config, None if counts is None else counts.usable, world_size)
        return _tarred_loader(config, dataset, rank, world_size, first_batch, progress or ShardProgress())
    numbered = partial(NumberedSampler, first=first_batch, places={} if places is None else places)
    return _plain_loader(config, dataset, rank, world_size, numbered)


def _plain_loader(
    config: DictConfig, dataset: Dataset, rank: int, world_size: int, numbered: Callable[[Any], Any]
) -> DataLoader:
    """Loader of plain manifests; ``numbered`` makes a sampler of numbered batches from NeMo's sampler, whose passes
    are finite."""
    with open_dict(config):
        # Patterns are expanded here: NeMo shuffles the files of a pattern in an order that depends on earlier passes.
        manifests = config.manifest_filepath
        config.manifest_filepath = all_paths(
            manifests if isinstance(manifests, str) else list(map(only_path, manifests))
        )
        config.seed = config.get("seed", 0)
        config.shard_seed = config.seed  # the same on all ranks: they draw one order, and share it
        config.force_finite = True  # else NeMo mixes several manifests without end
    stock = get_lhotse_dataloader_from_config(config, rank, world_size, dataset)
    return with_sampler(stock, numbered(stock.sampler))


def with_sampler(loader: DataLoader, sampler) -> DataLoader:
    """NeMo's Lhotse loader of plain manifests, with its sampler replaced; both samplers yield whole batches."""
    return DataLoader(
        loader.dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
    )


def _limit_buffer(config: DictConfig, num_utterances: Optional[int], world_size: int) -> None:
    """Limit the buffer of each stream to its share of an epoch, or to what its buckets need. With a larger buffer, its
    batches would mix many epochs.

    The lines of shards are shuffled already, so Lhotse's shuffling buffer, which it adds to that of the buckets, is
    not needed. For remote manifests the number of utterances is unknown, and the buffers are not changed.
    """
    if num_utterances is None or not config.get("use_bucketing"):
        return
    share = num_utterances // (world_size * max(1, config.get("num_workers", 0)))
    with open_dict(config):
        wanted = config.get("bucket_buffer_size", 10_000) + config.get("shuffle_buffer_size", 10_000)
        config.shuffle_buffer_size = 0
        config.bucket_buffer_size = min(wanted, max(share, PER_BUCKET * config.get("num_buckets", 30)))


def _tarred_loader(
    config: DictConfig, dataset: Dataset, rank: int, world_size: int, first_batch: int, progress: ShardProgress
) -> DataLoader:
    num_workers = config.get("num_workers", 0)
    shards = shards_of(config.manifest_filepath, config.tarred_audio_filepaths)
    logging.info(f"Training on {len(shards)} shards, shared by {world_size * max(1, num_workers)} loader processes.")
    with open_dict(config):
        selector = config.pop("channel_selector", None)
        config.force_map_dataset = False
    order, streams = _identity(config, len(shards), world_size)
    if has_remote_paths(config.tarred_audio_filepaths):  # skipping what was trained on would read it again
        streams = json.dumps([streams, {"first_batch": first_batch}])
    before = progress.begin(order, streams, first_batch)
    visits = Visits(
        shards, usable_lines(config), config.get("seed", 0), config.get("shuffle", False), before, selector
    )
    visits.stream = (rank, world_size)  # without loader processes
    data_type_parser(VISITS)(lambda _: (CutSet(visits), True))  # NeMo's way to register a custom source of cuts
    with open_dict(config):
        config.input_cfg = [{"type": VISITS}]
        config.shard_seed = "randomized" if num_workers else config.get("seed", 0) + RANK_SEED_STEP * rank
    stock = get_lhotse_dataloader_from_config(config, rank, world_size, dataset)
    numbered = NumberedShards(dataset, stock.dataset.sampler, visits, progress.first_batch, first_batch)
    start = partial(_start_worker, rank=rank, world_size=world_size, seed=config.get("seed", 0))
    return DataLoader(
        numbered, batch_size=None, num_workers=num_workers, pin_memory=stock.pin_memory, worker_init_fn=start
    )


def _identity(config: DictConfig, num_shards: int, world_size: int) -> Tuple[str, str]:
    """What determines the order of the visits and their lines, and what determines the streams; see
    `ShardProgress.begin`."""
    options = _options_of_streams(config)
    filters = {
        name: options.get(name)
        for name in ("seed", "shuffle", "min_duration", "max_duration", "truncate_duration", "keep")
    }
    order = json.dumps({"shards": num_shards, **filters})
    return order, json.dumps({"ranks": world_size, **options}, sort_keys=True)


def stream_options(config: DictConfig, world_size: int) -> Dict[str, Any]:
    """What determines the stream of batches of every rank, apart from the data; for a checkpoint."""
    options = _options_of_streams(config)
    options.pop("max_unreadable", None)
    tarred = config.get("tarred_audio_filepaths") is not None
    if not tarred:  # plain manifests are sampled in the training process
        options.pop("num_workers", None)
    return {"ranks": world_size, "tarred": tarred, **options}


def data_options(config: DictConfig, world_size: int) -> Dict[str, Any]:
    """`stream_options`, and the size of the local manifests, which shows whether one was edited."""
    paths = filter(os.path.isfile, local_paths(config.manifest_filepath))  # a manifest may be deleted during the run
    return {**stream_options(config, world_size), "manifest_bytes": sum(map(os.path.getsize, paths))}


def warn_of_other_data(before: Dict[str, Any], now: Dict[str, Any]) -> None:
    """Warn of what has changed in the `data_options` of a run since its checkpoint."""
    changes = [
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if changes:
        logging.warning(
            f"The data goes on, but not exactly as it would have without the interruption: {'; '.join(changes)}."
        )


def _options_of_streams(config: DictConfig) -> Dict[str, Any]:
    """The options without paths, since data may be moved, and without those that change no batch."""
    options = OmegaConf.to_container(config, resolve=True)
    for name in ("manifest_filepath", "tarred_audio_filepaths", "pin_memory"):
        options.pop(name, None)
    return options


def validation_loader(config: DictConfig, dataset: Dataset, rank: int, world_size: int) -> DataLoader:
    """One finite pass over a plain manifest, with the same batch numbers every time; ranks share the utterances.
    Raises ``ValueError`` for tars, and what `count_utterances` raises."""
    config = _lhotse_options(config)
    if config.get("tarred_audio_filepaths") is not None:
        raise ValueError(
            f"tarred_audio_filepaths: {config.tarred_audio_filepaths}: a validation reads plain manifests, so that "
            "the ranks share their lines. Remove it."
        )
    count_utterances(config)
    with open_dict(config):
        config.shuffle = False
    return _plain_loader(config, dataset, rank, world_size, FiniteNumberedSampler)
