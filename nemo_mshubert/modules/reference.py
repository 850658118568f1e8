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

"""The reference path: convolutions and norms by PyTorch's own ``conv1d`` and ``group_norm``.

Exported graphs use it. ``reference.forced = True`` makes all code use it, for comparisons or to look for a fault.
"""

import torch

forced = False


def is_taken() -> bool:
    return forced or is_exporting()


def takes_cpu_kernels(x: torch.Tensor) -> bool:
    """Whether ``x`` may go through kernels of this project that neither compiled nor exported graphs can hold."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not is_taken()


def is_exporting() -> bool:
    """Whether the model is being traced: a graph must not depend on the lengths of the example."""
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting()
