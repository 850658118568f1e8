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

"""NaN in one file must not turn a fine-tuned model into NaN: the guard of our pre-training for NeMo's own models."""

import lightning.pytorch as pl
import torch

from nemo_mshubert.callbacks.step_guard import StepGuard


class NonfiniteGuard(pl.Callback):
    """Skip and count updates whose gradients are not finite; ``max_consecutive`` in a row end the run.

    Gradients are already those of all ranks, so that all ranks decide alike. NeMo's batches carry no utterance ids, so
    the log names the micro-batches of the epoch.
    """

    def __init__(self, max_consecutive: int):
        self.guard = StepGuard(max_consecutive)
        self._batch = 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        self._batch = batch_idx

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        self.guard.note([f"batch {self._batch}"], loss)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer) -> None:
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        if not self.guard.accept(torch.nn.utils.get_total_norm(gradients), trainer.global_step):
            optimizer.zero_grad(set_to_none=True)  # without gradients the optimizer leaves weights and moments alone
