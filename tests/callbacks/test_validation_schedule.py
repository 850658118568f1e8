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


def fit(updates, every=2, accumulate=2, num_batches=64, resume=None):
    """The trainer behind ``updates`` of ``accumulate`` micro-batches, ``num_batches`` of them an epoch, and the updates
    that were validated."""
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


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("updates, expected", [(5, [5]), (7, [6, 7])])
def test_a_resumed_run_is_validated_at_the_same_updates(tmp_path, accumulate, updates, expected):
    """Checkpoints are written there. None is repeated; and none is left out, also if it is due at once."""
    trainer, validated = fit(4, accumulate=accumulate)
    assert validated == [2, 4]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert fit(updates, accumulate=accumulate, resume=tmp_path / "last.ckpt")[1] == expected
