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

"""Medians, tables and the machine."""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from nemo_mshubert.benchmarks import measurement
from nemo_mshubert.benchmarks.measurement import (
    CLEAR_REFS,
    Column,
    calls_per_timing,
    describe_machine,
    matmul_flops,
    median_seconds,
    peak_gib,
    publish,
    table_of,
)

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")
COLUMNS = [Column("name", "row"), Column("speed", "audio-s/s", ".1f")]


def test_calls_take_turns_and_the_first_round_does_not_count(monkeypatch):
    """A machine that slows down must slow all of them, and no one pays for what is done once."""
    order, clock = [], [0.0]
    costs = {"a": iter([100.0, 1.0, 9.0, 2.0]), "b": iter([100.0, 3.0, 3.0, 3.0])}

    def call(name):
        order.append(name)
        clock[0] += next(costs[name])

    monkeypatch.setattr(measurement.time, "perf_counter", lambda: clock[0])
    seconds = median_seconds({"a": lambda: call("a"), "b": lambda: call("b")}, 3, CPU)
    assert seconds == {"a": 2.0, "b": 3.0}
    assert order == ["a", "b"] * 4


def test_launches_overlap_between_synchronisations(monkeypatch):
    """A GPU that waits for the host after every short step would be measured idle."""
    clock, calls, synchronised = [0.0], [], []

    def call():
        calls.append(len(synchronised))
        clock[0] += 0.05

    monkeypatch.setattr(measurement, "synchronize", synchronised.append)
    monkeypatch.setattr(measurement.time, "perf_counter", lambda: clock[0])
    assert calls_per_timing(call, torch.device("cuda")) == 5 and calls_per_timing(call, CPU) == 1
    assert calls_per_timing(lambda: [call() for _ in range(100)], torch.device("cuda")) == 1  # not 0 of a long step
    calls.clear()
    assert median_seconds({"a": call}, 2, torch.device("cuda"))["a"] == pytest.approx(0.05)
    assert len(calls) == 2 + 2 * 5 and len(set(calls[2:])) == 2  # warm-up and a first estimate, then five at a time


def test_call_that_fails_does_not_end_the_others():
    """What runs out of memory in the last round must not take hours of others with it; other errors are errors."""
    turns = iter([None, None, MemoryError])

    def failing():
        if next(turns):
            raise MemoryError

    calls = {"failing": failing, "fine": lambda: None}
    assert list(median_seconds(calls, 3, CPU, left_out=(MemoryError,))) == ["fine"]
    turns = iter([MemoryError])
    with pytest.raises(MemoryError):
        median_seconds(calls, 3, CPU)


def peaks_behind_a_larger_one():
    """Of 256 and 512 MiB, in GiB."""
    torch.ones(1024, 2**18)  # fp32: 1 MiB a row; gone
    return [peak_gib(lambda: lambda: torch.ones(mib, 2**18), CPU) for mib in (256, 512)]


@pytest.mark.skipif(not os.access(CLEAR_REFS, os.W_OK), reason="no peak that can be reset: not Linux")
def test_peak_is_that_of_the_step_and_not_of_the_process():
    """A step would be charged with what ran before it, or get its freed memory for nothing.

    In a process of its own: in this one garbage of other tests may be freed meanwhile.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        peaks = pool.submit(peaks_behind_a_larger_one).result()
    assert peaks == pytest.approx([0.25, 0.5], abs=0.05)


def test_table_says_what_was_not_measured():
    rows = [{"name": "ours", "speed": 12.34}, {"name": "theirs"}, {"name": "none", "speed": None}]
    assert table_of(rows, COLUMNS).splitlines() == [
        "| row | audio-s/s |",
        "|---|---|",
        "| ours | 12.3 |",
        "| theirs | not measured |",
        "| none | not measured |",
    ]


def test_report_names_the_machine(tmp_path, capsys):
    """A time without its machine says nothing."""
    publish("loader", {"repeats": 2}, [{"name": "ours", "speed": 1.0}], COLUMNS, CPU, tmp_path / "out" / "rows.json")
    report = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert report["rows"] == [{"name": "ours", "speed": 1.0}] and report["arguments"] == {"repeats": 2}
    assert report["machine"]["torch"] == torch.__version__ and report["machine"]["cpu"]
    assert report["machine"]["cpu"] in capsys.readouterr().out


def test_paths_among_the_arguments_are_written(tmp_path):
    """Every subcommand has some: the table was printed, and no file written."""
    publish("loader", {"configs": Path("conf")}, [{"name": "ours"}], COLUMNS, CPU, tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text())["arguments"] == {"configs": "conf"}


def test_a_product_of_matrices_is_two_flops_per_step(monkeypatch):
    """All utilisations are shares of it."""
    monkeypatch.setattr(measurement, "median_seconds", lambda calls, *_: dict.fromkeys(calls, 4.0))
    assert matmul_flops(CPU, torch.float32) == 2 * 2048**3 / 4


def test_memory_and_threads_of_the_machine():
    psutil = pytest.importorskip("psutil", reason="another way to ask for the memory")
    machine = describe_machine(CPU)
    assert machine["memory_gib"] == pytest.approx(psutil.virtual_memory().total / 2**30, rel=0.05)
    assert machine["threads"] == torch.get_num_threads()


def test_rows_before_a_crash_are_kept(tmp_path, capsys):
    """The largest batch comes last, and is the one that fails."""

    def rows():
        yield {"name": "small", "speed": 1.0}
        raise RuntimeError("large")

    with pytest.raises(RuntimeError, match="large"):
        publish("pretrain", {}, rows(), COLUMNS, CPU, tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == [{"name": "small", "speed": 1.0}]
    assert "| small | 1.0 |" in capsys.readouterr().out
