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

"""The device on which a command runs, and the cores that it may use."""

import os
from typing import Any, Dict


def available_cores() -> int:
    """Number of cores that this process may use; in a container or a Slurm job it can be less than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(name: str) -> str:
    """``name`` as given (``cpu``, ``cuda``, ``cuda:1``, ...). ``auto`` is a GPU if there is one, and under torchrun
    the GPU of this rank."""
    if name != "auto":
        return name
    import torch  # takes a second: scripts import this module before they read their options

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"


def one_device(name: str) -> Dict[str, Any]:
    """``cpu``, ``cuda``, ``cuda:1``, ... as Lightning's ``accelerator`` and ``devices``."""
    accelerator, _, index = name.partition(":")
    return {"accelerator": accelerator, "devices": [int(index)] if index else 1}
