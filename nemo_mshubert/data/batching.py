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

"""Batches of utterances of similar length, so that there is little padding."""

from typing import Iterator, List, Sequence, TypeVar

Length = TypeVar("Length", int, float)


def batches_by_length(lengths: Sequence[Length], most: Length) -> Iterator[List[int]]:
    """Indices of utterances in batches, the longest first. A batch has at most the size ``most`` including padding, in
    the unit of ``lengths``.

    A longer utterance is a batch of its own.
    """
    batch: List[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
