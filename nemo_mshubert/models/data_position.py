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

"""How far a training run has come in its data, over resumes with different numbers of ranks."""

from typing import Any, Dict

from nemo_mshubert.data.shard_visits import ShardProgress
from nemo_mshubert.data.shared_batches import Place, last_before


class DataPosition:
    """Counts batches over all parts of the data; the trainer counts only those of one rank.

    For plain manifests, ``places`` records where each epoch, or what was left of one, began, in this rank's numbers.
    With tarred data, every rank reads its own shards, and ``shards`` records their lines.
    """

    def __init__(self):
        self._batches_before = 0  # of all ranks, up to the last resume
        self._own_before = 0  # of this rank, up to then
        self.places: Dict[int, Place] = {}  # epoch -> place
        self.shards = ShardProgress()

    def batches_of_all(self, own_batches: int, num_parts: int) -> int:
        """Batches of all parts when this rank has had ``own_batches`` since the training began."""
        return self._batches_before + (own_batches - self._own_before) * num_parts

    def first_batch(self, own_batches: int, num_parts: int) -> int:
        """Number of the batch that comes next, in the stream for ``num_parts``."""
        return self.batches_of_all(own_batches, num_parts) // num_parts

    def place(self, own_batches: int, num_parts: int) -> Place:
        """For a checkpoint: the place of the batch that comes next."""
        number = self.first_batch(own_batches, num_parts)
        return last_before(self.places.values(), number).when_next_is(number, num_parts)

    def resume(self, batches_of_all: int, own_batches: int, place: Dict[str, Any], num_parts: int) -> None:
        """Take over the counts of a checkpoint, and its `place` as a dict."""
        self._batches_before, self._own_before = batches_of_all, own_batches
        number = self.first_batch(own_batches, num_parts)
        self.places = {place["epoch"]: Place(**{**place, "number": number})}
