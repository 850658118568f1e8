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

"""Killed with SIGKILL and started again, a run ends with the weights of one that was never interrupted; with another
number of ranks it goes on in the data where it had come to."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf

from nemo_mshubert.models import MSHuBERTModel
from tests.models.fixed_update import trainer_of
from tests.parallel.ranks_of_a_test import run_on_ranks

REPOSITORY = Path(__file__).parents[2]
UPDATES = 36
VALIDATE_EVERY = 6  # each validation writes a checkpoint


@pytest.fixture
def command(tarred_overrides, tiny_command_line):
    """``command(folder)``: the command line of a run with all that is drawn at random switched on."""

    def make(folder):
        return [
            sys.executable,
            str(REPOSITORY / "scripts" / "pretrain.py"),
            "--config-name=mshubert_tiny",
            *tiny_command_line,
            f"exp_manager.exp_dir={folder}",
            *tarred_overrides,
            f"max_updates={UPDATES}",
            f"validate_every_updates={VALIDATE_EVERY}",
            "seconds_per_update=24",  # two micro-batches
            "model.train_ds.num_workers=2",
            "model.drop_label_sets=1",
            "model.encoder.dropout=0.1",
            "model.encoder.layerdrop=0.2",
            "exp_manager.create_tensorboard_logger=false",
        ]

    return make


def start(command, folder):
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with open(folder / "log.txt", "a") as log:
        return subprocess.Popen(
            command(folder), cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def finish(process, folder):
    assert process.wait(timeout=300) == 0, (folder / "log.txt").read_text()[-3000:]


def weights_at_the_end(folder):
    """The last checkpoint of a finished run."""
    (path,) = folder.glob("*/checkpoints/*last.ckpt")
    return torch.load(path, map_location="cpu", weights_only=False)


def kill_after_a_checkpoint(process, folder):
    deadline = time.monotonic() + 200
    while not list(folder.glob("*/checkpoints/*last.ckpt")) or list(folder.glob("*/checkpoints/*unfinished*")):
        assert process.poll() is None, (folder / "log.txt").read_text()[-3000:]
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.01)
    delay = random.uniform(0, 0.5)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, f"the run had ended {delay:.2f} s after its first checkpoint"
    return delay


@pytest.mark.integration
def test_a_run_without_validation_goes_on_after_a_kill(command, tmp_path):
    """Lightning writes checkpoints when it validates, so there was none before the last update."""
    without = lambda folder: [*command(folder), "validation_manifest=null"]  # noqa: E731
    kill_after_a_checkpoint(start(without, tmp_path), tmp_path)
    finish(start(without, tmp_path), tmp_path)
    assert re.search("Restored all states .*last.ckpt", (tmp_path / "log.txt").read_text())
    assert weights_at_the_end(tmp_path)["global_step"] == UPDATES
    assert [path.name for path in tmp_path.glob("*/checkpoints/*.nemo")] == ["mshubert_tiny.nemo"]


@pytest.mark.integration
def test_killed_and_resumed_run_equals_an_uninterrupted_one(command, tmp_path):
    """Weeks of training are many jobs: sampler, crops, masks, dropped sets, dropout, layerdrop, moments and schedule.

    The moment of the kill is random, after the first checkpoint: in an update, a validation or while writing.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    delay = kill_after_a_checkpoint(start(command, killed), killed)
    runs = [(start(command, folder), folder) for folder in (killed, whole)]
    for process, folder in runs:
        finish(process, folder)
    resumes = [re.search("Restored all states .*last.ckpt", (folder / "log.txt").read_text()) for _, folder in runs]
    assert resumes[0] and not resumes[1]  # the killed one did not begin anew
    expected, resumed = weights_at_the_end(whole), weights_at_the_end(killed)
    assert resumed["global_step"] == expected["global_step"] == UPDATES
    for name, value in expected["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), f"{name} after a kill at {delay:.2f} s"
    moments, resumed_moments = (run["optimizer_states"][0]["state"] for run in (expected, resumed))
    for index, state in moments.items():
        assert all(torch.equal(resumed_moments[index][key], value) for key, value in state.items())
    assert resumed["lr_schedulers"] == expected["lr_schedulers"]
    progress, resumed_progress = (run["loops"]["fit_loop"] for run in (expected, resumed))
    for name in ("epoch_loop.batch_progress", "epoch_loop.scheduler_progress"):
        assert progress[name] == resumed_progress[name]


class Lines(pl.Callback):
    """Keeps the lines of the batches that this rank trains on."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen += [(visit, line) for visit, line, _ in batch["lines"]]


def train_on_tars(config, updates, checkpoint, devices=1, resume=None, **options):
    """Lines that each of ``devices`` ranks trains on; writes ``checkpoint`` at the end."""

    def rank():
        lines = Lines()
        trainer = trainer_of(devices=devices, max_steps=updates, callbacks=[lines], **options)
        trainer.fit(MSHuBERTModel(config, trainer), ckpt_path=resume)
        trainer.save_checkpoint(checkpoint)
        return lines.seen

    return run_on_ranks(devices, rank) if devices > 1 else [rank()]


@pytest.mark.integration
def test_run_on_tarred_data_goes_on_with_another_number_of_ranks(tarred_overrides, tiny_config, tmp_path):
    """A preempted run gets what machines there are: no utterance comes twice in an epoch, and none is left out."""
    config = tiny_config(
        *tarred_overrides,
        "model.train_ds.num_workers=0",
        "model.train_ds.bucket_buffer_size=10",
        "model.train_ds.shuffle_buffer_size=2",
    )
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True)["model"])
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    ranks = train_on_tars(config, 4, first, devices=2, strategy="ddp")
    (alone,) = train_on_tars(config, 24, second, resume=first)
    config.train_ds.num_workers = 2
    (in_processes,) = train_on_tars(config, 44, tmp_path / "third.ckpt", resume=second)
    lines = [*ranks[0], *ranks[1], *alone, *in_processes]
    assert all((*ranks, alone, in_processes))
    assert len(set(lines)) == len(lines)
    record = torch.load(tmp_path / "third.ckpt", weights_only=False)["shards"]["record"]
    whole = {visit for visit, _ in lines if visit < record["first_open"]} | set(record["done"].tolist())
    assert {visit for visit, _ in lines} == whole | set(record["visits"].tolist())
    assert record["first_open"] >= 4  # the first epoch is read to its end
