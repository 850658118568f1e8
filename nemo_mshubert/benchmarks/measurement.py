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

"""Timing of several calls under the same conditions, a description of the machine, tables and JSON.

A row is a dictionary. A column is a key of it, with a heading and a number format. A value that a row lacks was not
measured, and the table says so.
"""

import ctypes
import gc
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Type

import torch

from nemo_mshubert.device import available_cores
from nemo_mshubert.markdown import markdown_table
from nemo_mshubert.whole_files import PathLike, atomic_write

NOT_MEASURED = "not measured"
TIMED_SECONDS = 0.25  # between two synchronisations with a GPU, so that launches overlap with its work, as in training
CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux: resets the peak of the resident memory
Row = Dict[str, Any]
Call = Callable[[], Any]


class Column(NamedTuple):
    key: str  # of the rows
    heading: str
    format: str = ""  # as in format(value, ...)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished computing. On a CPU this does nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Call, device: torch.device, times: int = 1) -> float:
    """Wall-clock seconds per call over ``times`` calls in a row, including the work that they leave to the device."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / times


def calls_per_timing(call: Call, device: torch.device) -> int:
    """Number of calls between two synchronisations: on a GPU as many as take `TIMED_SECONDS`, on a CPU one."""
    if device.type != "cuda":
        return 1
    return max(1, round(TIMED_SECONDS / seconds_of(call, device)))


def median_seconds(
    calls: Dict[str, Call], repeats: int, device: torch.device, left_out: Tuple[Type[Exception], ...] = ()
) -> Dict[str, float]:
    """Median seconds of each call. The calls take turns, so that a machine that slows down affects them all equally.

    The first round is a warm-up. A call that raises one of ``left_out`` is missing from the result; the others go on.
    """
    timings = {name: _Timing(call, device) for name, call in calls.items()}
    for _ in range(repeats + 1):
        for name in list(timings):
            try:
                timings[name].take_turn()
            except left_out:
                del timings[name]
    return {name: statistics.median(timing.seconds) for name, timing in timings.items()}


class _Timing:
    """A call, and its seconds in every turn except the first."""

    def __init__(self, call: Call, device: torch.device):
        self.call, self.device = call, device
        self.times = 0  # calls per timing; the first turn sets it
        self.seconds: List[float] = []

    def take_turn(self) -> None:
        if self.times:
            self.seconds.append(seconds_of(self.call, self.device, self.times))
        else:
            self.call()
            self.times = calls_per_timing(self.call, self.device)


def peak_gib(build: Callable[[], Call], device: torch.device) -> Optional[float]:
    """Peak memory in GiB of ``build()`` and two calls of its result, in addition to what was held before.

    On a GPU this is the memory that PyTorch allocated, on a CPU the resident memory of the process. On a CPU the
    result is None if the system cannot reset the peak (only Linux can).
    """
    if device.type != "cuda" and not os.access(CLEAR_REFS, os.W_OK):
        return None
    gc.collect()
    before = _restart_peak(device)
    peak = _peak_of_two_calls(build, device)
    gc.collect()  # objects in reference cycles are still held and would add to what is built next
    return (peak - before) / 2**30


def _peak_of_two_calls(build: Callable[[], Call], device: torch.device) -> int:
    call = build()
    for _ in range(2):  # two, as the optimizer's moments exist only from the first step on
        call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_bytes("VmHWM")


def _restart_peak(device: torch.device) -> int:
    """Reset the peak, and return the bytes that are held now."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)  # freed memory kept by the C library would hide as much of the next step's
    CLEAR_REFS.write_text("5")  # proc(5): sets the peak resident set size to the current one
    return _resident_bytes("VmRSS")


def _resident_bytes(key: str) -> int:
    """``VmRSS``, the resident memory of this process, or ``VmHWM``, its peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product: the best that this machine reaches, to which utilisations refer."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds({"product": lambda: torch.mm(a, b)}, 5, device)["product"]


def describe_machine(device: torch.device) -> Dict[str, Any]:
    """Processor, cores, threads, GPU and versions, without which a time means nothing."""
    machine = {
        "cpu": _processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        machine.update(gpu=torch.cuda.get_device_name(device), cuda=torch.version.cuda)
    return machine


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table_of(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A Markdown table; values that are absent or None read "not measured"."""
    cells = (
        [NOT_MEASURED if row.get(key) is None else format(row[key], form) for key, _, form in columns] for row in rows
    )
    return markdown_table([column.heading for column in columns], cells)


def publish(
    name: str,
    arguments: Dict[str, Any],
    rows: Iterable[Row],
    columns: Sequence[Column],
    device: torch.device,
    output: Optional[PathLike] = None,
) -> None:
    """Print the machine and the table, and write them and the arguments to the JSON file ``output``.

    ``rows`` may be lazy. The file is rewritten after every row, so that an error later on does not lose earlier rows.
    """
    machine = describe_machine(device)
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    report: Dict[str, Any] = {"benchmark": name, "machine": machine, "arguments": arguments, "rows": []}
    try:
        for row in rows:
            report["rows"].append(row)
            if output:
                _write_json(output, report)
    finally:
        print(table_of(report["rows"], columns))


def _write_json(path: PathLike, report: Dict[str, Any]) -> None:
    with atomic_write(path) as stream:
        json.dump(report, stream, indent=2, default=str)  # paths
