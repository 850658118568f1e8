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

"""If a rank hangs, the run ends, and the log names this rank.

When one rank hangs, in its file system or its GPU, the others wait for it in a collective. In the end they report that
the collective timed out, but not for which rank they waited. Here each rank leaves marks that tell the phase of its
work: the rank whose mark is the furthest behind is the one that hangs. If other ranks wait within the same phase, all
of them are named; the usual case, data that does not arrive, is clear.
"""

import os
import sys
import time
from typing import Dict, List, Tuple

import lightning.pytorch as pl
import torch
from nemo.utils import logging

from nemo_mshubert.parallel.hang_watch import EXIT_CODE, HangWatch, hung_message

PHASES = ("loading data", "forward pass", "backward pass", "update", "validation, or loading data behind it")
Mark = Tuple[int, int]  # batches begun, index into PHASES


def furthest_behind(marks: Dict[int, Mark]) -> Tuple[List[int], str]:
    """Ranks with the earliest mark, and where they are; all ranks if they are equally far."""
    batch, phase = earliest = min(marks.values())
    return [rank for rank, mark in marks.items() if mark == earliest], f"{PHASES[phase]}, batch {batch}"


class RankWatch(pl.Callback):
    """End the run when no rank has made progress for ``timeout_seconds``; with a single process, do nothing.

    Args:
        timeout_seconds: longer than a validation batch, a checkpoint, or the first batch of a loader takes.
    """

    def __init__(self, timeout_seconds: float = 1500):
        self.timeout_seconds = timeout_seconds
        self._watch = None
        self._batch = 0
        self._latest = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size == 1:
            return
        self._mark(0)
        self._watch = HangWatch(
            self.timeout_seconds,
            lambda: self._latest,
            lambda marks: self._end(trainer, *furthest_behind({rank: _parse(marks[rank]) for rank in marks})),
            all_wait=True,
        )
        self._watch.start()

    def _mark(self, phase: int) -> None:
        self._latest = f"{self._batch} {phase} {time.monotonic()}"

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        self._batch += 1
        self._mark(1)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        self._mark(2)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer) -> None:
        self._mark(3)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx
    ) -> None:
        self._mark(0)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx, dataloader_idx: int = 0
    ) -> None:
        self._mark(4)  # a sign of life

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_watch()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end_watch()

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.stop()

    def _end(self, trainer: pl.Trainer, ranks: List[int], where: str) -> None:
        hang = f"{', '.join(map(str, ranks))} of {trainer.world_size} hangs in: {where}"
        message = hung_message(self.timeout_seconds, hang, "resumes it from the last checkpoint")
        logging.error(message)
        if trainer.global_rank:  # where NeMo's logger does not write to the terminal
            print(message, file=sys.stderr, flush=True)
        launcher = trainer.strategy.launcher
        if hasattr(launcher, "kill"):  # ranks that this process has started; torchrun and srun end theirs
            launcher.kill(9)
        os._exit(EXIT_CODE)


def _parse(mark: str) -> Mark:
    batch, phase, _ = mark.split()
    return int(batch), int(phase)
