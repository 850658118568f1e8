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

"""Watches the optimizer steps: a step with a non-finite gradient is skipped and counted; many in a row end the run."""

import math
from typing import List, Tuple, Union

import torch
from nemo.utils import logging
from torch import Tensor


class NonFiniteTrainingError(RuntimeError):
    """Too many consecutive updates had a non-finite loss or gradient."""


class StepGuard:
    """Counts skipped updates and remembers the utterances of the current one.

    Args:
        max_consecutive: non-finite updates in a row that end the training.
    """

    def __init__(self, max_consecutive: int):
        self.max_consecutive = max_consecutive
        self.num_skipped = 0
        self._consecutive = 0
        self._micro_batches: List[Tuple[List[str], Tensor]] = []

    def note(self, utterances: List[str], loss_sum: Tensor) -> None:
        """Remember one micro-batch of the current update."""
        self._micro_batches.append((list(utterances), loss_sum.detach()))

    def accept(self, grad_norm: Union[float, Tensor], update: int) -> bool:
        """Whether to take the step. ``grad_norm`` must be that of all ranks, so that all decide alike.

        Raises:
            NonFiniteTrainingError: the last ``max_consecutive`` updates were all non-finite.
        """
        micro_batches, self._micro_batches = self._micro_batches, []
        if math.isfinite(grad_norm):
            self._consecutive = 0
            return True
        self.num_skipped += 1
        self._consecutive += 1
        everything = [name for names, _ in micro_batches for name in names]
        spoiled = [name for names, loss in micro_batches if not loss.isfinite().all() for name in names]
        if spoiled_somewhere := _of_all_ranks(spoiled):
            cause, utterances = "the loss is not finite", spoiled_somewhere
        else:
            cause, utterances = "the gradient overflowed (the loss is finite)", _of_all_ranks(everything)
        message = f"Update {update} skipped ({self.num_skipped} so far): {cause}; its utterances: {utterances}."
        logging.warning(message)
        if self._consecutive >= self.max_consecutive:
            raise NonFiniteTrainingError(
                f"{self._consecutive} updates in a row were not finite. {message} Look at these utterances, lower the "
                "learning rate, or train in fp32 to see whether the precision is the cause."
            )
        return False


def _of_all_ranks(names: List[str]) -> str:
    """``"a, b"`` of one process, ``"rank 2: a, b; rank 5: c"`` of several: users read only the log of rank 0."""
    if not torch.distributed.is_initialized():
        return ", ".join(names)
    gathered: List[List[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, names)
    return "; ".join(f"rank {rank}: {', '.join(found)}" for rank, found in enumerate(gathered) if found)
