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

"""Frame arithmetic: every label, crop and mask is counted with it."""

import math

import pytest
import torch

from nemo_mshubert.modules.frames import (
    HOP_SAMPLES,
    HUBERT_KERNELS_AND_STRIDES,
    RECEPTIVE_FIELD_SAMPLES,
    frame_count,
    valid_positions,
)

LENGTHS = [*range(0, 1200), 15999, 16000, 16001, 250_000]


@pytest.fixture(scope="module")
def convolved_frames():
    """Frames that a real stack of convolutions makes of each length; 0 where PyTorch refuses the input."""
    convs = [torch.nn.Conv1d(1, 1, kernel, stride) for kernel, stride in HUBERT_KERNELS_AND_STRIDES]

    def count(num_samples):
        x = torch.zeros(1, 1, num_samples)
        for conv in convs:
            if x.shape[-1] < conv.kernel_size[0]:
                return 0
            x = conv(x)
        return x.shape[-1]

    with torch.no_grad():
        return [count(length) for length in LENGTHS]


@pytest.mark.unit
def test_frame_count_is_that_of_the_convolutions(convolved_frames):
    """Otherwise labels and frames are off by one, from some length on."""
    assert [frame_count(length) for length in LENGTHS] == convolved_frames
    assert frame_count(torch.tensor(LENGTHS)).tolist() == convolved_frames
    naive = [length // HOP_SAMPLES for length in LENGTHS]  # the usual mistake is another number
    assert naive != convolved_frames


@pytest.mark.unit
def test_valid_positions_end_with_the_utterance():
    """One more, and every utterance has a frame of padding."""
    expected = [[False, False, False], [True, False, False], [True, True, True], [True, True, True]]
    assert valid_positions(torch.tensor([0, 1, 3, 5]), 3).tolist() == expected


@pytest.mark.unit
def test_constants_follow_from_the_layers():
    """Otherwise crops leave the frame grid."""
    assert HOP_SAMPLES == math.prod(stride for _, stride in HUBERT_KERNELS_AND_STRIDES)
    assert frame_count(RECEPTIVE_FIELD_SAMPLES) == 1
    assert frame_count(RECEPTIVE_FIELD_SAMPLES - 1) == 0
    for frames in (1, 2, 100):
        samples = (frames - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES
        assert (frame_count(samples - 1), frame_count(samples)) == (frames - 1, frames)
