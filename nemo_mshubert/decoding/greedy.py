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

"""Greedy CTC text from log-probabilities: the baseline without a language model for every tuned decoding."""

from itertools import groupby
from typing import List, Sequence

import numpy as np


def greedy_ids(log_probs_TV: np.ndarray) -> List[int]:
    """The best token of each frame of ``[T, V + 1]``, with repeats merged and blanks (the last index) removed."""
    blank = log_probs_TV.shape[-1] - 1
    return [index for index, _ in groupby(np.argmax(log_probs_TV, axis=-1).tolist()) if index != blank]


def greedy_text(log_probs_TV: np.ndarray, labels: Sequence[str]) -> str:
    """`greedy_ids` of a letter model as text, with one space between words."""
    return " ".join("".join(labels[index] for index in greedy_ids(log_probs_TV)).split())
