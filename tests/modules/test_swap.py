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

"""Swap, section 2.2.1 of the paper: what each view sees of the other, and when."""

import pytest
import torch
from torch import nn

from nemo_mshubert.modules.swap import masked_stream_view, swap, swap_source

LENGTHS = [4000, 4000]  # samples: 12 frames each
LAYERS = [1, 2]


@pytest.fixture
def example():
    """Samples ``[2, 1, S]``, lengths and a mask ``[2, 12]`` with rows masked alike in number, not in place."""
    torch.manual_seed(1)
    mask_BT = torch.zeros(2, 12, dtype=torch.bool)
    mask_BT[0, 3:7] = True
    mask_BT[1, 1:3] = mask_BT[1, 9:11] = True
    return torch.randn(2, 1, LENGTHS[0]), torch.tensor(LENGTHS), mask_BT


def score(x_ND):
    """A scalar of every entry; sums of squares would be constant behind a LayerNorm."""
    return (x_ND * torch.linspace(-1, 1, x_ND.shape[-1], dtype=x_ND.dtype)).sum()


def inputs_and_outputs(encoder, run):
    """What every block takes and computes, before any exchange: two lists of ``[V, B, T, D]``."""
    inputs, outputs = [], []

    def record(module, arguments, output):
        inputs.append(arguments[0].unflatten(0, (2, -1)))
        outputs.append(output.unflatten(0, (2, -1)))

    hooks = [layer.register_forward_hook(record) for layer in encoder.layers]
    run()
    for hook in hooks:
        hook.remove()
    return inputs, outputs


@pytest.mark.unit
def test_swap_exchanges_masked_frames_and_nothing_else():
    """The whole difference between MS-HuBERT and HuBERT."""
    x_VBTD, mask_BT = torch.randn(2, 3, 7, 4), torch.arange(7).expand(3, 7) % 3 == 0
    before = x_VBTD.clone()
    y_VBTD = swap(x_VBTD, swap_source(mask_BT))
    assert torch.equal(y_VBTD[:, mask_BT], x_VBTD.flip(0)[:, mask_BT])  # exchanged (an identity swap fails here)
    assert torch.equal(y_VBTD[:, ~mask_BT], x_VBTD[:, ~mask_BT])  # untouched
    assert torch.equal(x_VBTD, before)  # out of place
    assert torch.equal(swap(y_VBTD, swap_source(mask_BT)), x_VBTD)


@pytest.mark.unit
@pytest.mark.parametrize("pre_norm", [False, True])
def test_two_blocks_follow_the_papers_equations(tiny_encoder, example, pre_norm):
    """The paper's text, frame by frame and one view at a time, gives what the batched code gives."""
    signal, length, mask_BT = example
    encoder = tiny_encoder(num_layers=2, pre_norm=pre_norm)
    with torch.no_grad():
        views = encoder.forward_views(signal, length, mask_BT, LAYERS)
        features = encoder.feature_extractor(signal, length, False)[0]
        projected_BTD = encoder.feature_projection(features)
        for row in range(2):
            first, second = projected_BTD[row].clone(), projected_BTD[row].clone()  # X1 masked, X2 its duplicate
            for frame in range(12):
                if mask_BT[row, frame]:
                    first[frame] = encoder.mask_embedding
            first, second = (x + encoder.pos_conv_embed(x[None])[0] for x in (first, second))
            if not pre_norm:
                first, second = encoder.layer_norm(first), encoder.layer_norm(second)
            for number, layer in enumerate(encoder.layers, start=1):
                first, second = layer(first[None], None)[0], layer(second[None], None)[0]
                unswapped = first.clone()
                for frame in range(12):
                    if mask_BT[row, frame]:
                        first[frame], second[frame] = second[frame].clone(), first[frame].clone()
                expected = torch.stack([first, second])
                if pre_norm and number == 2:
                    expected, unswapped = encoder.layer_norm(expected), encoder.layer_norm(unswapped)
                torch.testing.assert_close(views.tapped[number][:, row], expected, rtol=1e-4, atol=1e-5)
                assert not torch.allclose(views.tapped[number][0, row], unswapped, atol=1e-2)


@pytest.mark.unit
def test_masked_frames_are_seen_from_block_two_on(tiny_encoder, example):
    """The masked view must not see what it has to predict before the first exchange, and must profit of it after."""
    signal, length, mask_BT = example
    encoder = tiny_encoder()
    run = lambda: encoder.forward_views(signal, length, mask_BT, LAYERS)  # noqa: E731
    inputs, outputs = inputs_and_outputs(encoder, run)

    def perturb(module, arguments, projected_BTD):
        projected_BTD = projected_BTD.clone()
        projected_BTD[0, 4] += 1.0  # a masked frame of the first utterance
        return projected_BTD

    hook = encoder.feature_projection.register_forward_hook(perturb)
    inputs_after, outputs_after = inputs_and_outputs(encoder, run)
    hook.remove()
    assert torch.equal(outputs[0][0], outputs_after[0][0])  # block 1, masked view: bit for bit
    assert not torch.allclose(outputs[0][1], outputs_after[0][1])  # block 1, unmasked view
    # Block 2: the masked stream (now in view 1, at the masked frames) and the other frames of both views.
    row_mask = mask_BT[0]
    masked_stream = (
        outputs[1][masked_stream_view(1), 0, row_mask],
        outputs_after[1][masked_stream_view(1), 0, row_mask],
    )
    assert not torch.allclose(*masked_stream)
    for view in (0, 1):
        assert not torch.allclose(outputs[1][view, 0, ~row_mask], outputs_after[1][view, 0, ~row_mask])
    assert torch.equal(outputs[1][:, 1], outputs_after[1][:, 1])  # the other utterance has no part in it


@pytest.mark.unit
def test_without_swap_masked_frames_are_never_seen(tiny_encoder, example):
    """The ablation "- Swap" is HuBERT: a masked frame's audio reaches nothing at all."""
    signal, length, mask_BT = example
    encoder = tiny_encoder()
    before = encoder.forward_views(signal, length, mask_BT, [4], use_swap=False).tapped[4]
    assert before.shape[0] == 1
    hook = encoder.feature_projection.register_forward_hook(
        lambda module, arguments, x_BTD: torch.where(mask_BT[..., None], x_BTD + 1.0, x_BTD)
    )
    after = encoder.forward_views(signal, length, mask_BT, [4], use_swap=False).tapped[4]
    hook.remove()
    assert torch.equal(before, after)


@pytest.mark.unit
def test_views_coincide_where_nothing_is_masked(tiny_encoder, example):
    """At inference nothing is masked: the two views, and plain ``forward``, must be one.

    In fp64: products of six rows and of three are rounded differently, by how much depends on the processor.
    """
    signal, length, mask_BT = example
    signal, encoder = signal.double(), tiny_encoder().double()
    views = encoder.forward_views(signal, length, torch.zeros_like(mask_BT), [1, 4])
    for layer in (1, 4):
        torch.testing.assert_close(views.tapped[layer][0], views.tapped[layer][1], rtol=0, atol=1e-12)
    forward_BDT, _ = encoder(audio_signal=signal, length=length)
    torch.testing.assert_close(views.tapped[4][0], forward_BDT.transpose(1, 2), rtol=0, atol=1e-12)
    masked = encoder.forward_views(signal, length, mask_BT, [4]).tapped[4]
    assert not torch.allclose(masked[0], masked[1], atol=1e-2)


@pytest.mark.unit
def test_gradients_flow_through_the_exchange():
    """An exchange under no_grad or in place would train the views apart."""
    x_VBTD = torch.randn(2, 2, 5, 3, dtype=torch.float64, requires_grad=True)
    mask_BT = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 1, 0, 1]], dtype=torch.bool)
    block = nn.Linear(3, 3).double()
    source_R = swap_source(mask_BT)
    assert torch.autograd.gradcheck(lambda x: swap(block(swap(x, source_R)).tanh(), source_R), x_VBTD)
    assert torch.autograd.gradgradcheck(lambda x: swap(x, source_R).tanh(), x_VBTD)
    (gradient,) = torch.autograd.grad(swap(x_VBTD, source_R)[0].sum(), x_VBTD)
    assert torch.equal(gradient[1].bool(), mask_BT[..., None].expand(2, 5, 3))  # view 0 gets these from view 1
    assert torch.equal(gradient[0].bool(), ~mask_BT[..., None].expand(2, 5, 3))


@pytest.mark.unit
def test_one_view_trains_both_streams(tiny_encoder, example):
    """A loss on view 0 at block 1 reaches, at masked frames, the audio: they came over from the unmasked view."""
    signal, length, mask_BT = example
    encoder = tiny_encoder().double()
    kept = []
    encoder.feature_projection.register_forward_hook(
        lambda module, arguments, x_BTD: x_BTD.retain_grad() or kept.append(x_BTD)
    )
    views = encoder.forward_views(signal.double(), length, mask_BT, [1])
    score(views.tapped[1][0][mask_BT]).backward()
    assert (kept[0].grad[mask_BT].abs().sum(-1) > 0).all()
    assert encoder.mask_embedding.grad is None or not encoder.mask_embedding.grad.any()
    views = encoder.forward_views(signal.double(), length, mask_BT, [2])
    score(views.tapped[2][0][mask_BT]).backward()
    assert encoder.mask_embedding.grad.abs().sum() > 0  # from block 2 on, both


@pytest.mark.unit
def test_masked_stream_is_followed_over_the_exchanges(tiny_encoder, example):
    """``loss_views: masked_stream`` must pick the tokens that began as mask embeddings, whatever the block.

    With attention and positions switched off, a token is a function of its own past: those that began as the mask
    embedding are all equal, those that began as audio are not.
    """
    signal, length, mask_BT = example
    encoder = tiny_encoder()
    with torch.no_grad():
        for layer in encoder.layers:
            layer.attention.out_proj.weight.zero_()
        encoder.pos_conv_embed.conv.parametrizations.weight.original0.zero_()
        views = encoder.forward_views(signal, length, mask_BT, [1, 2, 3, 4])
    for layer, x_VBTD in views.tapped.items():
        view = masked_stream_view(layer)
        stream, other = x_VBTD[view][mask_BT], x_VBTD[1 - view][mask_BT]
        torch.testing.assert_close(stream, stream[:1].expand_as(stream))
        assert not torch.allclose(other, other[:1].expand_as(other), atol=1e-2)
