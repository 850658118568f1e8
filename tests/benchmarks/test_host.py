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

"""The host's part of a step is that of the step that is trained."""

from pathlib import Path

import pytest
import torch

from nemo_mshubert.benchmarks.host import CPU, benchmark, narrow
from nemo_mshubert.benchmarks.pretraining_step import STEPS, Batch, encoder_options, load_config, variants
from nemo_mshubert.benchmarks.traffic import META, traffic_of
from tests.conftest import needs_meta_weight_norm

pytestmark = pytest.mark.unit
CONFIGS = Path(__file__).parents[2] / "conf" / "pretrain"


def test_rows():
    rows = list(benchmark(CONFIGS, ["tiny"], repeats=2, device=CPU))
    assert [row["row"] for row in rows] == list(STEPS)
    assert all(row["milliseconds"] > 0 for row in rows) and rows[0]["time_over_ours"] == 1


@needs_meta_weight_norm
@pytest.mark.parametrize("row", STEPS)
@pytest.mark.parametrize("size", ["tiny", "base"])
def test_narrow_layers_send_the_same_kernels(row, size):
    """With other kernels, or with arithmetic worth its time, the figure says nothing about the step on a GPU."""
    kernels = []
    for change in (lambda config: config, narrow):
        config = change(load_config(CONFIGS, size))
        torch.manual_seed(0)
        batch = Batch(0.25, 0.25, config, META)
        found = variants(encoder_options(config), list(config.model.label_sets), on_gpu=False)
        kernels.append(traffic_of(lambda: found[row].build(config, batch)).kernels)
    whole, small = kernels
    assert [kernel.kind for kernel in small] == [kernel.kind for kernel in whole]
    assert sum(kernel.flops for kernel in small) < 1e8  # about a millisecond of one core
