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

A resumed run asks for the stream from the number of batches it has consumed. Skipped batches are sampled, not loaded
(from tars their bytes are read, not decoded).
"""

import itertools
from typing import Dict, Iterator, Optional, Tuple

import torch
from lhotse import CutSet
from lhotse.dataset.dataloading import worker_init_fn
from lhotse.dataset.iterable_dataset import IterableDatasetWrapper
from nemo.collections.common.data.lhotse import get_lhotse_dataloader_from_config
from omegaconf import DictConfig, OmegaConf, open_dict
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from nemo_mshubert.data.manifest import iter_manifest
from nemo_mshubert.data.tarred import local_paths

RANK_SEED_STEP = 100_000  # distance of the seeds of two ranks, that of lhotse's worker_init_fn


def _endless(sampler) -> Iterator[CutSet]:
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        yield from sampler


def epoch_of(batch: int, epoch_starts: Dict[int, int]) -> Tuple[int, int]:
    """The last epoch known to start at or before ``batch``, and its first batch."""
    return max(((epoch, start) for epoch, start in epoch_starts.items() if start <= batch), default=(0, 0))


class NumberedSampler:
    """For plain manifests: yields ``(batch number, cuts)`` from batch ``first``; lives in the training process.

    ``epoch_starts`` has the number of the first batch of epochs sampled before, and is added to. From the last start before
    ``first`` the sampler is asked again, so that a resume samples less than one epoch in vain.
    """

    def __init__(self, sampler, first: int, epoch_starts: Dict[int, int]):
        self.sampler = sampler
        self.first = first
        self.epoch_starts = epoch_starts

    def __iter__(self) -> Iterator[Tuple[int, CutSet]]:
        first_epoch, number = epoch_of(self.first, self.epoch_starts)
        for epoch in itertools.count(first_epoch):
            self.epoch_starts[epoch] = number
            self.sampler.set_epoch(epoch)
            for cuts in self.sampler:
                if number >= self.first:
                    yield number, cuts
                number += 1


class FiniteNumberedSampler:
    """``(batch number, cuts)`` of one pass over the sampler."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self) -> Iterator[Tuple[int, CutSet]]:
        return enumerate(self.sampler)


class NumberedShards(IterableDataset):
    """For tarred data: every loader process samples and reads its own shards.

    Process w of n yields the batches whose number is w modulo n. The loader asks its processes in turn, so on a
    resume the roles are rotated: the process asked first plays the one that owns batch ``first``.
    """

    def __init__(self, dataset: Dataset, sampler, first: int):
        self.dataset = dataset
        self.sampler = sampler
        self.first = first

    def __iter__(self):
        info = get_worker_info()
        role, count = (info.id, info.num_workers) if info else (0, 1)  # `training_loader` made the id the role
        for number, cuts in zip(itertools.count(role, count), _endless(self.sampler)):
            if number >= self.first:
                yield self.dataset[(number, cuts)]

    def role(self, worker_id: int, num_workers: int) -> int:
        return (worker_id + self.first) % num_workers


def _lhotse_options(config: DictConfig) -> DictConfig:
    """A copy for NeMo's loader: without the options of our dataset, and without its background thread, whose timing
    would decide the order of the batches."""
    options = OmegaConf.to_container(config, resolve=True)
    for ours in ("crop", "max_unreadable"):
        options.pop(ours, None)
    return OmegaConf.create({**options, "concurrent_bucketing": False, "truncate_offset_type": "start"})


def check_utterances(config: DictConfig, rank: int = 0, world_size: int = 1) -> None:
    """Read the local manifests once before a long run; within a process group every rank its share of them.

    Raises:
        FileNotFoundError, ValueError: a missing manifest, a broken line (file and line are named), no utterance between
            ``min_duration`` and ``max_duration`` (Lhotse would search tars for one forever), or more buckets than utterances.
    """
    shortest, longest = config.get("min_duration") or 0, config.get("max_duration") or float("inf")
    crop = config.get("truncate_duration") or float("inf")
    manifests = local_paths(config.manifest_filepath)[rank::world_size]
    count = 0
    for where, entry in itertools.chain.from_iterable(map(iter_manifest, manifests)):
        if not isinstance(entry.get("duration"), (int, float)):
            raise ValueError(f'{where}: "duration" (seconds) is missing. Write the manifest again with its durations.')
        count += shortest <= min(entry["duration"], crop) <= longest
    if world_size > 1:
        counts = [(0, 0)] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(counts, (rank, count))
        count = sum(dict(counts).values())  # ranks that share a part of the data have counted the same
    if count == 0:
        raise ValueError(
            f"{config.manifest_filepath}: no utterance of {shortest} to {longest} s. Change min_duration and max_duration, "
            "or fill the manifest if it is empty."
        )
    if config.get("use_bucketing") and count < config.get("num_buckets", 30):
        raise ValueError(
            f"{config.manifest_filepath}: {count} utterances are too few for num_buckets {config.num_buckets}. Lower it "
            "(to 2 at least), or set use_bucketing=false."
        )


def training_loader(
    config: DictConfig,
    dataset: Dataset,
    rank: int,
    world_size: int,
    first_batch: int = 0,
    epoch_starts: Optional[Dict[int, int]] = None,
) -> DataLoader:
    """Endless loader of ``dataset[(number, cuts)]`` over NeMo manifests, plain or tarred, from batch ``first_batch``.

    Args:
        config: NeMo's Lhotse options (``manifest_filepath``, ``tarred_audio_filepaths``, ``batch_duration``, ``seed``...).
            Whatever would depend on timing or on true randomness is overruled, so that the stream is a function of
            the config, the rank and the number of loader processes.
        dataset: takes a number and cuts, see `PretrainingDataset`.
        epoch_starts: of plain manifests, see `NumberedSampler`.
    """
    config = _lhotse_options(config)
    tarred = config.get("tarred_audio_filepaths") is not None
    num_workers = config.get("num_workers", 0)
    with open_dict(config):
        # Shards: every rank and loader process shuffles on its own. Plain manifests: all ranks must draw the same order.
        config.shard_seed = "randomized" if tarred and num_workers else config.seed + RANK_SEED_STEP * rank * tarred
    if torch.distributed.is_initialized():
        check_utterances(config, rank, world_size)
    elif rank == 0:
        check_utterances(config)
    stock = get_lhotse_dataloader_from_config(config, rank, world_size, dataset)
    options = {"batch_size": None, "num_workers": num_workers, "pin_memory": stock.pin_memory}
    if not isinstance(stock.dataset, IterableDatasetWrapper):
        epoch_starts = {} if epoch_starts is None else epoch_starts
        return DataLoader(dataset, sampler=NumberedSampler(stock.sampler, first_batch, epoch_starts), **options)
    shards = NumberedShards(dataset, stock.dataset.sampler, first_batch)

    def init_worker(worker_id: int) -> None:
        role = shards.role(worker_id, num_workers)
        object.__setattr__(get_worker_info(), "id", role)  # Lhotse seeds its choice of buckets with the id, too
        worker_init_fn(role, rank=rank, world_size=world_size, seed=config.seed)

    return DataLoader(shards, worker_init_fn=init_worker, **options)


def validation_loader(config: DictConfig, dataset: Dataset, rank: int, world_size: int) -> DataLoader:
    """One finite pass over a plain manifest, numbered alike every time; ranks share the utterances."""
    config = _lhotse_options(config)
    check_utterances(config)
    with open_dict(config):
        config.shard_seed = config.get("seed", 0)
        config.force_finite = True
        config.shuffle = False
    stock = get_lhotse_dataloader_from_config(config, rank, world_size, dataset)
    return DataLoader(
        dataset,
        sampler=FiniteNumberedSampler(stock.sampler),
        batch_size=None,
        num_workers=config.get("num_workers", 0),
        pin_memory=stock.pin_memory,
    )
