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

"""When a run is validated."""

import os
import signal
from contextlib import suppress
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from nemo_mshubert.callbacks.preemption import SaveWhenPreempted
from nemo_mshubert.callbacks.saved_update import SavedUpdate
from nemo_mshubert.callbacks.validation_schedule import ValidationSchedule
from tests.callbacks.short_runs import Curve
from tests.models.fixed_update import trainer_of

pytestmark = pytest.mark.unit


class Validations(pl.Callback):
    def __init__(self):
        self.updates = []

    def on_validation_end(self, trainer, pl_module):
        self.updates.append(trainer.global_step)


class Validated(BoringModel):
    """Logs a loss over data that is always the same."""

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.step(torch.ones(1, 32)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fit_preempted(folder, updates, preempted_at=None, resume=None, num_batches=6):
    """The curve of the validations behind every second update of two micro-batches, of which ``num_batches`` are an
    epoch, and the checkpoint callback; SIGTERM comes in update ``preempted_at``."""
    curve = Curve("val_loss")
    checkpoints = ModelCheckpoint(folder, "{step}", monitor="val_loss", save_last=True)
    terminate = LambdaCallback(
        on_before_optimizer_step=lambda trainer, *_: trainer.global_step + 1 == preempted_at
        and os.kill(os.getpid(), signal.SIGTERM)
    )
    trainer = trainer_of(
        max_steps=updates,
        accumulate_grad_batches=2,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        limit_val_batches=3,
        enable_checkpointing=True,
        log_every_n_steps=1,
        logger=curve,
        callbacks=[SaveWhenPreempted(), SavedUpdate(), ValidationSchedule(), terminate, checkpoints],
    )
    torch.manual_seed(0)
    model = Validated()
    model.train_dataloader = lambda: DataLoader(torch.ones(num_batches, 32), batch_size=1)
    with suppress(SystemExit):
        trainer.fit(model, ckpt_path=resume)
    return curve.points, checkpoints


def fit(updates, every=2, accumulate=2, num_batches=64, resume=None):
    """The trainer behind ``updates`` of ``accumulate`` micro-batches, ``num_batches`` of them an epoch, and the
    updates that were validated."""
    validations = Validations()
    trainer = trainer_of(
        max_steps=updates,
        accumulate_grad_batches=accumulate,
        val_check_interval=every * accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
        callbacks=[ValidationSchedule(), validations],
    )
    model = BoringModel()
    model.train_dataloader = lambda: DataLoader(RandomDataset(32, num_batches), batch_size=1)
    trainer.fit(model, ckpt_path=resume)
    return trainer, validations.updates


@pytest.mark.parametrize("updates, expected", [(4, [2, 4]), (5, [2, 4, 5]), (1, [1])])
def test_last_update_is_validated_once(updates, expected):
    """The best weights are those of a validation, so the updates behind the last one would be for nothing."""
    assert fit(updates)[1] == expected


def test_updates_are_counted_where_an_epoch_is_shorter_than_one():
    """Ten minutes of speech are four micro-batches where the recipe has eight: every 500 updates became every 1000."""
    trainer, validated = fit(8, every=3, accumulate=4, num_batches=6)  # updates of 4 and 2 micro-batches
    assert validated == [3, 6, 8] and trainer.current_epoch == 4


@pytest.mark.parametrize("interval, updates", [(12, 3), (3, 1), (0.5, None)])
def test_an_interval_is_whole_updates_or_lightnings_share_of_an_epoch(interval, updates):
    """One shorter than an update would be in its middle, and a share of an epoch be an update."""
    schedule = ValidationSchedule()
    schedule.on_train_start(
        SimpleNamespace(val_check_interval=interval, accumulate_grad_batches=4, global_step=0), None
    )
    assert schedule._interval == updates


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("updates, expected", [(5, [5]), (7, [6, 7])])
def test_a_resumed_run_is_validated_at_the_same_updates(tmp_path, accumulate, updates, expected):
    """Checkpoints are written there. None is repeated; and none is left out, also if it is due at once."""
    trainer, validated = fit(4, accumulate=accumulate)
    assert validated == [2, 4]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert fit(updates, accumulate=accumulate, resume=tmp_path / "last.ckpt")[1] == expected


@pytest.mark.parametrize("update", [1, 2, 4, 6])  # an epoch has three
def test_a_validation_that_a_preemption_cut_off_is_the_first_of_the_resumed_run(tmp_path, update):
    """The curve lacked a point behind updates 2, 4 and 6, and the best weights may have been those."""
    whole, expected = fit_preempted(tmp_path / "whole", 7)
    before, _ = fit_preempted(tmp_path / "cut", 7, preempted_at=update)
    assert len(before) == (update - 1) // 2  # it does not use up the time of grace
    behind, checkpoints = fit_preempted(tmp_path / "cut", 7, resume=tmp_path / "cut" / "last.ckpt")
    assert [step for step, _ in whole] == [1, 3, 5, 6]
    assert before + behind == whole
    assert checkpoints.best_model_score == expected.best_model_score


def test_the_last_update_is_validated_in_spite_of_a_preemption(tmp_path):
    """No run ever validated the final weights: there is no update to resume for."""
    (whole, expected), (cut, checkpoints) = (
        fit_preempted(tmp_path / name, 3, preempted_at=update) for name, update in (("whole", None), ("cut", 3))
    )
    assert [step for step, _ in whole] == [1, 2] and cut == whole
    assert checkpoints.best_model_score == expected.best_model_score == whole[-1][1]
    assert os.path.basename(checkpoints.best_model_path) == "step=3.ckpt" and (tmp_path / "cut" / "last.ckpt").exists()
