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

"""Heads of the label sets: the formula of HuBERT's eq. 3, and where the paper's rule places each set."""

import math

import pytest
import torch

from nemo_mshubert.modules.label_heads import LabelHeads, place_label_sets

PAPER_SETS = [1000, 500, 250, 125, 50, 25]


@pytest.mark.unit
def test_logits_equal_the_formula():
    """cos(W x + b, e_k) / 0.1, in a slow loop over frames and clusters."""
    heads = LabelHeads(d_model=6, label_sets=[5, 3], d_head=4)
    x_ND = torch.randn(7, 6)
    logits = heads({5: x_ND, 3: x_ND[:2]})
    assert {clusters: tuple(value.shape) for clusters, value in logits.items()} == {5: (7, 5), 3: (2, 3)}
    for clusters, rows in ((5, 7), (3, 2)):
        head = heads.heads[str(clusters)]
        weight, bias = head.final_proj.weight.tolist(), head.final_proj.bias.tolist()
        embeddings = head.label_embeddings.tolist()
        for n in range(rows):
            x = x_ND[n].tolist()
            projected = [sum(w * value for w, value in zip(row, x)) + b for row, b in zip(weight, bias)]
            for k in range(clusters):
                dot = sum(p * e for p, e in zip(projected, embeddings[k]))
                cosine = dot / math.hypot(*projected) / math.hypot(*embeddings[k])
                assert logits[clusters][n, k].item() == pytest.approx(cosine / 0.1, abs=1e-4)


@pytest.mark.unit
def test_the_temperature_is_the_one_asked_for():
    torch.manual_seed(0)
    heads, x_ND = LabelHeads(d_model=6, label_sets=[5], d_head=4, temperature=0.25), torch.randn(7, 6)
    warm = heads({5: x_ND})[5]
    heads.heads["5"].temperature = 0.5
    torch.testing.assert_close(heads({5: x_ND})[5], warm / 2)


@pytest.mark.unit
def test_logits_are_fp32_under_autocast():
    """A cosine over 0.1 in bf16 has steps of 0.06: enough to stall the training."""
    heads = LabelHeads(d_model=6, label_sets=[5], d_head=4)
    x_ND = torch.randn(7, 6)
    with torch.autocast("cpu", torch.bfloat16):
        logits = heads({5: x_ND})[5]
        projected = heads.heads["5"].final_proj(x_ND).double()
    expected = torch.nn.functional.cosine_similarity(
        projected[:, None], heads.heads["5"].label_embeddings.double(), dim=-1
    )
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected / 0.1, rtol=1e-5, atol=1e-5)  # not rounded on the way
    torch.nn.init.zeros_(heads.heads["5"].final_proj.bias)
    logits = heads({5: torch.zeros(1, 6)})[5]
    logits.sum().backward()
    assert not logits.any()  # an all-zero frame must not give NaN
    assert all(parameter.grad.isfinite().all() for parameter in heads.parameters())


@pytest.mark.unit
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_equal_those_of_autograd(dtype):
    """Their formula is written out: wrong, and the encoder learns something else than the loss says."""
    torch.manual_seed(0)
    head = LabelHeads(d_model=6, label_sets=[5], d_head=4).heads["5"]
    x_ND, upstream_NK = torch.randn(7, 6), torch.randn(7, 5)

    def gradients(logits_of):
        x = x_ND.clone().requires_grad_()
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits_NK = logits_of(x)
        (logits_NK * upstream_NK).sum().backward()
        return [logits_NK.detach(), x.grad, *(parameter.grad.clone() for parameter in head.parameters())]

    def plainly(x):
        projected_NE = head.final_proj(x)
        with torch.autocast("cpu", enabled=False):
            unit_NE = torch.nn.functional.normalize(projected_NE.float(), dim=-1)
            return unit_NE @ torch.nn.functional.normalize(head.label_embeddings, dim=-1).T / 0.1

    for found, expected in zip(gradients(head), gradients(plainly)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    head = head.double()
    assert torch.autograd.gradcheck(head, x_ND.double().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda w: torch.func.functional_call(head, {"label_embeddings": w}, x_ND.double()),
        torch.rand(5, 4, dtype=torch.float64, requires_grad=True),
    )


@pytest.mark.unit
def test_embeddings_start_uniform_as_in_fairseq():
    """label_embs_concat ~ U(0, 1)."""
    embeddings = LabelHeads(16, [1000]).heads["1000"].label_embeddings
    assert 0 <= embeddings.min() and embeddings.max() < 1
    assert embeddings.mean().item() == pytest.approx(0.5, abs=0.01)
    assert embeddings.std().item() == pytest.approx(12**-0.5, abs=0.01)


@pytest.mark.unit
def test_absent_heads_are_those_not_used():
    """They get the zero gradients of a dropped set."""
    heads = LabelHeads(6, [5, 3, 2])
    assert heads.absent([3]) == [heads.heads["5"], heads.heads["2"]]


@pytest.mark.unit
def test_papers_placement():
    """The paper's table: block to clusters."""
    paper = {12: 1000, 10: 500, 8: 250, 7: 125, 5: 50, 4: 25}
    assert place_label_sets(PAPER_SETS, 12) == paper
    assert place_label_sets(list(reversed(PAPER_SETS)), 12) == paper  # the order in the config says nothing
    assert place_label_sets([100], 12) == {12: 100}  # HuBERT
    assert list(place_label_sets(PAPER_SETS, 24)) == [24, 21, 18, 15, 12, 9]
    assert len(place_label_sets(PAPER_SETS, 8)) == 6  # the tiny size


@pytest.mark.unit
def test_explicit_placement_overrides():
    """YAML keys are strings or integers."""
    assert place_label_sets([50, 10], 6, {"6": 10, 3: 50}) == {6: 10, 3: 50}


@pytest.mark.unit
@pytest.mark.parametrize(
    "sets, layers, explicit, message",
    [
        ([], 12, None, "at least one"),
        ([100, 100], 12, None, "different cluster counts"),
        (PAPER_SETS, 6, None, "6 label sets do not fit between blocks 2 and 6.*label_layers"),
        ([10, 5], 1, None, "do not fit"),
        ([10, 5], 12, {12: 10}, r"places the sets \[10\] but label_sets are \[5, 10\]"),
        ([10], 12, {12: 10, 6: 5}, "exactly one block"),
        ([10], 12, {13: 10}, r"blocks \[13\] do not exist; the encoder has blocks 1 to 12"),
        ([10], 12, {0: 10}, r"blocks \[0\] do not exist"),
        ([10], 12, {"top": 10}, r"label_layers \{'top': 10\}: expected block numbers and cluster counts"),
        ([10], 12, {12: None}, r"label_layers \{12: None\}: expected block numbers and cluster counts"),
        ([10], 12, "top", "label_layers top: expected block numbers and cluster counts"),
    ],
)
def test_impossible_placements_are_refused(sets, layers, explicit, message):
    """Found at construction, not as a crash or a silently missing loss in the first update."""
    with pytest.raises(ValueError, match=message):
        place_label_sets(sets, layers, explicit)
