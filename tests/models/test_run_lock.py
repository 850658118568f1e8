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

"""Two runs in one folder, as after a command that was repeated in another window."""

import errno
import multiprocessing
import os
import signal
import socket
import time
from types import SimpleNamespace

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from nemo_mshubert.models import run_lock
from nemo_mshubert.models.run_lock import hold_folder
from tests.conftest import quiet_trainer

pytestmark = pytest.mark.unit
RANK_0, RANK_1 = (SimpleNamespace(is_global_zero=is_zero) for is_zero in (True, False))
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def release():
    """What the end of the process does."""
    yield
    while run_lock._held:
        run_lock._held.pop().close()


def attempt(folder, trainer=RANK_0):
    """What a second process is told; None where it may go on."""

    def run(answers):
        try:
            answers.put(hold_folder(folder, trainer))
        except RuntimeError as error:
            answers.put(str(error))

    answers = FORK.Queue()
    process = FORK.Process(target=run, args=(answers,))
    process.start()
    answer = answers.get(timeout=60)
    process.join()
    return answer


def test_a_second_run_is_told_of_the_first(tmp_path):
    """Their checkpoints would overwrite each other for days, without a word."""
    folder = tmp_path / "run" / "checkpoints"
    hold_folder(folder, RANK_0)
    hold_folder(folder, RANK_0)  # a multirun: one job behind the other in a process
    message = attempt(folder)
    assert f"{folder}: another run is under way in it (pid {os.getpid()} on {socket.gethostname()})." in message
    assert "give this run another name=" in message
    assert attempt(folder, RANK_1) is None  # the other ranks of a run find rank 0 there
    assert attempt(tmp_path / "other") is None


def test_a_killed_run_leaves_no_lock(tmp_path):
    """The same command must go on at once, while loader processes of the killed one may still live."""

    def run(pids):
        hold_folder(tmp_path, RANK_0)
        loader = FORK.Process(target=time.sleep, args=(60,))
        loader.start()
        pids.put(loader.pid)
        time.sleep(60)

    pids = FORK.Queue()
    process = FORK.Process(target=run, args=(pids,))
    process.start()
    loader = pids.get(timeout=60)
    try:
        assert f"pid {process.pid} on" in attempt(tmp_path)
        process.kill()
        process.join()
        os.kill(loader, 0)  # is alive
        hold_folder(tmp_path, RANK_0)
    finally:
        os.kill(loader, signal.SIGKILL)
    assert (tmp_path / "run.lock").read_text().startswith(f"pid {os.getpid()} on")


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    """Some network file systems have none; training there went well before."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "lockf", refuse)
    hold_folder(tmp_path, RANK_0)
    (warning,) = caplog.messages
    assert "run.lock: cannot be locked" in warning and "No locks available" in warning


@pytest.mark.parametrize("started_by", ["torchrun", "lightning", "srun"])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_trainer_knows_its_rank_before_training(monkeypatch, started_by, rank):
    """Two ranks that take themselves for rank 0 would refuse their own run."""
    environment = {"LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500, "WORLD_SIZE": 2}
    if started_by == "torchrun":
        environment.update(RANK=rank, GROUP_RANK=0, LOCAL_WORLD_SIZE=2, TORCHELASTIC_RUN_ID="none")
    elif started_by == "lightning":
        environment.update(NODE_RANK=0, SLURM_PROCID=0)  # in a job of SLURM that has one task
    else:
        environment = {"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2, "SLURM_JOB_NAME": "run", "SLURM_JOB_ID": 1}
        environment.update(SLURM_PROCID=rank, SLURM_LOCALID=rank, SLURM_NODEID=0, SLURM_NODELIST="node")
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(rank_zero_only, "rank", rank)  # which the trainer sets, and tests behind this one would keep
    trainer = quiet_trainer(devices=2, strategy="ddp")
    assert trainer.is_global_zero == (rank == 0)
