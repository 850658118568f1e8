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

"""The progress bar: updates of the whole run, over epochs, accumulation and a resume; none where none is wanted."""

import re

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from nemo_mshubert.callbacks import updates_bar
from nemo_mshubert.callbacks.updates_bar import UpdatesProgressBar
from nemo_mshubert.models.training_setup import make_trainer

pytestmark = pytest.mark.unit
CONFIG = {
    "accelerator": "cpu",
    "max_epochs": -1,
    "accumulate_grad_batches": 2,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}


class Slope(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        loss = ((self.weight - batch) ** 2).mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(max_steps, ckpt_path=None, **options):
    options = {**CONFIG, "max_steps": max_steps, **options}
    trainer = make_trainer(OmegaConf.create({"trainer": options, "exp_manager": {}}))
    trainer.fit(Slope(), DataLoader(torch.ones(6, 1)), ckpt_path=ckpt_path)  # 3 updates per epoch
    return trainer


def drawn(output):
    """``(done, of)`` of all drawings in order."""
    return [(int(done), int(of)) for done, of in re.findall(r"(\d+)/(\d+) \[", output)]


def test_counts_updates_over_epochs_and_a_resume(tmp_path, capsys, monkeypatch):
    """Else the user reads 1 of 1,000,000,000 micro-batches, and that four years are left."""
    monkeypatch.setattr(updates_bar, "SECONDS_BETWEEN_DRAWINGS", 0.0)
    trainer = train(max_steps=4)
    output = capsys.readouterr().out
    assert [pair for pair in dict.fromkeys(drawn(output)) if pair[0]] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert "train_loss" in output and "updates/s" in output
    trainer.save_checkpoint(tmp_path / "4.ckpt")
    resumed = train(max_steps=6, ckpt_path=tmp_path / "4.ckpt")
    assert list(dict.fromkeys(drawn(capsys.readouterr().out))) == [(4, 6), (5, 6), (6, 6)]
    assert resumed.progress_bar_callback.train_progress_bar.initial == 4  # updates of before are not of this speed


def test_drawn_once_a_second_and_at_the_end(capsys, monkeypatch):
    """A run of days writes its log once a second, and the last line says that it is whole. The loss is asked for no
    more often: each time, the host would wait for the GPU."""
    asked, get_metrics = [], UpdatesProgressBar.get_metrics
    monkeypatch.setattr(UpdatesProgressBar, "get_metrics", lambda *args: asked.append(1) or get_metrics(*args))
    train(max_steps=50)
    pairs = drawn(capsys.readouterr().out)
    assert len(set(pairs)) < 25 and pairs[-1] == (50, 50)
    assert len(asked) < 25


def test_a_run_of_epochs_has_no_known_number_of_updates():
    """Else 3 of -1 updates are done."""
    assert train(max_steps=-1, max_epochs=1).progress_bar_callback.train_progress_bar.total is None


def bars(**options):
    config = OmegaConf.create({"trainer": {**CONFIG, "max_steps": 1, **options}, "exp_manager": {}})
    trainer = make_trainer(config, [pl.Callback()])
    return [type(callback) for callback in trainer.callbacks if isinstance(callback, ProgressBar)]


def test_one_bar_or_none():
    assert bars() == [UpdatesProgressBar]
    assert bars(enable_progress_bar=False) == []
    own = [{"_target_": "lightning.pytorch.callbacks.TQDMProgressBar"}]
    assert bars(callbacks=own) == [TQDMProgressBar]
