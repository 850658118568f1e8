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

import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from nemo_mshubert.callbacks.validation_schedule import ValidationSchedule
from tests.models.fixed_update import trainer_of

pytestmark = pytest.mark.unit


class Validations(pl.Callback):
    def __init__(self):
        self.updates = []

    def on_validation_end(self, trainer, pl_module):
        self.updates.append(trainer.global_step)


@pytest.mark.parametrize("updates, expected", [(4, [2, 4]), (5, [2, 4, 5]), (1, [1])])
def test_last_update_is_validated_once(updates, expected):
    """The best weights are those of a validation, so the updates behind the last one would be for nothing."""
    validations = Validations()
    trainer = trainer_of(
        max_steps=updates,
        accumulate_grad_batches=2,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
        callbacks=[ValidationSchedule(), validations],
    )
    trainer.fit(BoringModel())
    assert validations.updates == expected


def test_updates_are_counted_where_an_epoch_is_shorter_than_one():
    """Ten minutes of speech are four micro-batches where the recipe has eight: every 500 updates became every 1000."""
    validations = Validations()
    trainer = trainer_of(
        max_steps=8,
        accumulate_grad_batches=4,
        val_check_interval=3 * 4,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
        callbacks=[ValidationSchedule(), validations],
    )
    model = BoringModel()
    model.train_dataloader = lambda: DataLoader(RandomDataset(32, 6), batch_size=1)  # updates of 4 and 2 micro-batches
    trainer.fit(model)
    assert validations.updates == [3, 6, 8] and trainer.current_epoch == 4


def test_a_resumed_run_is_validated_at_the_same_updates(tmp_path):
    """Checkpoints are written there; a second schedule beside the first would double the time of validations."""
    found = []
    for updates in (4, 7):
        validations = Validations()
        trainer = trainer_of(
            max_steps=updates,
            accumulate_grad_batches=2,
            val_check_interval=4,
            check_val_every_n_epoch=None,
            limit_val_batches=1,
            callbacks=[ValidationSchedule(), validations],
        )
        trainer.fit(BoringModel(), ckpt_path=tmp_path / "last.ckpt" if found else None)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        found.append(validations.updates)
    assert found == [[2, 4], [6, 7]]
