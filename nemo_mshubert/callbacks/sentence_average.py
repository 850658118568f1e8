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

"""Fine-tuning updates that are means over utterances, however these are split over micro-batches and ranks."""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn


class SentenceAverage(pl.Callback):
    """The gradient of an update is that of the mean loss over all of its utterances (fairseq: ``sentence_avg: true``).

    NeMo averages over a micro-batch, Lightning and DDP over micro-batches and ranks. Micro-batches are filled by
    seconds, so one utterance of two seconds among ninety would weigh a fifth of what it weighs in fairseq. An update
    at the end of an epoch, with fewer micro-batches, would weigh less than the others. Logged losses stay NeMo's.

    For models of NeMo with ``ctc_reduction: mean_batch``, whose batches are ``(signal, length, ...)``.
    """

    def __init__(self):
        self._utterances = 0  # of this update, on this rank

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.loss = GradientOfSum(pl_module.loss)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.loss = pl_module.loss.mean_loss

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        self._utterances += len(batch[1])

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer) -> None:
        utterances, self._utterances = torch.tensor(self._utterances, device=pl_module.device), 0
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(utterances)
        divided_by = trainer.accumulate_grad_batches * trainer.world_size  # by Lightning and DDP
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, divided_by / utterances)


class GradientOfSum(nn.Module):
    """A mean over a batch whose gradient is that of the sum."""

    def __init__(self, mean_loss: nn.Module):
        super().__init__()
        self.mean_loss = mean_loss

    def forward(self, **inputs: Tensor) -> Tensor:
        loss = self.mean_loss(**inputs)
        return loss.detach() + len(inputs["target_lengths"]) * (loss - loss.detach())
