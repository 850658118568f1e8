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

"""A step of an experiment: one script that is run once. The step's folder records its command and input files."""

import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

from nemo_mshubert.data.digest import file_digest
from nemo_mshubert.file_lock import try_to_lock
from nemo_mshubert.whole_files import write_json

STEP_FILE = "step.json"
LOCK_FILE = "step.lock"


class Step(NamedTuple):
    """A command, the folder of its record, and the files it depends on."""

    name: str
    folder: Path
    script: str
    arguments: Tuple[str, ...]
    inputs: Tuple[Path, ...]
    invalid_with: Path  # the folder to remove if command or inputs have changed
    recipes: Tuple[Path, ...] = ()  # inputs in conf/, recorded by their path in it: the checkout may be moved
    proof: Optional[Path] = None  # file that the script writes at its end, if its status may be 0 before that

    @property
    def record(self) -> Dict[str, Any]:
        """What identifies the step: its command, and the digests of its inputs."""
        inputs = {**{str(path): path for path in self.inputs}, **{_below_conf(path): path for path in self.recipes}}
        digests = {name: _digest(path.resolve(), path.stat().st_mtime_ns) for name, path in inputs.items()}
        return {"command": [self.script, *self.arguments], "inputs": digests}


def _below_conf(path: Path) -> str:
    return Path("conf", path.parent.name, path.name).as_posix()


@lru_cache(maxsize=None)
def _digest(path: Path, modified: int) -> str:
    """SHA-256 of a file, computed once per process and modification: an LM takes seconds and is used in every cell."""
    return file_digest(path)


def is_finished(folder: Path) -> bool:
    """Whether the step of this folder has ended successfully."""
    record = _read_record(folder)
    return record is not None and record["finished"]


def is_current(step: Step) -> bool:
    """Whether the step has ended successfully with the command and the inputs that it would have now."""
    before = _read_record(step.folder)
    try:
        return before is not None and before["finished"] and before.items() >= step.record.items()
    except FileNotFoundError:
        return False


def _read_record(folder: Path) -> Optional[Dict[str, Any]]:
    path = folder / STEP_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_record(folder: Path, record: Dict[str, Any], finished: bool) -> None:
    """Write the record with the time, so that repeating a step with the same command makes later steps outdated."""
    write_json(folder / STEP_FILE, {**record, "finished": finished, "time": time.time_ns()})


def run_step(step: Step, scripts: Path) -> None:
    """Run ``step`` and print its command line, unless it has ended successfully before. If another process is running
    it (for example on a machine that makes other splits of the same model), wait until that has ended.

    Raises:
        ValueError: it was begun with another command or other inputs; says which, and what to remove.
        RuntimeError: the script failed (its message is on the terminal), or was stopped before it had finished.
    """
    with _alone_in(step.folder, step.name):
        _run_alone(step, scripts)


def _run_alone(step: Step, scripts: Path) -> None:
    record, before = step.record, _read_record(step.folder)
    if before:
        _require_same(before, record, step)
        if before["finished"]:
            print(f"== {step.name}: done", flush=True)
            return
    write_record(step.folder, record, finished=False)  # a script that resumes must not resume another experiment
    command = [sys.executable, str(scripts / step.script), *step.arguments]
    print(f"\n== {step.name}\n   {shlex.join(['python', *command[1:]])}", flush=True)
    status = run_to_its_end(command)
    if status != 0:
        raise RuntimeError(f"{step.name}: {step.script} failed with status {status}. Its messages are above.")
    if step.proof and not step.proof.is_file():
        raise RuntimeError(
            f"{step.name}: {step.script} was ended before it had done all, as by the scheduler (there is no "
            f"{step.proof}). Run the same command again: it goes on from its last checkpoint."
        )
    write_record(step.folder, record, finished=True)


@contextmanager
def _alone_in(folder: Path, name: str) -> Iterator[None]:
    """A second process waits here until this one has left or ended; logs a warning if the file system has no locks."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK_FILE, "a", encoding="utf-8") as stream:
        if not try_to_lock(stream, fcntl.lockf):
            print(f"== {name}: another process is at it; waiting until it has ended", flush=True)
            fcntl.lockf(stream, fcntl.LOCK_EX)
        yield


def run_to_its_end(command: Sequence[str]) -> int:
    """Run a command and return its status. If this process is asked to end, it still waits for the command, which may
    have to write a checkpoint or to end its own processes.

    Raises:
        KeyboardInterrupt, SystemExit: the request to end, raised when the command has ended.
    """
    # Inside a SLURM job, Lightning would take the job's tasks for its ranks, and start none.
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_NTASKS"}
    process, asked, to_be_told = subprocess.Popen(command, env=environment), None, False
    while True:
        try:
            if to_be_told:  # within the try: schedulers may send a second signal
                process.terminate()
                to_be_told = False
            status = process.wait()
            break
        except KeyboardInterrupt as interrupt:  # Ctrl-C, which the terminal has also sent to the command
            asked = interrupt
        except SystemExit as ending:  # SIGTERM, from the handler of scripts/table1.py
            asked, to_be_told = ending, True
    if asked is not None:
        raise asked
    return status


def _require_same(theirs: Dict[str, Any], ours: Dict[str, Any], step: Step) -> None:
    remedy = f"Remove {step.invalid_with} to make it anew, or choose another output."
    if theirs["command"] != ours["command"]:
        then, now = (shlex.join(record["command"]) for record in (theirs, ours))
        raise ValueError(f"{step.folder}: made by\n    {then}\nnot by\n    {now}\n{remedy}")
    differing = [path for path, digest in ours["inputs"].items() if theirs["inputs"].get(path) != digest]
    if differing:
        raise ValueError(f"{step.folder}: made when {differing[0]} held something else. {remedy}")
