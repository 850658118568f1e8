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

"""The SLURM scripts, with stand-ins for SLURM's commands."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def slurm(tmp_path):
    """``slurm(script, *arguments, **variables)`` starts a job; SLURM's commands and ``python`` note their arguments.

    As SLURM 22.05 was seen to do, ``srun`` kills its tasks when it is sent SIGTERM, ``scancel --signal`` reaches the
    tasks, and preemption with a grace time signals them without the job's script.
    """
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").touch()
    programs = {
        "python": 'echo "python $*" >> calls',
        "scontrol": 'case "$1" in show) [ -e preempted ] && echo "PreemptTime=2026-11-27T06:36:37" || '
        'echo "PreemptTime=None";; *) echo "scontrol $*" >> calls;; esac',
        "scancel": 'echo "scancel $*" >> calls; touch signalled',
        "srun": 'echo "srun $*" >> calls; trap "echo killed >> calls; exit 137" TERM\n'
        'case "$*" in *fail*) exit 3;; *short*) exit 0;; *start*) touch preempted; exit 143;; '
        "*preempted*) touch preempted; exit 0;; esac\n"
        "until [ -e signalled ]; do sleep 0.05; done; echo checkpoint >> calls",
    }
    for name, body in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def start(script, *arguments, **variables):
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "VENV": str(tmp_path), "SLURM_SUBMIT_DIR": str(tmp_path)}
        command = ["bash", str(REPOSITORY / "scripts" / "slurm" / script), *arguments]
        return subprocess.Popen(command, env={**environment, **variables}, cwd=tmp_path)

    start.calls = lambda: (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    return start


NODES = dict(SLURM_NNODES="4", SLURM_NTASKS_PER_NODE="8", SLURM_CPUS_PER_TASK="12", SLURM_JOB_ID="77")


def test_job_out_of_time_writes_a_checkpoint_and_is_queued_again(slurm):
    job = slurm("train.sh", "scripts/pretrain.py", "--config-name", "mshubert_base", **NODES)
    deadline = time.monotonic() + 20
    while not slurm.calls():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 0
    pretrain = "scripts/pretrain.py --config-name mshubert_base trainer.num_nodes=4 trainer.devices=8"
    srun = f"srun --kill-on-bad-exit=1 --cpus-per-task=12 python {pretrain}"
    assert slurm.calls() == [srun, "scancel --signal=TERM 77", "checkpoint", "scontrol requeue 77"]


@pytest.mark.parametrize("kind, code", [("preempted", 0), ("preempted at its start", 143)])
def test_job_whose_tasks_alone_were_signalled_is_queued_again(slurm, kind, code):
    assert slurm("train.sh", "scripts/finetune_ctc.py", kind, **NODES).wait(timeout=20) == code
    assert slurm.calls()[1:] == ["scontrol requeue 77"]


@pytest.mark.parametrize("kind, code", [("short", 0), ("fail", 3)])
def test_finished_and_failed_jobs_are_not_queued_again(slurm, kind, code):
    """A job that fails on a typing error must not come back for ever."""
    assert slurm("train.sh", "scripts/pretrain.py", kind, **NODES).wait(timeout=20) == code
    assert len(slurm.calls()) == 1


def test_label_array(slurm):
    """Each job of the array has its shard; the job that joins them has none."""
    array = dict(SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_TASK_COUNT="64")
    assert slurm("label.sh", "make", "--kmeans", "km.npz", **array).wait(timeout=20) == 0
    assert slurm("label.sh", "merge", "--shards", "64", **array).wait(timeout=20) == 0
    assert slurm.calls() == [
        "python scripts/label.py make --shard 3/64 --kmeans km.npz",
        "python scripts/label.py merge --shards 64",
    ]


@pytest.mark.parametrize("arguments, remedy", [([], "make or merge"), (["make"], "submit it with --array, such as")])
def test_label_job_submitted_without_an_array(slurm, capfd, arguments, remedy):
    """The log held no more than the name of an unbound variable that the user never set."""
    assert slurm("label.sh", *arguments).wait(timeout=20) != 0
    assert remedy in capfd.readouterr().err and not slurm.calls()
