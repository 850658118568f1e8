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

"""The SLURM scripts in a cluster of two nodes on this machine, with a stand-in for training.

Runs where SLURM is installed (Debian: ``apt-get install slurm-wlm``), as any user, and leaves its settings alone.
"""

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch"))), reason="needs SLURM (apt-get install slurm-wlm)"
    ),
]
SCRIPTS = Path(__file__).parents[2] / "scripts" / "slurm"
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SchedulerType=sched/backfill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=32 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=32 Gres=gpu:2
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=n1,n2 PriorityTier=10
"""
# Trains until it is sent SIGTERM, as scripts/pretrain.py does, or does what its first option says.
PYTHON = """#!/usr/bin/env bash
trap 'echo "saved $SLURM_PROCID" >> calls; exit 0' TERM
echo "started $SLURM_PROCID of $SLURM_NTASKS: $*" >> calls
case "$2" in fail) exit 3 ;; short | make | merge) exit 0 ;; esac
while true; do sleep 0.1; done
"""


def free_ports(number):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(what, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "SLURM did not get there in time"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Environment of a user of the cluster."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "n1", "n2"):
        (folder / name).mkdir()
    config = CONFIG.format(host=socket.gethostname(), user=getpass.getuser(), folder=folder, ports=free_ports(3))
    (folder / "slurm.conf").write_text(config)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")  # which no test opens
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment["SLURM_CONF"] = str(folder / "slurm.conf")
    daemons = [["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
    null = subprocess.DEVNULL
    running = [subprocess.Popen(daemon, env=environment, stdout=null, stderr=null) for daemon in daemons]
    try:
        nodes = ["sinfo", "--noheader", "--format=%T %D", "--partition=low"]
        wait_for(lambda: subprocess.run(nodes, env=environment, capture_output=True, text=True).stdout == "idle 2\n")
        yield environment
    finally:
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait(timeout=60)


class Job:
    def __init__(self, environment, folder, *arguments):
        self.folder = folder
        self.environment = {**environment, "VENV": str(folder)}
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / "activate").write_text(f"PATH={folder}/bin:$PATH\n")
        (folder / "bin" / "python").write_text(PYTHON)
        (folder / "bin" / "python").chmod(0o755)
        self.number = self.run("sbatch", "--parsable", *arguments).strip()

    def run(self, *command):
        done = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def calls(self):
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def state(self):
        """State and number of restarts."""
        shown = self.run("scontrol", "show", "job", self.number)
        return re.search(r"JobState=(\w+)", shown)[1], int(re.search(r"Restarts=(\d+)", shown)[1])

    def wait(self, *states):
        return wait_for(lambda: self.state() in states)


@pytest.fixture
def pretrain(cluster, tmp_path):
    """``pretrain(option)`` submits a job with two GPUs on each of two nodes."""
    size = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=4", "--output=log"]
    jobs = []

    def submit(option):
        jobs.append(Job(cluster, tmp_path, *size, str(SCRIPTS / "train.sh"), "scripts/pretrain.py", option))
        return jobs[-1]

    yield submit
    for job in jobs:
        job.run("scancel", "--quiet", job.number)
        job.wait(("CANCELLED", 0), ("CANCELLED", 1), ("COMPLETED", 0), ("FAILED", 0))


SAVED = [f"saved {rank}" for rank in range(4)]


def running(pretrain):
    job = pretrain("--config-name=mshubert_base")
    options = "scripts/pretrain.py --config-name=mshubert_base trainer.num_nodes=2 trainer.devices=2"
    wait_for(lambda: len(job.calls()) == 4)
    assert sorted(job.calls()) == [f"started {rank} of 4: {options}" for rank in range(4)]
    return job


def test_a_job_out_of_time_is_queued_again(pretrain):
    """Lost otherwise: all updates since the last validation, every day at the time limit."""
    job = running(pretrain)
    job.run("scancel", "--batch", "--signal=TERM", job.number)  # what --signal=B:TERM@300 does
    job.wait(("PENDING", 1))
    assert sorted(job.calls()[4:]) == SAVED


def test_a_job_preempted_by_a_higher_partition_is_queued_again(pretrain, tmp_path):
    """With a grace time SLURM signals the tasks alone; their end is not that of the training."""
    job = running(pretrain)
    job.run("sbatch", "--partition=high", "--nodes=2", "--gpus-per-node=2", "--output=log", "--wrap=sleep 1")
    job.wait(("PENDING", 1))
    assert sorted(job.calls()[4:]) == SAVED


def test_a_cancelled_job_writes_a_checkpoint_and_stays_away(pretrain):
    job = running(pretrain)
    job.run("scancel", job.number)
    wait_for(lambda: len(job.calls()) == 8)
    job.wait(("CANCELLED", 0))
    assert sorted(job.calls()[4:]) == SAVED


@pytest.mark.parametrize("option, state", [("fail", "FAILED"), ("short", "COMPLETED")])
def test_finished_and_failed_jobs_are_not_queued_again(pretrain, option, state):
    pretrain(option).wait((state, 0))


def test_an_array_of_label_jobs_and_their_merge(cluster, tmp_path):
    script = str(SCRIPTS / "label.sh")
    make = Job(cluster, tmp_path, "--array=0-2", "--output=log-%a", script, "make", "--kmeans=km.npz")
    after = f"--dependency=afterok:{make.number}"
    merge = Job(cluster, tmp_path, after, "--array=0", "--output=log", script, "merge", "--shards=3")
    wait_for(lambda: len(merge.calls()) == 4)
    calls = [call.split(": ")[1] for call in merge.calls()]
    assert sorted(calls[:3]) == [f"scripts/label.py make --shard {shard}/3 --kmeans=km.npz" for shard in range(3)]
    assert calls[3] == "scripts/label.py merge --shards=3"
