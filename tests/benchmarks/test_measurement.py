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
import os

import pytest
import torch

from nemo_mshubert.benchmarks import measurement
from nemo_mshubert.benchmarks.measurement import CLEAR_REFS, Column, markdown_table, median_seconds, peak_gib, publish

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


@pytest.mark.skipif(not os.access(CLEAR_REFS, os.W_OK), reason="no peak that can be reset: not Linux")
def test_peak_is_that_of_the_step_and_not_of_the_process():
    """A step would be charged with what ran before it, or get its freed memory for nothing."""

    def held(mib):
        return lambda: torch.ones(mib, 2**18)  # fp32: 1 MiB a row

    torch.ones(1024, 2**18)  # larger, and gone
    assert peak_gib(lambda: held(256), CPU) == pytest.approx(0.25, abs=0.05)
    assert peak_gib(lambda: held(512), CPU) == pytest.approx(0.5, abs=0.05)


def test_table_says_what_was_not_measured():
    rows = [{"name": "ours", "speed": 12.34}, {"name": "theirs"}, {"name": "none", "speed": None}]
    assert markdown_table(rows, COLUMNS).splitlines() == [
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
