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

"""Blocks split by megatron-core over two gloo ranks give what one rank gives."""

import pytest
import torch

from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder
from tests.conftest import TINY_ENCODER
from tests.parallel.ranks_of_a_test import run_on_ranks

pytest.importorskip("megatron.core", reason="megatron-core is not installed")
pytestmark = pytest.mark.unit

ENCODERS = {
    "base": {},
    "large": {"pre_norm": True, "conv_norm": "layer_norm"},
    "layerdrop": {"layerdrop": 0.5},
}
SPLITS = {"one rank": (1, False), "two ranks": (2, False), "sequence parallel": (2, True)}


def make(options):
    torch.manual_seed(0)
    # fp64: gradients that are small differences of large terms depend on the order of sums in fp32
    return MSHuBERTEncoder(**{**TINY_ENCODER, **options}).double().train()


def views_and_gradients(encoder, padded, masked_alone=False):
    """Taps of all blocks with Swap, and gradients of a loss that tells frames, channels, blocks and views apart."""
    torch.manual_seed(5)  # also of layerdrop
    audio, length = torch.randn(2, 1, 50 * 320 + 400, dtype=torch.float64), torch.tensor(
        [50 * 320 + 400, 9000 if padded else 50 * 320 + 400]
    )
    mask_BT = (torch.arange(51) % 3 == 0) & (torch.arange(51) < torch.tensor([51, 27 if padded else 51])[:, None])
    wanted = mask_BT.flatten().nonzero()[:, 0]
    views = encoder.forward_views(audio, length, mask_BT, [1, 2, 4], wanted_W=wanted if masked_alone else None)
    taps = {layer: views.at(layer, wanted) for layer in (1, 2, 4)}
    weights_VWD = torch.linspace(-1, 2, taps[1].numel()).reshape(taps[1].shape)
    loss = sum((layer * weights_VWD * x_VWD).pow(2).mean() for layer, x_VWD in taps.items())
    (loss + views.feature_penalty).backward()
    found = {f"block {layer}": x_VWD.detach() for layer, x_VWD in taps.items()}
    return {**found, "loss": loss.detach(), **{name: p.grad for name, p in encoder.named_parameters()}}


def every_split_of_every_encoder():
    """On a rank: {(encoder, padded): {(split, masked alone): what `views_and_gradients` finds, gathered}}, and
    "torch", all frames of whole blocks."""
    from megatron.core import parallel_state

    from nemo_mshubert.modules.transformer_megatron import gather_state_dict, split_blocks

    torch.distributed.init_process_group("gloo")
    torch.cuda.current_device = lambda: "cpu"  # where Megatron puts the frames that it gathers
    results = {}
    for name, options in ENCODERS.items():
        for padded in (False, True):
            found = {"torch": views_and_gradients(make(options), padded)}
            for split, (ranks, sequence_parallel) in SPLITS.items():
                parallel_state.initialize_model_parallel(ranks)
                encoder = make(options)
                split_blocks(encoder.layers, sequence_parallel)
                for masked_alone in (False, True):
                    encoder.zero_grad()
                    parts = views_and_gradients(encoder, padded, masked_alone)
                    found[split, masked_alone] = gather_state_dict(parts)
                parallel_state.destroy_model_parallel()
            results[name, padded] = found
    return results


@pytest.fixture(scope="module")
def results():
    return run_on_ranks(2, every_split_of_every_encoder)


@pytest.mark.parametrize("masked_alone", [False, True])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_split_blocks_equal_whole_ones(results, encoder, padded, split, masked_alone):
    """Outputs after every exchange, the loss and all gradients; 51 frames, so that two ranks cannot halve them."""
    for rank in (0, 1):
        expected, found = results[rank][encoder, padded]["torch"], results[rank][encoder, padded][split, masked_alone]
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert tensor.shape == found[name].shape, name
            largest = tensor.abs().max().item()
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5 * largest + 1e-9, msg=name)


def test_padding_and_layerdrop_matter(results):
    """The tests of equality can fail: each case is another computation."""
    losses = {case: found["torch"]["loss"].item() for case, found in results[0].items()}
    assert len({round(loss, 6) for loss in losses.values()}) == len(losses)


def swapped_projections():
    """On a rank: the largest difference of the outputs where the ranks hold each other's part of the values."""
    from megatron.core import parallel_state

    from nemo_mshubert.modules.transformer_megatron import gather_tensor, split_blocks

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(2)
    whole = views_and_gradients(make({}), False)
    encoder = make({})
    split_blocks(encoder.layers)
    values = encoder.layers[0].attention.v_proj.weight
    halves = gather_tensor(values.data, 0).chunk(2)
    values.data.copy_(halves[1 - torch.distributed.get_rank()])
    return (views_and_gradients(encoder, False)["block 4"] - whole["block 4"]).abs().max().item()


def test_a_wrong_split_shows():
    """Ranks that exchange their values are found."""
    assert min(run_on_ranks(2, swapped_projections)) > 1e-3


def dropped_channels(sequence_parallel):
    """On a rank: outputs in training with dropout everywhere, and the next number of the common stream."""
    from megatron.core import parallel_state

    from nemo_mshubert.modules.transformer_megatron import split_blocks

    torch.distributed.init_process_group("gloo")
    torch.cuda.current_device = lambda: "cpu"
    parallel_state.initialize_model_parallel(2)
    encoder = make(dict(dropout=0.3, attention_dropout=0.3, activation_dropout=0.3))
    split_blocks(encoder.layers, sequence_parallel)
    own = []
    for part in (encoder.layers[0].attention.q_proj, encoder.layers[0].feed_forward.intermediate_dense):
        part.register_forward_hook(lambda *_: own.append(torch.rand(())))
    found = views_and_gradients(encoder, False)
    return found["block 4"], torch.rand(()), own, found["layers.0.final_layer_norm.weight"]


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_dropout(sequence_parallel):
    """What is whole must be dropped alike on both ranks, or they train different models; what is split,
    independently."""
    (x0, next0, own0, norm0), (x1, next1, own1, norm1) = run_on_ranks(2, dropped_channels, sequence_parallel)
    assert torch.equal(x0, x1) and next0 == next1
    torch.testing.assert_close(norm0, norm1)
    assert len(own0) == 2 and all(mine != others for mine, others in zip(own0, own1))  # heads, and inner units
    assert own0[0] != own0[1]  # or every block and update would drop the same units


def precisions_under_autocast():
    """On a rank: what all split linear layers of a frozen encoder give under autocast to bf16, and what is trained."""
    from megatron.core import parallel_state

    from nemo_mshubert.modules.transformer_megatron import Columns, Rows, split_blocks

    torch.distributed.init_process_group("gloo")
    torch.cuda.current_device = lambda: "cpu"
    parallel_state.initialize_model_parallel(2)
    found, trained = [], []
    for sequence_parallel in (False, True):
        encoder = make({}).float().requires_grad_(False)
        split_blocks(encoder.layers, sequence_parallel)
        for part in encoder.layers.modules():
            if isinstance(part, (Columns, Rows)):
                part.register_forward_hook(lambda _, inputs, y: found.append(y.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            encoder.hidden_states(torch.randn(1, 1, 4000), torch.tensor([4000]))
        trained += [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    return found, trained


def test_split_layers_keep_precision_and_stay_frozen():
    """A bias in fp32 would make fp32 of all that follows: twice the memory. A frozen encoder would be trained."""
    found, trained = run_on_ranks(2, precisions_under_autocast)[0]
    assert found == [torch.bfloat16] * (2 * 4 * 6) and not trained  # ways, blocks, linear layers


def test_blocks_that_cannot_be_split():
    """The reason, before a cluster is rented for it."""

    def tries():
        from megatron.core import parallel_state

        from nemo_mshubert.modules.transformer_megatron import split_blocks

        torch.distributed.init_process_group("gloo")
        reasons = []
        for options in ({}, {"num_heads": 3}, {"d_inner": 47}, {"position_buckets": 8}):
            with pytest.raises((ValueError, RuntimeError)) as error:
                split_blocks(make(options).layers)
                raise ValueError("was split")
            reasons.append(str(error.value))
            if not parallel_state.model_parallel_is_initialized():
                parallel_state.initialize_model_parallel(2)
        return reasons

    needs_groups, heads, inner, relative = run_on_ranks(2, tries)[0]
    assert "megatron_tp2" in needs_groups and "3 attention heads" in heads and "d_inner 47" in inner
    assert "GatedSelfAttention is not supported" in relative


def test_every_block_of_a_deep_encoder_is_split():
    """From the tenth block on, numbers have two digits: a checkpoint would not fit into the blocks that are split."""
    from nemo_mshubert.modules.transformer_megatron import split_dimension

    blocks = {}
    for name in make({"num_layers": 12}).state_dict():
        _, is_of_a_block, rest = f"encoder.{name}".partition("encoder.layers.")
        if is_of_a_block:
            number, _, name_in_block = rest.partition(".")
            blocks.setdefault(number, {})[name_in_block] = split_dimension(f"encoder.{name}")
        else:
            assert split_dimension(name) is None
    assert len(blocks) == 12 and all(block == blocks["0"] for block in blocks.values())
    assert sum(dimension is not None for dimension in blocks["0"].values()) == 10  # of 16: not norms and two biases


def test_unknown_backend():
    """A typing error must not train on another backend."""
    with pytest.raises(ValueError, match="transformer_backend.*'megatorn'"):
        make({"transformer_backend": "megatorn"})
