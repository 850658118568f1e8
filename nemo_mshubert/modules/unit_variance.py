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

"""Audio as the large models expect it: every utterance has zero mean and unit variance."""

import numpy as np

VARIANCE_FLOOR = 1e-7  # as in transformers; fairseq has 1e-5


def to_unit_variance(waveform: np.ndarray) -> np.ndarray:
    """Scale ``float32 [S]`` as `WaveformPreprocessor` does: as a whole, before it is cut into chunks."""
    return (waveform - waveform.mean()) / np.sqrt(waveform.var() + VARIANCE_FLOOR)
