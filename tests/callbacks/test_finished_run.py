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

"""A run that was killed between its last checkpoint and its ``.nemo``."""

import pytest
import torch
from nemo.utils.callbacks.nemo_model_checkpoint import NeMoModelCheckpoint

from nemo_mshubert.callbacks.finished_run import FinishedRun
from nemo_mshubert.data.pretraining_dataset import collate
from nemo_mshubert.models.loading import restore_model
from tests.models.fixed_update import train, utterance

pytestmark = pytest.mark.unit


def run(config, folder, updates=3, resume=None):
    checkpoints = NeMoModelCheckpoint(
        dirpath=folder, prefix="run", filename="run-{step}", save_last=True, save_top_k=-1, every_n_train_steps=1
    )
    batches = [[collate([utterance(n)]) for n in range(3)]]
    callbacks = [FinishedRun(), checkpoints]
    return train(config, batches, updates, resume=resume, callbacks=callbacks, enable_checkpointing=True)


def test_the_same_command_writes_what_is_missing(tiny_config, tmp_path):
    """Else every restart ends at once, well, and without a model."""
    from omegaconf import OmegaConf

    config = tiny_config()
    config.model.optim = {"name": "sgd", "lr": 0.5}
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True)["model"])
    run(config, tmp_path)
    path = tmp_path / "run.nemo"
    expected = restore_model(path).state_dict()
    path.unlink()
    (last,) = tmp_path.glob("*last.ckpt")
    run(config, tmp_path, resume=last)
    assert all(torch.equal(value, expected[name]) for name, value in restore_model(path).state_dict().items())
    written = path.stat().st_mtime_ns
    run(config, tmp_path, resume=last)
    assert path.stat().st_mtime_ns == written and len(list(tmp_path.glob("*.nemo"))) == 1
