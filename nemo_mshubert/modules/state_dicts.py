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

"""Comparison of state dicts, and messages about their tensors."""

from typing import List, Mapping, Sequence

from torch import Tensor

NAMES_LISTED = 5


def misfits(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> List[str]:
    """Messages about the tensors that only ``own`` has, those that only ``theirs`` has, and those that differ in
    shape; none if all fit."""
    kinds = {
        "missing": [name for name in own if name not in theirs],
        "surplus": [name for name in theirs if name not in own],
        "misshapen": [
            f"{name} is {list(theirs[name].shape)}, expected {list(own[name].shape)}"
            for name in own
            if name in theirs and theirs[name].shape != own[name].shape
        ],
    }
    return [f"{kind} tensors {listed(found)}" for kind, found in kinds.items() if found]


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
    return ", ".join(names[:NAMES_LISTED]) + more
