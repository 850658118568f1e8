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

"""scripts/benchmark_gpu.sh, with a stand-in for Python: rented GPUs are paid by the hour, so nothing is measured
twice."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_gpu.sh"


@pytest.fixture
def run(tmp_path):
    """``run(failing="loader")``: the script's process; Python writes its arguments, and fails where they hold a
    word."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()

    def call(failing="nothing"):
        python.write_text(
            f'#!/usr/bin/env bash\necho "$@" >> {tmp_path}/calls\n'
            f'[[ " $* " != *" {failing} "* ]] || {{ echo "no memory left" >&2; echo "3 failed"; exit 3; }}\n'
            'echo "| table |"\n'
        )
        python.chmod(0o755)
        environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"}
        (tmp_path / "train.json").touch()
        (tmp_path / "ctc.nemo").touch()
        arguments = ["bash", str(SCRIPT), "train.json", "out", "ctc.nemo"]
        return subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return call


def test_a_row_that_fails_costs_no_other_and_is_measured_again(run, tmp_path):
    process = run(failing="loader")
    assert process.returncode == 1
    expected = f"failed: {tmp_path}/out/loader.log and {tmp_path}/out/.loader.md\nno memory left\n3 failed\n"
    assert expected in process.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 10 and calls[1] == "-m pytest tests/gpu -q"
    assert {path.stem for path in (tmp_path / "out").glob("[!.]*.md")} == {
        "tests",
        "pretrain_base",
        "pretrain_large",
        "host",
        "inference_fp32",
        "inference_bf16",
        "labelling",
        "labelling_with_kept_memory",
    }
    assert run().returncode == 0
    again = (tmp_path / "calls").read_text().splitlines()[len(calls) :]
    assert len(again) == 2 and again[1].startswith(f"scripts/benchmark.py loader --manifest {tmp_path}/train.json")
    assert (tmp_path / "out" / "loader.md").read_text() == "| table |\n"
