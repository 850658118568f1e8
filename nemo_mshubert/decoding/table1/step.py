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

"""A step of an experiment: one script, run once, whose folder says by which command and from which files it was
made."""

import json
import shlex
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple

from nemo_mshubert.data.digest import file_digest
from nemo_mshubert.data.manifest import atomic_write

STEP_FILE = "step.json"


class Step(NamedTuple):
    """A command, the folder it writes to, and the files it depends on."""

    name: str
    folder: Path
    script: str
    arguments: Tuple[str, ...]
    inputs: Tuple[Path, ...]
    invalid_with: Path  # the folder to remove, should command or input have changed

    @property
    def record(self) -> Dict[str, Any]:
        """What makes it this step and no other."""
        inputs = {str(path): _digest(path.resolve(), path.stat().st_mtime_ns) for path in self.inputs}
        return {"command": [self.script, *self.arguments], "inputs": inputs}


@lru_cache(maxsize=None)
def _digest(path: Path, modified: int) -> str:
    """SHA-256 of a file, once per process and modification; an LM takes seconds and is in every cell."""
    return file_digest(path)


def is_finished(folder: Path) -> bool:
    """Whether the step of this folder has ended well."""
    record = _read_record(folder)
    return record is not None and record["finished"]


def _read_record(folder: Path) -> Optional[Dict[str, Any]]:
    path = folder / STEP_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _write_record(folder: Path, record: Dict[str, Any], finished: bool) -> None:
    with atomic_write(folder / STEP_FILE) as stream:
        json.dump({**record, "finished": finished}, stream, indent=2)


def run_step(step: Step, scripts: Path) -> None:
    """Run ``step``, with its command line printed, unless it has ended well before.

    Raises:
        ValueError: it was begun with another command or other inputs; says which, and what to remove.
        RuntimeError: the script failed; it says why on the terminal.
    """
    record, before = step.record, _read_record(step.folder)
    if before:
        _require_same(before, record, step)
        if before["finished"]:
            print(f"== {step.name}: done", flush=True)
            return
    _write_record(step.folder, record, finished=False)  # a script that resumes must not resume another experiment
    command = [sys.executable, str(scripts / step.script), *step.arguments]
    print(f"\n== {step.name}\n   {shlex.join(['python', *command[1:]])}", flush=True)
    status = subprocess.run(command).returncode
    if status != 0:
        raise RuntimeError(f"{step.name}: {step.script} failed with status {status}. Its messages are above.")
    _write_record(step.folder, record, finished=True)


def _require_same(theirs: Dict[str, Any], ours: Dict[str, Any], step: Step) -> None:
    remedy = f"Remove {step.invalid_with} to make it anew, or choose another output."
    if theirs["command"] != ours["command"]:
        then, now = (shlex.join(record["command"]) for record in (theirs, ours))
        raise ValueError(f"{step.folder}: made by\n    {then}\nnot by\n    {now}\n{remedy}")
    differing = [path for path, digest in ours["inputs"].items() if theirs["inputs"].get(path) != digest]
    if differing:
        raise ValueError(f"{step.folder}: made when {differing[0]} held something else. {remedy}")
