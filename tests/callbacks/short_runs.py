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

"""Runs of six updates that write checkpoints, for tests of what befalls longer ones."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger

from nemo_mshubert.data.pretraining_dataset import collate
from tests.models.fixed_update import train, utterance

UPDATES = 6


def train_updates(config, folder, *callbacks, resume=None, devices=1, parts=(((0,), (1,)),), **options):
    """Six updates of two micro-batches; a checkpoint of the last state in the folder."""
    batches = [[collate([utterance(n) for n in micro]) for micro in part] * UPDATES for part in parts]
    checkpoints = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=2)
    options = {"accumulate_grad_batches": 2, "enable_checkpointing": True, **options}
    return train(config, batches, UPDATES, devices, resume, callbacks=[*callbacks, checkpoints], **options)


def last(folder):
    return torch.load(folder / "last.ckpt", map_location="cpu", weights_only=False)


class Curve(Logger):
    """Remembers the points of one metric, each a step and a value."""

    name, version = "curve", 0

    def __init__(self, metric):
        super().__init__()
        self.metric, self.points = metric, []

    def log_metrics(self, metrics, step=None):
        if self.metric in metrics:
            self.points.append((step, metrics[self.metric]))

    def log_hyperparams(self, *_, **__):
        pass


class PerUpdate(pl.Callback):
    """Counts the micro-batches of each update."""

    def __init__(self):
        self.counts = [0]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.counts[-1] += 1

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.counts.append(0)


class At(pl.Callback):
    """Calls a function at the start of a micro-batch (counted from 0)."""

    def __init__(self, micro_batch, function):
        self.micro_batch, self.function = micro_batch, function

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.micro_batch:
            self.function(trainer)
