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

"""Checkpoints are written between updates only; that they count right is in test_preemption.py."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from nemo_mshubert.callbacks.saved_update import SavedUpdate
from nemo_mshubert.data.pretraining_dataset import collate
from tests.models.fixed_update import train, utterance

pytestmark = pytest.mark.unit


class Saves(pl.Callback):
    """At which micro-batch checkpoints are written."""

    def __init__(self):
        self.batches = []

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.batches.append(trainer.fit_loop.epoch_loop.batch_progress.current.ready)


def test_a_resumed_run_without_validation_saves_between_updates_only(config, tmp_path):
    """It wrote its checkpoint anew in the middle of its first update, whose gradients no checkpoint holds."""
    batches = [[collate([utterance(0)])] * 16]

    def saves(updates, resume=None):
        checkpoints = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=2)
        callbacks = [checkpoints, found := Saves()]
        options = dict(accumulate_grad_batches=2, enable_checkpointing=True)
        train(config, batches, updates, resume=resume, callbacks=callbacks, **options)
        return found.batches

    assert saves(4) == [4, 8]
    assert saves(8, tmp_path / "last.ckpt") == [12, 16]


def test_the_validation_that_a_run_resumes_with_is_saved(tmp_path):
    """One that a preemption cut off: its weights, which may be the best, were taken for those of a checkpoint."""
    validated, stepped = ModelCheckpoint(tmp_path), ModelCheckpoint(tmp_path, every_n_train_steps=2)
    for checkpoints, last_saved in ((validated, 0), (stepped, 4)):
        SavedUpdate().on_train_start(SimpleNamespace(checkpoint_callback=checkpoints, global_step=4), None)
        assert checkpoints._last_global_step_saved == last_saved
