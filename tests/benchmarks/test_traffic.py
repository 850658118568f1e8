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

"""The count of what a step moves on a GPU: sums that can be done by hand, and FLOPs by another way."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nemo_mshubert.benchmarks.flops import step_flops
from nemo_mshubert.benchmarks.pretraining_step import Batch, encoder_options, load_config, variants
from nemo_mshubert.benchmarks.traffic import META, Kernel, benchmark, traffic_of
from tests.conftest import needs_meta_weight_norm

pytestmark = pytest.mark.unit
CONFIGS = Path(__file__).parents[2] / "conf" / "pretrain"
N, D, E = 7, 5, 3


def of(kernels, *kinds):
    """Bytes of the kernels of these kinds."""
    return sum(kernel.num_bytes for kernel in kernels if kernel.kind in kinds)


def traffic_of_layer(run):
    """Of ``run(x, linear, norm)`` and its backward pass, x of N rows in fp32 that need a gradient."""
    linear, norm = nn.Linear(D, E, device=META), nn.LayerNorm(D, device=META)

    def backpropagate():
        x_ND = torch.empty(N, D, device=META, requires_grad=True).view(N, D)  # no leaf, as weights are
        with torch.autocast("meta", torch.bfloat16):
            y = run(x_ND, linear, norm)
        y.backward(torch.empty_like(y))

    return traffic_of(lambda: SimpleNamespace(backpropagate=backpropagate, parameters=[*linear.parameters()]))


def test_linear_by_hand():
    """Each operand is converted, with its gradient back; three products of three matrices each; the optimizer. Both
    operands are kept, as they were converted."""
    kernels, kept_bytes = traffic_of_layer(lambda x, linear, norm: linear(x))
    assert kept_bytes == 2 * (N * D + D * E)
    weights = D * E + E
    assert of(kernels, "conversions between fp32 and bf16") == 2 * (4 + 2) * (N * D + weights)
    bias = 2 * E
    assert of(kernels, "products") == 3 * 2 * (N * D + D * E + N * E) + bias
    assert sum(kernel.flops for kernel in kernels) == 3 * 2 * N * D * E
    assert of(kernels, "clipping and AdamW") == 4 * weights * (1 + 2 + 4 + 3)


def test_a_weight_is_converted_once_and_norms_are_in_fp32():
    """As autocast has it; a count with a conversion per use would blame autocast for what it does not do."""
    twice = traffic_of_layer(lambda x, linear, norm: linear(x) + linear(x)).kernels
    once = traffic_of_layer(lambda x, linear, norm: linear(x)).kernels
    conversions = "conversions between fp32 and bf16"
    assert of(twice, conversions) - of(once, conversions) == 2 * (4 + 2) * N * D
    normed = traffic_of_layer(lambda x, linear, norm: norm(F.dropout(x.bfloat16(), 0.1, True))).kernels
    statistics = 2 * 4 * N
    assert of(normed, "norms") == (2 * 4 * N * D + 2 * 4 * D + statistics) + (3 * 4 * N * D + 4 * 4 * D + statistics)
    mask = N * D
    assert of(normed, "dropout") == 2 * (2 * 2 * N * D + mask)


def test_attention_by_hand():
    """Forward, it reads queries, keys and values and writes as much as the queries are; backward, it reads these four
    and the gradient, and writes three. Two products, then five, of N x N with D."""

    def run(x, linear, norm):
        q_BHTE = linear(x)[None, None]  # in bf16
        return F.scaled_dot_product_attention(q_BHTE, q_BHTE, q_BHTE)

    attention = [kernel for kernel in traffic_of_layer(run).kernels if kernel.kind == "attention"]
    assert [kernel.num_bytes for kernel in attention] == [4 * 2 * N * E, 8 * 2 * N * E]
    assert [kernel.flops for kernel in attention] == [2 * 2 * N * N * E, 5 * 2 * N * N * E]


def test_idle_dropout_moves_nothing():
    """At base size without dropout, or in evaluation, a GPU launches no kernel for it."""
    for p, training in ((0.0, True), (0.1, False)):
        kernels = traffic_of_layer(lambda x, linear, norm: F.dropout(linear(x), p, training)).kernels
        assert of(kernels, "dropout") == 0


def test_the_slower_of_memory_and_products_bounds_a_kernel():
    kernel = Kernel("products", num_bytes=6e12, flops=8e12)
    assert kernel.seconds(teraflops=2, terabytes=3) == 4 and kernel.seconds(teraflops=8, terabytes=3) == 2


@needs_meta_weight_norm
@pytest.mark.parametrize("name", ["ours", "ours, no Swap", "transformers"])
def test_flops_of_a_step_are_those_of_the_formula(name):
    """What is not counted would be missing from its bytes, too. Flash attention repeats one product of six; ours
    leaves out visible frames behind the attention of the last block."""
    config = load_config(CONFIGS, "tiny")
    batch = Batch(4.0, 2.0, config, META)
    variant = variants(encoder_options(config), list(config.model.label_sets), on_gpu=False)[name]
    kernels = traffic_of(lambda: variant.build(config, batch)).kernels
    found = sum(kernel.flops * (6 / 7 if kernel.kind == "attention" else 1) for kernel in kernels)
    sets, d_head = config.model.label_sets, config.model.label_heads.d_head
    views = 1 if name == "ours, no Swap" else 2
    expected = step_flops(
        encoder_options(config), batch.num_rows, batch.num_samples, views, batch.num_masked, sets, d_head
    )
    first = 2 * batch.num_rows * batch.num_samples / 5 * config.model.encoder.conv_layers[0][0] * 10
    encoder = config.model.encoder
    visible = views * (batch.mask_BT.numel() - batch.num_masked) if name.startswith("ours") else 0
    left_out = 3 * visible * (2 * encoder.d_model**2 + 4 * encoder.d_model * encoder.d_inner)
    assert found == pytest.approx(expected - first - left_out, rel=0.02)  # no gradient of the audio


@needs_meta_weight_norm
def test_rows_add_up_and_ours_moves_less():
    """The table a change of the kernels is judged by. Batches so long that weights do not matter."""
    rows = list(benchmark(CONFIGS, ["base"], [350], 12.5, teraflops=100, terabytes=1, device=torch.device("cpu")))
    total = {row["row"]: row for row in rows if "audio_seconds_per_second" in row}
    for name, row in total.items():
        parts = [part for part in rows if part["row"] == name and part is not row]
        for key in ("kernels", "gigabytes", "teraflop", "milliseconds"):
            assert sum(part[key] for part in parts) == pytest.approx(row[key])
        bound = max(row["gigabytes"], row["teraflop"] / 100 * 1e3)
        assert bound <= row["milliseconds"] <= row["gigabytes"] + row["teraflop"] / 100 * 1e3
        assert row["audio_seconds_per_second"] == pytest.approx(row["batch_seconds"] / row["milliseconds"] * 1e3)
    assert total["ours, no Swap"]["gigabytes"] < total["ours"]["gigabytes"] < 0.85 * total["transformers"]["gigabytes"]


def test_kept_bytes_by_hand():
    """Weights are in memory anyway, and what two operators keep is there once: else the plan of a GPU is too large."""
    weight = torch.nn.Parameter(torch.empty(100, device="meta"))
    x = torch.empty(100, device="meta", requires_grad=True)

    def backpropagate():
        product = weight * x  # keeps both
        (product * x).sum().backward()  # keeps the product, and x again

    kept = traffic_of(lambda: SimpleNamespace(parameters=[weight], backpropagate=backpropagate)).kept_bytes
    assert kept == 4 * (100 + 100)  # x and the product
