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

"""How long a micro-batch takes, and how long it waits for data."""

import time

import lightning.pytorch as pl


class DataWait(pl.Callback):
    """Log ``micro_batch_seconds`` and the part of it spent waiting, ``data_wait_seconds`` and ``data_wait_share``, as
    means over the last ``trainer.log_every_n_steps`` micro-batches. NeMo's timers, which conf/ switches off, log in
    every micro-batch, while a GPU waits for the host.

    The wait is measured on the CPU of rank 0, from the end of a micro-batch to the start of the next. A GPU may still
    be computing then, so this is an upper bound of the time that the GPU waits. The writing of a checkpoint, which
    follows in other callbacks, counts as waiting.
    """

    def __init__(self):
        self._waited = 0.0
        self._batches = 0
        self._since = self._ended = self._validating_since = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = self._ended = time.monotonic()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        now = time.monotonic()
        self._waited += now - self._ended
        self._batches += 1
        if self._batches < trainer.log_every_n_steps:
            return
        passed = max(now - self._since, 1e-9)
        pl_module.log("micro_batch_seconds", passed / self._batches)
        pl_module.log("data_wait_seconds", self._waited / self._batches)
        pl_module.log("data_wait_share", self._waited / passed)
        self._since, self._waited, self._batches = now, 0.0, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx
    ) -> None:
        self._ended = time.monotonic()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validating_since = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A validation between two micro-batches counts neither as waiting nor as part of them."""
        now = time.monotonic()
        if self._since is not None:  # not a validation before training
            self._since += now - self._validating_since
            self._ended = now
