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

"""A short text for the weights of a module, which files store to record the weights they belong to."""

import hashlib

import torch
from torch import nn


def weights_fingerprint(module: nn.Module, dtype: torch.dtype = torch.float32) -> str:
    """16 hex digits of the SHA-256 of all weights: names, shapes and fp32 bytes, in the order of names.

    With ``dtype``, the fingerprint of ``module.to(dtype)``; the module itself is not changed.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        tensor = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor
        digest.update(tensor.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]
