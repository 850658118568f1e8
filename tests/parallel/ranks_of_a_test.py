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

"""Run a function on several gloo ranks, forked from the test: they inherit its imports and fixtures at no cost."""

import faulthandler
import io
import multiprocessing
import os
import queue
import socket
import sys
import traceback
from typing import Any, Callable, List

import torch

TIMEOUT_SECONDS = 240
SECONDS_AFTER_A_FAILURE = 5


def run_on_ranks(num_ranks: int, function: Callable[..., Any], *arguments: Any) -> List[Any]:
    """``function(*arguments)`` on every rank; what each returns. The environment is that of torchrun.

    Raises:
        AssertionError: with the traceback of a rank that failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    reports = context.Queue()
    processes = [
        context.Process(target=_rank, args=(reports, rank, num_ranks, port, function, arguments), daemon=True)
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    results, failures = {}, []
    try:
        while len(results) + len(failures) < num_ranks:
            # A rank that waits for one that failed may fail much later.
            rank, failure, result = reports.get(timeout=SECONDS_AFTER_A_FAILURE if failures else TIMEOUT_SECONDS)
            if failure:
                failures.append(f"rank {rank}:\n{failure}")
            else:
                results[rank] = torch.load(io.BytesIO(result), weights_only=False)
    except queue.Empty:
        failures.append(f"no report of ranks {set(range(num_ranks)) - set(results)} in time")
    finally:
        for process in processes:
            process.join(0 if failures else TIMEOUT_SECONDS)
            process.kill()
    assert not failures, "\n".join(failures)
    return [results[rank] for rank in range(num_ranks)]


def _rank(reports, rank: int, num_ranks: int, port: int, function: Callable[..., Any], arguments) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE=str(num_ranks),
        LOCAL_WORLD_SIZE=str(num_ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
    )
    faulthandler.enable(sys.__stderr__)  # a crash in native code has no other traceback
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        result = io.BytesIO()  # tensors as bytes: the queue would share memory that ends with this process
        torch.save(function(*arguments), result)
        reports.put((rank, None, result.getvalue()))
    except BaseException:
        reports.put((rank, traceback.format_exc(), None))
