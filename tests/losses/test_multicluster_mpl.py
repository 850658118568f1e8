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

"""The Multicluster masked prediction loss against a slow loop written from its formula."""

import math

import pytest
import torch

from nemo_mshubert.losses.multicluster_mpl import IGNORED_LABEL, MulticlusterMPLLoss
from nemo_mshubert.modules.label_heads import LabelHeads


@pytest.fixture
def example():
    """Heads, hidden rows ``[9, D]`` per set, labels per set with the same two rows ignored."""
    torch.manual_seed(8)
    heads = LabelHeads(d_model=5, label_sets=[7, 3], d_head=4)
    rows = {clusters: torch.randn(9, 5) for clusters in (7, 3)}
    labels = {clusters: torch.randint(clusters, (9,)) for clusters in (7, 3)}
    for label_N in labels.values():
        label_N[[2, 6]] = IGNORED_LABEL
        label_N[0] = 0  # a cluster like the others
    return heads, rows, labels


def slow_loss(heads, rows, labels):
    """- sum over sets and masked frames of log( exp(cos(A o, e_c) / 0.1) / sum_k exp(cos(A o, e_k) / 0.1) )."""
    per_set = {}
    for clusters, x_ND in rows.items():
        head = heads.heads[str(clusters)]
        total = 0.0
        for x, label in zip(x_ND, labels[clusters].tolist()):
            if label == IGNORED_LABEL:
                continue
            projected = (head.final_proj.weight @ x + head.final_proj.bias).tolist()
            scores = []
            for embedding in head.label_embeddings.tolist():
                dot = sum(p * e for p, e in zip(projected, embedding))
                scores.append(math.exp(dot / math.hypot(*projected) / math.hypot(*embedding) / 0.1))
            total -= math.log(scores[label] / sum(scores))
        per_set[clusters] = total
    return per_set


def run(loss, heads, rows, labels, penalty=0.0):
    return loss(logits=list(heads(rows).values()), labels=list(labels.values()), feature_penalty=torch.tensor(penalty))


@pytest.mark.unit
def test_heads_and_loss_equal_the_formula(example):
    """The number that is optimised is the paper's."""
    loss_sum, set_losses, count = run(MulticlusterMPLLoss(), *example)
    expected = slow_loss(*example)
    assert [value.item() for value in set_losses] == pytest.approx(list(expected.values()), rel=1e-4)
    assert loss_sum.item() == pytest.approx(sum(expected.values()), rel=1e-4)
    assert count.item() == 7
    heads, rows, labels = example
    shifted = {clusters: label_N.roll(1) for clusters, label_N in labels.items()}  # labels one frame late must show
    assert run(MulticlusterMPLLoss(), heads, rows, shifted)[0].item() != pytest.approx(loss_sum.item(), rel=1e-2)


@pytest.mark.unit
def test_ignored_rows_contribute_nothing(example):
    """Frames without a label are padding: neither loss, nor count, nor gradient."""
    heads, rows, labels = example
    rows = {clusters: x_ND.requires_grad_() for clusters, x_ND in rows.items()}
    loss_sum, _, _ = run(MulticlusterMPLLoss(), heads, rows, labels, penalty=0.3)
    loss_sum.backward()
    for x_ND in rows.values():
        assert not x_ND.grad[[2, 6]].any()
        assert (x_ND.grad[[0, 1, 3, 4, 5, 7, 8]].abs().sum(-1) > 0).all()
    kept = [0, 1, 3, 4, 5, 7, 8]
    without, _, count = run(
        MulticlusterMPLLoss(),
        heads,
        {k: v[kept] for k, v in rows.items()},
        {k: v[kept] for k, v in labels.items()},
        0.3,
    )
    assert without.item() == pytest.approx(loss_sum.item(), rel=1e-5) and count == 7


@pytest.mark.unit
def test_penalty_is_weighted_and_scaled_by_the_count(example):
    """fairseq: 10 x mean square x masked frames, so that it survives the division by them."""
    plain = run(MulticlusterMPLLoss(penalty_weight=10.0), *example)[0]
    penalised = run(MulticlusterMPLLoss(), *example, penalty=0.25)[0]
    assert (penalised - plain).item() == pytest.approx(10 * 0.25 * 7, rel=1e-4)
    assert torch.equal(run(MulticlusterMPLLoss(penalty_weight=0.0), *example, penalty=0.25)[0], plain)


@pytest.mark.unit
def test_sums_and_counts_add_up_over_parts(example):
    """Accumulated and distributed training divide one sum by one count; a mean of means is another number."""
    heads, rows, labels = example
    loss = MulticlusterMPLLoss()
    whole = run(loss, heads, rows, labels, 0.2)
    parts = [
        run(loss, heads, {k: v[part] for k, v in rows.items()}, {k: v[part] for k, v in labels.items()}, 0.2)
        for part in (slice(0, 3), slice(3, 9))
    ]
    assert sum(part[0].item() for part in parts) == pytest.approx(whole[0].item(), rel=1e-5)
    assert sum(part[2].item() for part in parts) == whole[2].item()
    mean_of_means = sum(part[0].item() / part[2].item() for part in parts) / 2
    assert mean_of_means != pytest.approx(whole[0].item() / whole[2].item(), rel=1e-3)


@pytest.mark.unit
def test_a_batch_without_labels_is_zero(example):
    """A batch whose audio could not be read must weigh nothing, and not be NaN."""
    heads, rows, labels = example
    nothing = {clusters: torch.full_like(label_N, IGNORED_LABEL) for clusters, label_N in labels.items()}
    loss_sum, set_losses, count = run(MulticlusterMPLLoss(), heads, rows, nothing, penalty=0.5)
    assert (loss_sum.item(), count.item()) == (0.0, 0)
    empty = run(
        MulticlusterMPLLoss(), heads, {k: v[:0] for k, v in rows.items()}, {k: v[:0] for k, v in labels.items()}
    )
    assert (empty[0].item(), empty[2].item()) == (0.0, 0)


@pytest.mark.unit
def test_typecheck_refuses_wrong_shapes(example):
    """Logits ``[B, T, K]`` would be averaged over the wrong axis."""
    heads, rows, labels = example
    with pytest.raises(TypeError):
        MulticlusterMPLLoss()(
            logits=[value[None] for value in heads(rows).values()],
            labels=list(labels.values()),
            feature_penalty=torch.tensor(0.0),
        )


@pytest.mark.unit
def test_logits_in_bf16_lose_nothing_more():
    """Sums over 100,000 frames in bf16 stop at 256 ones."""
    torch.manual_seed(0)
    logits = torch.randn(2000, 7).bfloat16()
    labels, penalty = torch.randint(7, (2000,)), torch.tensor(1.0)
    found, *_ = MulticlusterMPLLoss()(logits=[logits], labels=[labels], feature_penalty=penalty.bfloat16())
    expected, *_ = MulticlusterMPLLoss()(logits=[logits.float()], labels=[labels], feature_penalty=penalty)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
