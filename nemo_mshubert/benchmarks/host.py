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

"""The host's part of a pre-training step: Python, dispatch, autograd and the optimizer, without the arithmetic.

While a GPU computes, the host sends it the next kernels. If sending takes longer than computing, the GPU waits, and
only larger batches or fewer kernels help. Here the steps of `pretraining_step` run on the CPU in fp32, with layers so
narrow and audio so short that the arithmetic takes almost no time. On a GPU, autocast's conversions, the kernel
launches and Lightning's loop around the step are additional.
"""

from pathlib import Path
from typing import Iterator, Sequence

import torch
from omegaconf import DictConfig

from nemo_mshubert.benchmarks.measurement import Column, Row, median_seconds
from nemo_mshubert.benchmarks.pretraining_step import STEPS, Batch, encoder_options, load_config, variants

CPU = torch.device("cpu")
COLUMNS = [
    Column("size", "size"),
    Column("row", "step"),
    Column("milliseconds", "host, ms", ".1f"),
    Column("time_over_ours", "time / ours", ".2f"),
]


def benchmark(configs: Path, sizes: Sequence[str], repeats: int, device: torch.device) -> Iterator[Row]:
    """Rows of every size and step.

    Args:
        configs, sizes, repeats: as in `pretraining_step.benchmark`.
        device: of this machine; only the CPU is measured.
    """
    for size in sizes:
        config = narrow(load_config(configs, size))
        batch = Batch(0.25, 0.25, config, CPU)
        found = variants(encoder_options(config), list(config.model.label_sets), on_gpu=False)
        steps = {name: found[name].build(config, batch) for name in STEPS}
        seconds = median_seconds(steps, repeats, CPU)
        for name, value in seconds.items():
            yield {
                "size": size,
                "row": name,
                "milliseconds": value * 1e3,
                "time_over_ours": value / seconds["ours"],
            }


def narrow(config: DictConfig) -> DictConfig:
    """The same layers, but very narrow, and without attention dropout, for which CPUs have no fast kernel."""
    encoder = config.model.encoder
    encoder.conv_layers = [[8, kernel, stride] for _, kernel, stride in encoder.conv_layers]
    encoder.d_model = encoder.d_inner = 4 * encoder.num_heads
    encoder.pos_conv_groups = encoder.num_heads
    encoder.attention_dropout = 0.0
    config.model.label_heads.d_head = 8
    return config
