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

"""What a checkpoint is called before anything was validated."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from nemo.utils.callbacks.nemo_model_checkpoint import NeMoModelCheckpoint

from nemo_mshubert.callbacks.unknown_score import UnknownScore
from nemo_mshubert.data.pretraining_dataset import collate
from tests.models.fixed_update import train, utterance

pytestmark = pytest.mark.unit


@pytest.fixture
def run(model_config, tmp_path):
    """``run(interval, monitor)``: two updates with checkpoints named after a metric."""

    def start(interval, monitor, every_n_train_steps=None, **options):
        checkpoints = NeMoModelCheckpoint(
            dirpath=tmp_path,
            monitor=monitor,
            filename=f"{{{monitor}:.4f}}-{{step}}",
            save_last=True,
            every_n_train_steps=every_n_train_steps,
        )
        checkpoints.CHECKPOINT_NAME_LAST = checkpoints.filename + "-last"  # as exp_manager has it
        options.update(val_check_interval=interval, check_val_every_n_epoch=None, enable_checkpointing=True)
        train(model_config(), [[collate([utterance(0)])] * 2], 2, callbacks=[UnknownScore(), checkpoints], **options)

    return start


def test_no_loss_is_claimed_before_there_is_one(run, tmp_path):
    """A run that is preempted or ends before its next validation: the name would say val_loss=0.0000, the best there
    is."""
    run(3, "val_loss", every_n_train_steps=100)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["val_loss=nan-step=2-last.ckpt"]


def test_known_scores_stay():
    """Those of a second validation or a second fit; else what is written meanwhile claims nan, or 0.0000."""
    trainer = SimpleNamespace(
        checkpoint_callback=SimpleNamespace(monitor="val_loss"), callback_metrics={"val_loss": torch.tensor(0.5)}
    )
    UnknownScore().on_train_start(trainer, None)
    UnknownScore().on_validation_start(trainer, None)
    assert trainer.callback_metrics == {"val_loss": torch.tensor(0.5)}


def test_runs_without_checkpoints_or_updates_validate():
    """``trainer.validate`` begins no training, and has no score to remove."""
    for checkpoints in (None, SimpleNamespace(monitor="val_loss")):
        UnknownScore().on_validation_start(SimpleNamespace(checkpoint_callback=checkpoints, callback_metrics={}), None)


def test_a_monitor_that_nobody_logs_is_an_error(run):
    """A mistyped one would keep the weights of the first validation as the best, whatever came later."""
    with pytest.raises(MisconfigurationException, match="could not find the monitored key.*val_los'"):
        run(1, "val_los", limit_val_batches=1)
