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

"""Seeds are the same in every process, and others for every purpose."""

import pytest

from nemo_mshubert.models.seeding import generator_of, seed_of

pytestmark = pytest.mark.unit


def test_a_seed_is_that_of_any_process():
    """A resumed run would draw other masks: Python's own hash is salted. The digest is that of `b2sum -l 64`."""
    assert seed_of(1234, "masks", 2, 3) == generator_of(1234, "masks", 2, 3).initial_seed() == 6021274263018962711


def test_numbers_side_by_side_are_not_one_number():
    """Rank 11 would draw in micro-batch 1 what rank 1 draws in micro-batch 11."""
    assert len({seed_of(1, "masks", rank, batch) for rank in range(120) for batch in range(120)}) == 120**2
