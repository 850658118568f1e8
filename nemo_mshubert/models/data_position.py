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

"""How far a training has come in its data, over resumes with other numbers of ranks."""

from typing import Dict

from nemo_mshubert.data.resumable_loader import epoch_of
from nemo_mshubert.data.shard_visits import ShardProgress


class DataPosition:
    """Counts batches over all parts of the data, where the trainer counts those of one rank.

    Batch b of a stream for n ranks is, for plain manifests, batch ``n b + rank`` of the stream for one rank. So a run
    that goes on with other ranks starts at ``batches of all / ranks``, rounded down: less than one batch per rank is
    repeated, and none is skipped. Of tarred data every rank reads shards of its own; ``shards`` notes their lines.
    """

    def __init__(self):
        self._batches_before = 0  # of all ranks, up to the last resume
        self._own_before = 0  # of this rank, up to then
        # of plain manifests: epoch -> its first batch, in the stream for this number of parts
        self.epoch_starts: Dict[int, int] = {}
        self.shards = ShardProgress()

    def batches_of_all(self, own_batches: int, num_parts: int) -> int:
        """Batches of all parts when this rank has had ``own_batches`` since the training began."""
        return self._batches_before + (own_batches - self._own_before) * num_parts

    def first_batch(self, own_batches: int, num_parts: int) -> int:
        """Number in the stream for ``num_parts`` of the batch that comes next."""
        return self.batches_of_all(own_batches, num_parts) // num_parts

    def resume(self, batches_of_all: int, own_batches: int) -> None:
        """Take over the counts of a checkpoint."""
        self._batches_before, self._own_before = batches_of_all, own_batches

    def epoch_start(self, own_batches: int, num_parts: int) -> Dict[str, int]:
        """For a checkpoint: the epoch that the next batch is of, and its first batch."""
        epoch, first_batch = epoch_of(self.first_batch(own_batches, num_parts), self.epoch_starts)
        return {"epoch": epoch, "first_batch": first_batch, "num_parts": num_parts}

    def seek(self, epoch_start: Dict[str, int], num_parts: int) -> None:
        """Take over that of a checkpoint. With another number of parts epochs start elsewhere: all is sampled
        again."""
        if epoch_start and epoch_start["num_parts"] == num_parts:
            self.epoch_starts = {epoch_start["epoch"]: epoch_start["first_batch"]}
