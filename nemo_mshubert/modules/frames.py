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

"""Frame arithmetic of the HuBERT front end: which samples a frame sees, and how many frames an utterance has.

samples   0        320       640       960
frame 0   |-- 400 samples --|
frame 1            |-- 400 samples --|
frame 2                     |-- 400 samples --|
"""

from typing import TypeVar

import torch
from torch import Tensor

Length = TypeVar("Length", int, Tensor)

# fairseq: conv_feature_layers "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
HUBERT_KERNELS_AND_STRIDES = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
HOP_SAMPLES = 320  # 20 ms at 16 kHz: the product of the strides
RECEPTIVE_FIELD_SAMPLES = 400  # 25 ms
FRAME_RATE = 50  # Hz
IGNORED_LABEL = -100  # for frames without a label (padding)


def frame_count(num_samples: Length, kernels_and_strides=HUBERT_KERNELS_AND_STRIDES) -> Length:
    """Number of frames of ``num_samples`` samples, ``floor((n - k) / s) + 1`` per layer; 0 below the receptive
    field."""
    frames = num_samples
    for kernel, stride in kernels_and_strides:
        frames = (frames - kernel) // stride + 1
        frames = frames.clamp(min=0) if isinstance(frames, Tensor) else max(frames, 0)
    return frames


def valid_positions(lengths_B: Tensor, size: int) -> Tensor:
    """True at the first ``lengths_B[b]`` of ``size`` positions: ``[B, size]``."""
    return torch.arange(size, device=lengths_B.device) < lengths_B[:, None]
