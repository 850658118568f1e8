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

"""The encoder: parity with transformers, indifference to padding, and every knob that training turns."""

import inspect

import pytest
import torch
import yaml
from nemo.core.classes.common import typecheck
from transformers import HubertConfig, HubertModel

from nemo_mshubert.modules import reference
from nemo_mshubert.modules.frames import frame_count
from nemo_mshubert.modules.label_heads import LabelHeads
from nemo_mshubert.modules.masking import span_mask
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder
from tests.conftest import REPOSITORY, needs_compiler

LENGTHS = torch.tensor([16000, 7000, 400])
LAYOUTS = {
    "base": dict(conv_norm="group_norm", conv_bias=False, pre_norm=False),
    "large": dict(conv_norm="layer_norm", conv_bias=True, pre_norm=True),
}


@pytest.fixture
def batch():
    """Samples ``[3, 1, 16000]``, zero beyond the `LENGTHS`."""
    torch.manual_seed(4)
    signal = torch.randn(3, 1, 16000)
    return signal * (torch.arange(16000) < LENGTHS[:, None, None]), LENGTHS


@pytest.fixture
def masks():
    """Masks of that batch, ``[3, 49]``; the row of one frame has none."""
    return span_mask(frame_count(LENGTHS).tolist(), 0.5, 4, same_count=False)


def score(x_ND):
    """A scalar of every entry; sums of squares would be constant behind a LayerNorm."""
    return (x_ND * torch.linspace(-1, 1, x_ND.shape[-1])).sum()


def convert(state_dict):
    """transformers' names to ours: two differ."""
    names = {name: name.removeprefix("encoder.") for name in state_dict}
    names["masked_spec_embed"] = "mask_embedding"
    return {names[name]: value for name, value in state_dict.items()}


def random_hubert(**options):
    """transformers' model of the sizes of `tiny_encoder`."""
    config = HubertConfig(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        **options,
    )
    torch.manual_seed(6)
    theirs = HubertModel(config)
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms start as ones and zeros, which no mix-up would change
            parameter.add_(0.1 * torch.randn_like(parameter))
    return theirs


@pytest.fixture(params=LAYOUTS)
def parity(request, tiny_encoder):
    """``ours, theirs``: the same random weights in both."""
    layout = LAYOUTS[request.param]
    theirs = random_hubert(
        feat_extract_norm=layout["conv_norm"].removesuffix("_norm"),
        conv_bias=layout["conv_bias"],
        do_stable_layer_norm=layout["pre_norm"],
    ).eval()
    ours = tiny_encoder(**layout)
    ours.load_state_dict(convert(theirs.state_dict()))  # strict: every key of both sides is used
    return ours, theirs


def largest_difference(ours, theirs, signal, lengths):
    """Over all hidden states and utterances: our padded batch against theirs, one utterance at a time."""
    with torch.no_grad():
        states, frames = ours.hidden_states(signal, lengths)
        outputs, _ = ours(audio_signal=signal, length=lengths)
        difference = (outputs.transpose(1, 2) - states[-1]).abs().max().item()
        for row, (length, count) in enumerate(zip(lengths, frames)):
            expected = theirs(signal[row, :, :length], output_hidden_states=True)
            assert expected.last_hidden_state.shape[1] == count
            # The last state is compared after the final norm of pre-LN, which transformers' list may lack.
            for ours_BTD, theirs_1TD in zip(states, [*expected.hidden_states[:-1], expected.last_hidden_state]):
                difference = max(difference, (ours_BTD[row, :count] - theirs_1TD[0]).abs().max().item())
        assert len(states) == len(expected.hidden_states) == 5
    return difference


@pytest.mark.unit
def test_padded_batch_equals_transformers_one_at_a_time(parity, batch):
    """Weights travel to and from Hugging Face and fairseq; batches must not change results."""
    ours, theirs = parity
    assert largest_difference(ours, theirs, *batch) < 2e-5


@pytest.mark.unit
@pytest.mark.parametrize(
    "name",
    [
        "layer_norm.bias",
        "feature_extractor.conv_layers.6.conv.weight",
        "pos_conv_embed.conv.parametrizations.weight.original0",
        "layers.3.attention.k_proj.weight",
        "layers.0.final_layer_norm.weight",
    ],
)
def test_one_broken_weight_breaks_parity(parity, batch, name):
    """The test above can fail."""
    ours, theirs = parity
    with torch.no_grad():
        broken = ours.get_parameter(name)
        broken.flatten()[:8] += 0.5
    assert largest_difference(ours, theirs, *batch) > 1e-3


@pytest.mark.unit
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("dropout", ["dropout", "attention_dropout", "activation_dropout", "dropout_input"])
def test_dropout_is_where_it_is_in_transformers(tiny_encoder, pre_norm, dropout):
    """Which numbers are dropped is random; with a chance of one all of them are, and both networks agree again."""
    theirs_name = {"dropout": "hidden_dropout", "dropout_input": "feat_proj_dropout"}.get(dropout, dropout)
    chances = dict.fromkeys(("hidden_dropout", "feat_proj_dropout", "attention_dropout", "activation_dropout"), 0.0)
    chances = {**chances, theirs_name: 1.0, "layerdrop": 0.0}
    theirs = random_hubert(do_stable_layer_norm=pre_norm, apply_spec_augment=False, **chances).train()
    off = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "dropout_input", "layerdrop"), 0.0)
    ours = tiny_encoder(pre_norm=pre_norm, **{**off, dropout: 1.0}).train()
    ours.load_state_dict(convert(theirs.state_dict()))
    signal = torch.randn(2, 1, 8000)
    with torch.no_grad():
        found, _ = ours(audio_signal=signal, length=torch.tensor([8000, 8000]))
        expected = theirs(signal[:, 0]).last_hidden_state
        torch.testing.assert_close(found.transpose(1, 2), expected, rtol=1e-4, atol=1e-4)
        without, _ = ours.eval()(audio_signal=signal, length=torch.tensor([8000, 8000]))
    assert (without - found).abs().max() > 1e-2  # the dropout does something


@pytest.mark.unit
def test_extract_features_equals_hidden_states(parity, batch):
    """Labels of layer 6 must be of layer 6, counted from 1."""
    ours, _ = parity
    signal, lengths = batch
    with torch.no_grad():
        states, frames = ours.hidden_states(signal, lengths)
        for layer in range(5):
            features, counts = ours.extract_features(signal[:, 0], lengths, layer)
            assert torch.equal(features, states[layer]) and torch.equal(counts, frames)
    for layer in (-1, 5):
        with pytest.raises(ValueError, match=f"layer {layer}: the encoder has blocks 1 to 4"):
            ours.extract_features(signal[:, 0], lengths, layer)


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["mask", "mask_channel"])
def test_masks_without_length_are_refused(kind):
    """The first batch of a fine-tuning ended in a division by zero."""
    with pytest.raises(ValueError, match=f"{kind}_length 0.*set mask_prob and mask_channel_prob to 0"):
        MSHuBERTEncoder(**{f"{kind}_length": 0, f"{kind}_prob": 0.5})


@pytest.mark.unit
def test_an_unknown_backend_is_refused():
    """A mistyped one would train in plain blocks, without a word."""
    with pytest.raises(ValueError, match="transformer_backend: expected one of .* found 'megatorn'"):
        MSHuBERTEncoder(transformer_backend="megatorn")


# --- The default model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return MSHuBERTEncoder()


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.unit
def test_default_is_hubert_base(base):
    """94,371,712 parameters; 96.05 M with the paper's six heads."""
    assert size(base) == 94_371_712
    heads = LabelHeads(base.d_model, [1000, 500, 250, 125, 50, 25])
    assert size(base) + size(heads) == pytest.approx(96.05e6, abs=5e3)
    assert base.subsampling_factor == 320 and base._feat_in == 1 and base._feat_out == 768


@pytest.mark.unit
def test_defaults_are_those_of_the_experiment():
    """`MSHuBERTEncoder()` in a script of one's own would regularise otherwise than fairseq's
    hubert_base_librispeech."""
    written = {}
    for name in ("_common.yaml", "size/base.yaml"):
        written.update(yaml.safe_load((REPOSITORY / "conf" / "pretrain" / name).read_text())["model"]["encoder"])
    del written["_target_"]
    defaults = {name: p.default for name, p in inspect.signature(MSHuBERTEncoder).parameters.items()}
    defaults["conv_layers"] = [list(layer) for layer in defaults["conv_layers"]]
    assert {name: defaults[name] for name in written} == written
    assert (defaults["mask_length"], defaults["mask_channel_length"]) == (10, 64)  # fairseq's fine-tuning


@pytest.mark.unit
def test_default_has_the_keys_of_transformers(base):
    """Names and shapes of HubertModel(HubertConfig()), so that conversion is renaming."""
    with torch.device("meta"):
        theirs = convert(HubertModel(HubertConfig()).state_dict())
    ours = base.state_dict()
    assert {name: value.shape for name, value in theirs.items()} == {name: v.shape for name, v in ours.items()}


@pytest.mark.unit
def test_initial_weights_have_fairseqs_statistics(base):
    """A wrong initial scale shows only after thousands of updates."""
    weights = dict(base.named_parameters())
    for name, weight in weights.items():
        deviation = weight.std().item() if weight.numel() > 1 else 0.0
        if name == "mask_embedding":  # U(0, 1)
            assert 0 <= weight.min() and weight.max() < 1 and deviation == pytest.approx(12**-0.5, rel=0.1)
        elif name.startswith("feature_extractor") and ".conv." in name:  # Kaiming, fan in
            assert deviation == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.03), name
        elif name.startswith("layers.") and name.endswith("weight") and weight.dim() == 2:  # init_bert_params
            assert deviation == pytest.approx(0.02, rel=0.02), name
            assert abs(weight.mean().item()) < 1e-3, name
        elif name == "pos_conv_embed.conv.parametrizations.weight.original1":
            assert deviation == pytest.approx((4 / (128 * 768)) ** 0.5, rel=0.02)
        elif "norm" in name and name.endswith("weight"):
            assert torch.equal(weight, torch.ones_like(weight)), name
        elif name.endswith("bias") and not name.startswith("feature_projection.projection"):
            assert not weight.any(), name
    conv = base.pos_conv_embed.conv  # the weight norm starts with the norm of its direction
    torch.testing.assert_close(conv.weight, conv.parametrizations.weight.original1)


# --- Padding and odd inputs ------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("use_swap", [True, False])
def test_training_outputs_do_not_depend_on_padding(tiny_encoder, batch, masks, layout, use_swap):
    """Pre-training sees one utterance alike, alone or padded: taps of both views, penalty, and gradients."""
    encoder = tiny_encoder(**LAYOUTS[layout]).train()
    signal, lengths = batch
    frames = frame_count(lengths).tolist()
    together = encoder.forward_views(signal, lengths, masks, [1, 4], use_swap)
    assert together.frames_B.tolist() == frames
    penalty, loss = 0.0, 0.0
    for row, (length, count) in enumerate(zip(lengths, frames)):
        alone = encoder.forward_views(
            signal[row : row + 1, :, :length], lengths[row : row + 1], masks[row : row + 1, :count], [1, 4], use_swap
        )
        penalty += alone.feature_penalty * count / sum(frames)
        loss += score(alone.tapped[4])
        for layer in (1, 4):
            torch.testing.assert_close(
                together.tapped[layer][:, row, :count], alone.tapped[layer][:, 0], rtol=1e-4, atol=2e-5
            )
    torch.testing.assert_close(together.feature_penalty, penalty, rtol=1e-4, atol=1e-6)
    valid = torch.arange(49) < torch.tensor(frames)[:, None]
    conv = encoder.feature_extractor.conv_layers[0].conv.weight
    (expected,) = torch.autograd.grad(loss, conv)
    (gradient,) = torch.autograd.grad(score(together.tapped[4][:, valid]), conv)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.unit
def test_batch_size_changes_nothing(tiny_encoder):
    """The same utterance twice in a batch, in another order, alone."""
    encoder = tiny_encoder()
    signal = torch.randn(3, 1, 5000)
    lengths = torch.full((3,), 5000)
    order = [2, 0, 1, 0]
    with torch.no_grad():
        one, _ = encoder(audio_signal=signal, length=lengths)
        other, _ = encoder(audio_signal=signal[order], length=lengths[[0] * 4])
    torch.testing.assert_close(other, one[order], rtol=1e-5, atol=1e-5)


@pytest.mark.unit
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_and_short_utterances_have_no_frames_and_spoil_nothing(tiny_encoder, layout):
    """0, 1 and 399 samples have no frame, 400 have one; transcribe() must survive any of them."""
    encoder = tiny_encoder(**LAYOUTS[layout])
    lengths = torch.tensor([5000, 0, 1, 399, 400])
    signal = torch.randn(5, 1, 5000) * (torch.arange(5000) < lengths[:, None, None])
    with torch.no_grad():
        outputs, frames = encoder(audio_signal=signal, length=lengths)
        assert frames.tolist() == [15, 0, 0, 0, 1]
        assert outputs.isfinite().all()
        alone, _ = encoder(audio_signal=signal[:1], length=lengths[:1])
        torch.testing.assert_close(outputs[0], alone[0], rtol=1e-4, atol=1e-5)
        for samples in (0, 1, 399, 400):
            outputs, frames = encoder(audio_signal=signal[:2, :, :samples], length=torch.tensor([samples, 0]))
            assert frames.tolist() == [frame_count(samples), 0]
            assert outputs.shape == (2, 24, 1) and outputs.isfinite().all()


@pytest.mark.unit
@pytest.mark.parametrize("samples, frames", [(5000, 15), (0, 0)])
@pytest.mark.parametrize("options", [{}, {"attention_dropout": 0.1}, {"position_buckets": 8}])
def test_gradients_stay_finite_with_empty_utterances(tiny_encoder, samples, frames, options):
    """One empty row in training, or nothing else, must not turn the weights into NaN."""
    encoder = tiny_encoder(**options).train()
    lengths = torch.tensor([samples, 0])
    signal = torch.randn(2, 1, 5000) * (torch.arange(5000) < lengths[:, None, None])
    mask_BT = span_mask([frames, 0], 0.5, 4, num_positions=15)
    views = encoder.forward_views(signal, lengths, mask_BT, [4])
    (score(views.tapped[4][:, mask_BT]) + views.feature_penalty).backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


@pytest.mark.unit
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bf16_is_close_to_fp32(tiny_encoder, batch, masks, layout):
    """bf16 weights (inference) and bf16 autocast (training): three digits, no overflow, penalty in fp32."""
    encoder = tiny_encoder(**LAYOUTS[layout])
    signal, lengths = batch
    valid = torch.arange(49) < frame_count(lengths)[:, None]
    with torch.no_grad():
        exact = encoder(audio_signal=signal, length=lengths)[0].transpose(1, 2)[valid]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = encoder(audio_signal=signal, length=lengths)[0].transpose(1, 2)[valid]
            views = encoder.train().forward_views(signal, lengths, masks, [4])
        encoder.eval().to(torch.bfloat16)
        half = encoder(audio_signal=signal.bfloat16(), length=lengths)[0].transpose(1, 2)[valid]
    assert half.dtype == torch.bfloat16 and views.feature_penalty.dtype == torch.float32
    for approximate in (mixed, half):
        error = (approximate.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert 0 < error < 0.03


@pytest.mark.unit
@needs_compiler
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_blocks_train_the_same_network(tiny_encoder, layout):
    """``model.compile=true``: outputs and gradients, for crops of different lengths, padding and validation."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = tiny_encoder(**LAYOUTS[layout]), tiny_encoder(**LAYOUTS[layout])
    compiled.load_state_dict(plain.state_dict())
    compiled.compile_blocks()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for lengths in ([7000, 7000], [5000, 5000, 5000], [6000, 4000]):
        found = []
        for encoder in (plain, compiled):
            torch.manual_seed(0)
            signal = torch.randn(len(lengths), 1, max(lengths)) * 0.1
            frames = frame_count(torch.tensor(lengths)).tolist()
            mask_BT = span_mask(frames, 0.5, 4)
            encoder.zero_grad()
            views = encoder.train().forward_views(signal, torch.tensor(lengths), mask_BT, [4])
            masked = views.tapped[4][:, mask_BT]
            score(masked).backward()
            with torch.no_grad():
                features, _ = encoder.eval().extract_features(signal[:, 0], torch.tensor(lengths), 4)
            found.append([masked.detach(), features[0, : frames[0]], *(p.grad for p in encoder.parameters())])
        for expected, ours in zip(*found):
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 4, "training and validation, dense and padded, not every block or length"


# --- What training turns ---------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("use_swap", [True, False])
def test_skipped_block_is_the_identity(tiny_encoder, batch, masks, use_swap):
    """With every block skipped, taps are the input of the first block, exchanged once per block and kept in place."""
    encoder = tiny_encoder(layerdrop=1.0, position_buckets=8).train()
    signal, lengths = batch
    inputs = []
    encoder.dropout.register_forward_hook(lambda module, arguments, output: inputs.append(output))
    views = encoder.forward_views(signal, lengths, masks, [1, 2, 3, 4], use_swap)
    x_VBTD = inputs[0].unflatten(0, (2 if use_swap else 1, -1))
    for layer, tapped in views.tapped.items():
        exchanged = use_swap and layer % 2
        assert torch.equal(tapped, torch.where(masks[..., None], x_VBTD.flip(0), x_VBTD) if exchanged else x_VBTD)
    score(views.tapped[4]).backward()
    for parameter in [*encoder.layers.parameters(), *encoder.position_bias.parameters()]:
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))  # none missing: DDP waits for all of them


@pytest.mark.unit
def test_layerdrop_skips_its_share_in_training_only(tiny_encoder, batch):
    """Also: a skipped block must not shift the taps behind it."""
    encoder = tiny_encoder(layerdrop=0.25, num_layers=8)
    calls = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda *_: calls.append(1))
    signal, lengths = batch[0][2:, :, :400], batch[1][2:]
    with torch.no_grad():
        encoder(audio_signal=signal, length=lengths)
        assert len(calls) == 8
        encoder.train()
        for _ in range(60):
            states, _ = encoder.hidden_states(signal, lengths)
            assert len(states) == 9
    assert (len(calls) - 8) / 480 == pytest.approx(0.75, abs=0.06)


@pytest.mark.unit
def test_feature_grad_mult_scales_gradients_of_the_front_end_alone(tiny_encoder, batch, masks):
    """0.1 in HuBERT base: a tenth into the convolutions, penalty included as in fairseq, all else untouched."""

    def gradients(feature_grad_mult):
        encoder = tiny_encoder(feature_grad_mult=feature_grad_mult).train()
        views = encoder.forward_views(*batch, masks, [4])
        (score(views.tapped[4][:, masks]) + 10 * views.feature_penalty).backward()
        return {name: parameter.grad for name, parameter in encoder.named_parameters()}

    full, tenth, frozen = gradients(1.0), gradients(0.1), gradients(0.0)
    for name, gradient in full.items():
        front_end = name.startswith("feature_extractor")
        rounding = 1e-5 * gradient.abs().max().item()
        torch.testing.assert_close(tenth[name], gradient * 0.1 if front_end else gradient, rtol=1e-4, atol=rounding)
        if front_end:
            assert gradient.any() and (frozen[name] is None or not frozen[name].any()), name
        else:
            torch.testing.assert_close(frozen[name], gradient, rtol=1e-4, atol=rounding)


@pytest.mark.unit
def test_feature_penalty_is_the_mean_square_of_valid_frames(tiny_encoder, batch, masks):
    """Counted in training only; padding would dilute it."""
    encoder = tiny_encoder()
    signal, lengths = batch
    assert encoder.forward_views(signal, lengths, masks, [4]).feature_penalty == 0
    penalty = encoder.train().forward_views(signal, lengths, masks, [4]).feature_penalty
    squares, numbers = 0.0, 0
    for row, length in enumerate(lengths):
        features, _ = encoder.feature_extractor(signal[row : row + 1, :, :length], lengths[row : row + 1], False)
        squares, numbers = squares + features.square().sum(), numbers + features.numel()
    torch.testing.assert_close(penalty, squares / numbers, rtol=1e-4, atol=1e-6)


@pytest.mark.unit
def test_finetuning_masks_frames_and_channels_in_training_only(tiny_encoder, batch):
    """Masks at inference would delete words; none in training would overfit ten minutes of speech."""
    encoder = tiny_encoder(mask_prob=0.5, mask_length=4, mask_channel_prob=0.25, mask_channel_length=3)
    seen = []
    encoder.pos_conv_embed.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0].detach()))
    signal, lengths = batch
    encoder(audio_signal=signal, length=lengths)
    encoder.train()
    encoder(audio_signal=signal, length=lengths)
    clean_BTD, masked_BTD = seen
    zeroed_BD = (masked_BTD == 0).all(dim=1)
    embedding_BTD = torch.where(zeroed_BD[:, None, :], 0.0, encoder.mask_embedding)
    is_mask_BT = (masked_BTD == embedding_BTD).all(dim=-1)
    frames = frame_count(lengths)
    share = is_mask_BT[:2].sum() / frames[:2].sum()
    assert 0.2 < share < 0.55 and 0.05 < zeroed_BD.float().mean() < 0.4
    for row, count in enumerate(frames):
        assert not is_mask_BT[row, count:].any()
        visible = ~is_mask_BT[row, :count]
        expected = clean_BTD[row, :count][visible].masked_fill(zeroed_BD[row], 0.0)
        assert torch.equal(masked_BTD[row, :count][visible], expected)
    assert not (clean_BTD == encoder.mask_embedding).all(dim=-1).any()


def runs(mask):
    """Lengths of the runs of True in a vector."""
    edges = torch.diff(mask.int(), prepend=torch.zeros(1), append=torch.zeros(1))
    return (torch.where(edges == -1)[0] - torch.where(edges == 1)[0]).tolist()


@pytest.mark.unit
def test_spans_of_finetuning_have_their_lengths(tiny_encoder):
    """Frames and channels have lengths of their own; one for both would be another recipe. A short row took the masks
    from a long one, all but single frames."""
    encoder = tiny_encoder(mask_prob=0.2, mask_length=4, mask_channel_prob=0.2, mask_channel_length=3).train()
    seen = []
    encoder.pos_conv_embed.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0].detach()))
    frames, channels = set(), set()
    for seed in range(30):
        torch.manual_seed(seed)
        audio = torch.randn(2, 1, 16000)
        for rows, length in ((1, [16000]), (2, [16000, 3000])):
            encoder(audio_signal=audio[:rows], length=torch.tensor(length))
            zeroed_D = (seen[-1][0] == 0).all(dim=0)
            is_mask_T = (seen[-1][0] == torch.where(zeroed_D, 0.0, encoder.mask_embedding)).all(dim=-1)
            frames.update(runs(is_mask_T))
            if rows == 1:  # channels of several rows are un-masked to the count of the fewest
                channels.update(runs(zeroed_D))
    assert min(frames) == 4 and min(channels) == 3


@pytest.mark.unit
def test_short_words_are_masked_as_much_as_configured(tiny_encoder):
    """Two spans at least, as in pre-training, hid two thirds of a spoken digit: none was learned."""
    encoder = tiny_encoder(mask_prob=0.1, mask_length=10).train()
    seen = []
    encoder.pos_conv_embed.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0].detach()))
    torch.manual_seed(0)
    encoder(audio_signal=torch.randn(400, 1, 8000), length=torch.full((400,), 8000))
    share = (seen[0] == encoder.mask_embedding).all(dim=-1).float().mean().item()
    assert share == pytest.approx(0.1, abs=0.03)


@pytest.mark.unit
def test_blocks_above_the_highest_tap_are_not_run(tiny_encoder, batch, masks):
    """A twelfth of the blocks of an update with dropped sets, for nothing."""
    encoder, calls = tiny_encoder().train(), []
    for number, layer in enumerate(encoder.layers, start=1):
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
    encoder.forward_views(*batch, masks, [1, 3])
    assert calls == [1, 2, 3]
    encoder.extract_features(batch[0][:, 0], batch[1], 2)  # half of the time that labels take
    assert calls == [1, 2, 3, 1, 2]


@pytest.mark.unit
@pytest.mark.parametrize("layout", [*LAYOUTS, "wavlm"])
@pytest.mark.parametrize("use_swap", [True, False])
@pytest.mark.parametrize("layers", [[1, 4], [2, 3]], ids=["to the top", "below the top"])
@pytest.mark.parametrize("layerdrop", [0.0, 1.0])
def test_masked_frames_alone_are_those_of_all_frames(tiny_encoder, batch, masks, layout, use_swap, layers, layerdrop):
    """Training leaves out what the loss does not look at: a frame taken for another, or from the other view, would
    train on wrong labels. Outputs and gradients, of padded utterances."""
    options = LAYOUTS[layout] if layout in LAYOUTS else {"position_buckets": 32, "position_max_distance": 80}
    encoder = tiny_encoder(**options, layerdrop=layerdrop, dropout=0.0, attention_dropout=0.0, dropout_input=0.0)
    wanted = masks.flatten().nonzero()[:, 0]
    weights = torch.randn(2, len(layers), 1 + use_swap, len(wanted), 24)
    found = []
    for wanted_W in (None, wanted):
        encoder.train().zero_grad()
        views = encoder.forward_views(*batch, masks, layers, use_swap, wanted_W=wanted_W)
        taps = [views.at(layer, wanted) for layer in layers]
        assert {tuple(tap.shape) for tap in taps} == {(1 + use_swap, len(wanted), 24)}
        (torch.stack(taps) * weights[0] + torch.stack(taps).square() * weights[1]).sum().backward()
        gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
        found.append({**gradients, **{f"block {layer}": tap.detach() for layer, tap in zip(layers, taps)}})
    for name, expected in found[0].items():
        largest = expected.abs().max().item()
        torch.testing.assert_close(found[1][name], expected, rtol=1e-3, atol=1e-4 * largest + 1e-6, msg=name)


@pytest.mark.unit
def test_frames_that_were_left_out_cannot_be_looked_at(tiny_encoder, batch, masks):
    """Rows of masked frames must not pass for those of visible ones. The feed-forward of the last block sees none but
    the wanted rows of both views."""
    encoder, rows = tiny_encoder().train(), []
    for layer in encoder.layers:
        layer.feed_forward.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1].numel()))
    masked, visible = masks.flatten().nonzero()[:, 0], (~masks).flatten().nonzero()[:, 0]
    views = encoder.forward_views(*batch, masks, [2, 4], wanted_W=masked)
    assert rows == [2 * masks.numel()] * 3 + [2 * len(masked)]
    with pytest.raises(ValueError, match="not asked of forward_views"):
        views.at(4, visible)


@pytest.mark.unit
def test_layerdrop_is_drawn_from_the_generator_it_is_given(tiny_encoder, batch, masks):
    """Ranks draw it alike from a generator of their own; PyTorch's own has been used differently on each."""
    encoder = tiny_encoder(layerdrop=0.5, dropout=0.0, attention_dropout=0.0, dropout_input=0.0).train()
    outputs = []
    for seed in range(6):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(3)
        outputs.append(encoder.forward_views(*batch, masks, [4], True, generator).tapped[4])
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    others = [encoder.forward_views(*batch, masks, [4], True, torch.Generator().manual_seed(s)) for s in range(6)]
    assert any(not torch.equal(views.tapped[4], outputs[0]) for views in others)


@pytest.mark.unit
def test_every_tap_and_the_penalty_train_what_is_below(tiny_encoder, batch, masks):
    """Label sets at lower blocks would train their heads alone, the penalty nothing."""
    encoder = tiny_encoder(dropout=0.0, layerdrop=0.0).train()
    score(encoder.forward_views(*batch, masks, [2, 4]).tapped[2].flatten(0, 2)).backward()
    assert encoder.layers[0].attention.q_proj.weight.grad.abs().max() > 0
    encoder.zero_grad()
    encoder.forward_views(*batch, masks, [4]).feature_penalty.backward()
    assert all(layer.conv.weight.grad.abs().max() > 0 for layer in encoder.feature_extractor.conv_layers)


@pytest.mark.unit
def test_mask_embedding_has_a_gradient_when_nothing_is_masked(tiny_encoder, batch):
    """Fine-tuning without time masks on several GPUs: DDP waits for the gradient of every parameter."""
    encoder = tiny_encoder().train()
    score(encoder(audio_signal=batch[0], length=batch[1])[0].transpose(1, 2)).backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert not encoder.mask_embedding.grad.any()
    assert encoder.feature_extractor.conv_layers[0].conv.weight.grad.any()  # nor is the rest frozen


# --- NeMo's contract -------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_typecheck_refuses_wrong_inputs(tiny_encoder, batch):
    """``[B, S]`` instead of ``[B, 1, S]`` is the likely mistake, and would run over the batch as channels."""
    encoder = tiny_encoder()
    with pytest.raises(TypeError, match="[Dd]imension|shape"):
        encoder(audio_signal=batch[0][:, 0], length=batch[1])
    with pytest.raises(TypeError):
        encoder(signal=batch[0], length=batch[1])


@pytest.mark.unit
def test_intermediate_ctc_finds_the_captured_blocks(tiny_encoder, batch):
    """NeMo's InterCTC asks for blocks counted from 0, as ``[B, D, T]``."""
    encoder = tiny_encoder()
    with torch.no_grad():
        encoder(audio_signal=batch[0], length=batch[1])
        assert not encoder.get_module_registry(encoder)
        encoder.update_access_cfg({"interctc": {"capture_layers": [0, 2]}, "detach": False}, None)
        encoder.set_access_enabled(access_enabled=True)
        encoder(audio_signal=batch[0], length=batch[1])
        outputs = {name: tensors[0] for name, tensors in encoder.get_module_registry(encoder)[""].items()}
        encoder.reset_registry()  # also disables the access
        states, frames = encoder.hidden_states(*batch)
    assert sorted(outputs) == [f"interctc/layer_{kind}_{n}" for kind in ("length", "output") for n in (0, 2)]
    for index in (0, 2):
        assert torch.equal(outputs[f"interctc/layer_output_{index}"], states[index + 1].transpose(1, 2))
        assert torch.equal(outputs[f"interctc/layer_length_{index}"], frames)


@pytest.mark.unit
def test_input_example_runs(tiny_encoder):
    """Export begins with it. From `_feat_out` NeMo takes the width of an output layer whose config says none."""
    encoder = tiny_encoder()
    signal, length = encoder.input_example(max_batch=2, max_dim=3200)
    outputs, frames = encoder(audio_signal=signal, length=length)
    assert outputs.shape == (2, 24, 9) and frames.tolist() == [9, 9] and encoder._feat_out == 24


@pytest.mark.unit
def test_no_graph_is_kept_without_gradients(tiny_encoder, batch):
    """A front end whose convolutions are kept for a backward pass takes most of the memory of an inference."""
    encoder, kept = tiny_encoder(), []
    encoder.feature_extractor.register_forward_hook(lambda module, inputs, outputs: kept.append(outputs[0].grad_fn))
    with torch.no_grad():
        outputs, _ = encoder(audio_signal=batch[0], length=batch[1])
    assert kept == [None] and not outputs.requires_grad


@pytest.mark.unit
def test_an_unfrozen_front_end_that_is_not_trained_has_zero_gradients(tiny_encoder, batch):
    """NeMo's unfreeze() of a fine-tuned model: DDP would stop the run at parameters without a gradient."""
    encoder = tiny_encoder(feature_grad_mult=0.0).train()
    # else weight decay would shrink them
    assert not any(parameter.requires_grad for parameter in encoder.feature_extractor.parameters())
    encoder.freeze()
    encoder.unfreeze()
    encoder.train()
    score(encoder(audio_signal=batch[0], length=batch[1])[0].transpose(1, 2)).backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert not any(parameter.grad.any() for parameter in encoder.feature_extractor.parameters())


@pytest.mark.unit
def test_torch_export_is_the_encoder(tiny_encoder, monkeypatch):
    """PyTorch's newer way out of Python; a graph of one example must not decide that rows are never padded."""
    encoder = tiny_encoder(conv_norm="layer_norm")
    signal, lengths = torch.randn(2, 1, 8000), torch.tensor([8000, 8000])
    with typecheck.disable_checks(), torch.no_grad():
        graph = torch.export.export(encoder, (), {"audio_signal": signal, "length": lengths}).module()
        lengths = torch.tensor([8000, 5000])
        found, frames = graph(audio_signal=signal, length=lengths)
    expected, expected_frames = encoder(audio_signal=signal, length=lengths)
    assert torch.equal(frames, expected_frames)
    for row, num_frames in enumerate(frames):
        valid = found[row, :, :num_frames], expected[row, :, :num_frames]
        torch.testing.assert_close(*valid, rtol=1e-4, atol=1e-4)
    # Behind an utterance the norms magnify what Fourier transforms leave of its zeros.
    monkeypatch.setattr(reference, "forced", True)
    expected, _ = encoder(audio_signal=signal, length=lengths)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
