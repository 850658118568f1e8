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

"""Seeds that are functions of their purpose, so that every draw of a training run can be repeated after a resume."""

import hashlib
from typing import Union

import torch


def seed_of(*parts: Union[int, str]) -> int:
    """63-bit seed from a sequence of names and numbers, e.g. ``seed_of(1234, "masks", rank, micro_batch)``."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_of(*parts: Union[int, str]) -> torch.Generator:
    """CPU generator seeded with `seed_of`."""
    return torch.Generator().manual_seed(seed_of(*parts))
