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

"""Batches for probes: utterances of similar length together, in an order that depends only on the seed."""

import itertools
from dataclasses import dataclass
from typing import Iterator, List, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nemo_mshubert.analysis.superb.features import FrozenFeatures
from nemo_mshubert.data.manifest import Line


@dataclass
class Targets:
    """The data of a split: manifest lines and their tokens, which are numbers of letters or phones."""

    lines: List[Line]
    tokens: List[List[int]]


@dataclass
class Batch:
    """Utterances, each with the result of `FrozenFeatures.load`."""

    lines: List[Line]
    loaded: List[np.ndarray]
    tokens: List[torch.Tensor]


class UtteranceBatches(Dataset):
    """A dataset whose index is a list of utterance numbers, and whose item is their batch."""

    def __init__(self, targets: Targets, features: FrozenFeatures):
        self.targets, self.features = targets, features

    def __getitem__(self, rows: List[int]) -> Batch:
        lines = [self.targets.lines[row] for row in rows]
        tokens = [torch.tensor(self.targets.tokens[row], dtype=torch.long) for row in rows]
        return Batch(lines, [self.features.load(line) for line in lines], tokens)


def length_batches(
    durations: Sequence[float], batch_size: int, halve_above_seconds: float = np.inf
) -> List[List[int]]:
    """Batches of utterance numbers by duration, longest first; half as many in a batch with an utterance over a limit.

    For phone recognition, s3prl halves batches with utterances above 300,000 samples.
    """
    order = sorted(range(len(durations)), key=lambda row: -durations[row])
    batches = []
    while order:
        size = batch_size // 2 if durations[order[0]] > halve_above_seconds and batch_size > 1 else batch_size
        batches.append(order[:size])
        order = order[size:]
    return batches


def endless(batches: Sequence[List[int]], seed: int) -> Iterator[List[int]]:
    """The batches over and over, reshuffled for every pass."""
    for number in itertools.count():
        yield from (batches[index] for index in np.random.default_rng((seed, number)).permutation(len(batches)))


def loader(dataset: UtteranceBatches, batches: Sequence[List[int]], num_workers: int) -> DataLoader:
    """Load one `Batch` per list of ``batches``, in its own processes."""
    return DataLoader(dataset, sampler=batches, batch_size=None, num_workers=num_workers)
