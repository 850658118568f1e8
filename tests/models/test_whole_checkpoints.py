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

"""Checkpoints of both trainings are written beside their place, and take it when they are whole."""

import os
import resource
import tempfile

import pytest
import torch

from nemo_mshubert.models.training_setup import make_trainer, plan_updates
from nemo_mshubert.parallel.registration import register
from tests.conftest import load_config
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit

STATE = {"state_dict": {"weight": torch.arange(100_000.0)}, "global_step": 7}


def trainer_of(experiment, name, *overrides):
    register()
    config = load_config(experiment, name, "trainer.devices=1", "trainer.accelerator=cpu", *overrides)
    plan_updates(config)
    return make_trainer(config)


@pytest.mark.parametrize(
    "options",
    [("finetune", "tiny"), ("pretrain", "mshubert_tiny"), ("pretrain", "mshubert_tiny", "parallel=fsdp2")],
    ids=" ".join,
)
def test_checkpoints_need_no_room_elsewhere(options, tmp_path, monkeypatch):
    """Lightning writes them into the folder of temporary files first: a machine with a small /tmp could not write
    those of a large model, and the error blamed the disk of the run."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    path = tmp_path / "checkpoints" / "last.ckpt"
    for step in (7, 8):
        trainer_of(*options).strategy.checkpoint_io.save_checkpoint({**STATE, "global_step": step}, path)
    found = torch.load(path)
    assert found["global_step"] == 8 and torch.equal(found["state_dict"]["weight"], STATE["state_dict"]["weight"])
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_a_full_disk_leaves_the_checkpoint_before_and_no_other(tmp_path, monkeypatch):
    """A restart that fails every hour had filled /tmp with a checkpoint each time, of gigabytes, and half of one was
    left under its name in the folder of the run."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    folder, io = tmp_path / "checkpoints", trainer_of("finetune", "tiny").strategy.checkpoint_io
    io.save_checkpoint(STATE, folder / "step=7.ckpt")
    before = (folder / "step=7.ckpt").read_bytes()

    def rank():  # a process of its own, whose files may grow no further
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        for name in ("step=7.ckpt", "step=8.ckpt"):
            with pytest.raises(OSError, match=f"'{folder / name}'$"):
                io.save_checkpoint(STATE, folder / name)

    run_on_ranks(1, rank)
    assert os.listdir(folder) == ["step=7.ckpt"] and (folder / "step=7.ckpt").read_bytes() == before
    assert not os.listdir(tmp_path / "temporary")
