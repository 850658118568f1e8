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

"""Fails if a fine-tuning goes on from the weights of another model, which then pass for its own."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from nemo_mshubert.callbacks.same_start import SameStart


def fit(folder, seed, updates, resume=None):
    torch.manual_seed(seed)
    model = BoringModel()
    callbacks = [ModelCheckpoint(folder, save_last=True, every_n_train_steps=1), SameStart(model)]
    trainer = pl.Trainer(
        max_steps=updates, accelerator="cpu", logger=False, callbacks=callbacks, enable_progress_bar=False
    )
    trainer.fit(model, ckpt_path=resume)
    return trainer.global_step


def test_only_checkpoints_of_the_same_start_are_gone_on_from(tmp_path):
    """The same name with another init_model: its result was that of the first, without a word."""
    assert fit(tmp_path, seed=0, updates=2) == 2
    last = str(tmp_path / "last.ckpt")
    assert fit(tmp_path, seed=0, updates=3, resume=last) == 3
    with pytest.raises(ValueError, match="last.ckpt: of a fine-tuning of another init_model"):
        fit(tmp_path, seed=1, updates=4, resume=last)


def test_checkpoints_of_another_script_are_not_gone_on_from(tmp_path):
    """Of NeMo's own, with the same name."""
    fit(tmp_path, seed=0, updates=2)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    del checkpoint["fingerprint_of_init_model"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="other.ckpt: of a fine-tuning of another init_model"):
        fit(tmp_path, seed=0, updates=3, resume=str(tmp_path / "other.ckpt"))
