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

"""MR-HuBERT: equal to a slow model of transformers' blocks and the formulas of fairseq's file, from files in its
layout."""

import copy

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers.models.hubert import modeling_hubert as hubert

from nemo_mshubert.clustering.features import HiddenFeatures
from nemo_mshubert.convert.conversion import read_checkpoint
from nemo_mshubert.convert.multiresolution import from_multiresolution, is_multiresolution
from nemo_mshubert.convert.tables import fairseq_table
from nemo_mshubert.models.loading import load_encoder
from nemo_mshubert.modules.conv_feature_extractor import HUBERT_CONV_LAYERS
from nemo_mshubert.modules.multiresolution import MultiresolutionEncoder
from tests.convert.conftest import LARGE, SMALL, assert_same_weights, fairseq_options, spell_as_fairseq

DEPTHS = (2, 1, 2)


class SlowMultires(torch.nn.Module):
    """The U-net in plain lines: one utterance, 50 and 25 Hz, a resampling kernel of 1 or 3."""

    def __init__(self, pre_norm, kernel, plain):
        super().__init__()
        config = transformers.HubertConfig(
            **{**SMALL, **(LARGE if pre_norm else {}), "num_hidden_layers": max(DEPTHS)}
        )
        config._attn_implementation = "eager"
        self.pre_norm, self.kernel, self.plain = pre_norm, kernel, plain
        self.hubert = transformers.HubertModel(config)  # its front end, and the first stack
        block = hubert.HubertEncoderLayerStableLayerNorm if pre_norm else hubert.HubertEncoderLayer
        self.middle, self.decoder = (torch.nn.ModuleList(block(config) for _ in range(n)) for n in DEPTHS[1:])
        self.middle_norm, self.decoder_norm = torch.nn.LayerNorm(24), torch.nn.LayerNorm(24)
        names = [f"{way}_{part}" for way in ("down", "up") for part in ("up", "down") if way == part or not plain]
        self.conv = torch.nn.ParameterDict({name: torch.randn(24, 24, kernel) for name in names})
        self.norm = torch.nn.ModuleDict({name: torch.nn.GroupNorm(1, 24) for name in names})

    def stack(self, x, layers, norm):
        states = []
        x = x if self.pre_norm else norm(x)
        for layer in layers:
            x = layer(x)[0] if isinstance(layer(x), tuple) else layer(x)
            states.append(x)
        if self.pre_norm:
            states[-1] = norm(states[-1])
        return states

    def resample(self, x, way, up, down):
        """With ``plain`` the one convolution that changes the rate."""
        y = x = x.transpose(1, 2)
        repeated = torch.stack([x] * up, -1).flatten(-2)
        if f"{way}_up" in self.conv:
            y = F.conv_transpose1d(x, self.conv[f"{way}_up"], stride=up, output_padding=up - 1)
            y = F.gelu(self.norm[f"{way}_up"](y))[..., : repeated.shape[-1]]
            z = y = (y + repeated) * 0.4**0.5
        if f"{way}_down" in self.conv:
            z = F.conv1d(y, self.conv[f"{way}_down"], stride=down, padding=(self.kernel - 1) // 2)
            z = (F.gelu(self.norm[f"{way}_down"](z)) + y[..., ::down]) * 0.4**0.5
        return z.transpose(1, 2) if self.plain else ((z + repeated[..., ::down]) * 0.4**0.5).transpose(1, 2)

    def forward(self, signal):
        encoder = self.hubert.encoder
        x = self.hubert.feature_projection(self.hubert.feature_extractor(signal).transpose(1, 2))
        x = x + encoder.pos_conv_embed(x)
        first = self.stack(x, encoder.layers, encoder.layer_norm)
        low = self.resample(first[-1], "down", 1, 2)
        middle = self.stack(low, self.middle, self.middle_norm)
        middle[-1] = middle[-1] + low
        last = self.stack(self.resample(middle[-1], "up", 2, 1), self.decoder, self.decoder_norm)
        num_frames = x.shape[1]
        last = [state[:, :num_frames] for state in last]
        last[-1] = last[-1] + first[-1]
        doubled = [state.repeat_interleave(2, 1)[:, :num_frames] for state in middle]
        return [*first, *doubled, *last]


def spell(slow):
    """fairseq's names, by hand."""
    state = {}
    for name, tensor in spell_as_fairseq(slow.hubert).items():
        state[name.replace("encoder.", "encoders.0.")] = tensor
    for stack, attribute in (("middle_encoder", "middle"), ("decoders.0", "decoder")):
        carrier = copy.deepcopy(slow.hubert)
        carrier.encoder.layers, carrier.encoder.layer_norm = getattr(slow, attribute), getattr(
            slow, f"{attribute}_norm"
        )
        for name, tensor in spell_as_fairseq(carrier).items():
            if name.startswith("encoder.") and "pos_conv" not in name:
                state[name.replace("encoder", stack, 1)] = tensor
    for key, weight in slow.conv.items():
        way, part = key.split("_")
        stem = f"{way}sample_modules.0.{part}sample_conv"
        state[f"{stem}.0.weight"] = weight.detach()
        state[f"{stem}.2.weight"], state[f"{stem}.2.bias"] = slow.norm[key].weight, slow.norm[key].bias
    state["final_projs.0.weight"], state["label_embs_concat.0"] = torch.zeros(8, 24), torch.zeros(14, 8)
    return state


def make(pre_norm=False, kernel=1, plain=False):
    torch.manual_seed(0)
    slow = SlowMultires(pre_norm, kernel, plain).eval()
    with torch.no_grad():
        for parameter in slow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    options = {**fairseq_options(slow.hubert), "label_rate_ratios": [1, 2], "conv_adapator_kernal": kernel}
    return slow, {"cfg": {"model": options, "task": {"normalize": pre_norm}}, "model": spell(slow)}


@pytest.mark.unit
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("kernel, plain", [(1, False), (3, False), (1, True)])
def test_every_block_equals_the_slow_model(audio, pre_norm, kernel, plain):
    """In a padded batch, too, with odd numbers of frames."""
    slow, content = make(pre_norm, kernel, plain)
    encoder, notes = from_multiresolution(content, "mrhubert.pt")
    assert encoder.num_layers == sum(DEPTHS) and encoder.normalized_input is pre_norm
    assert len(notes) == 1 and "final_projs.0.weight" in notes[0]
    signal, length = audio
    with torch.no_grad():
        for layer in range(1, encoder.num_layers + 1):
            found, frames = encoder.extract_features(signal, length, layer)
            for row, (samples, count) in enumerate(zip(length, frames)):
                expected = slow(signal[row : row + 1, :samples])[layer - 1][0]
                assert len(expected) == count
                torch.testing.assert_close(found[row, :count], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_fine_tuned_wrapper_in_half_precision(audio):
    """Its names have prefixes, it has an output layer, and its options may leave out what all of them have."""
    _, content = make()
    halves = {name: tensor.detach().half() for name, tensor in content["model"].items()}
    expected, _ = from_multiresolution({**content, "model": {name: t.float() for name, t in halves.items()}}, "x.pt")
    tensors = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in halves.items()}
    tensors["w2v_encoder.proj.bias"] = tensors["w2v_encoder.w2v_model.target_glus.0.0.bias"] = torch.zeros(9)
    options = dict(content["cfg"]["model"])
    del options["label_rate_ratios"]
    tuned = {"cfg": {"model": options, "task": {}}, "model": tensors}
    assert is_multiresolution(tuned) and not is_multiresolution({**tuned, "model": {}})
    found, notes = from_multiresolution(tuned, "tuned.pt")
    assert_same_weights(found.state_dict(), expected.state_dict())
    with torch.no_grad():
        ours, other = (encoder.extract_features(*audio, 5)[0] for encoder in (found, expected))
    assert torch.equal(ours, other) and found.normalized_input is False
    assert notes[0] == "assumed two resolutions, 50 Hz and 25 Hz" and "w2v_encoder.proj.bias" in notes[1]
    del options["encoder_attention_heads"]
    _, notes = from_multiresolution({"cfg": {"model": options}, "model": tensors}, "tuned.pt")
    assert notes[-1] == "assumed 1 attention heads"


@pytest.mark.unit
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("stated", [None, False, True])
def test_whether_audio_is_normalised(pre_norm, stated):
    """As the file says; else as its front end tells. Features of audio of another scale are others."""
    _, content = make(pre_norm)
    content["cfg"]["task"] = {} if stated is None else {"normalize": stated}
    del content["cfg"]["model"]["layer_norm_first"]  # of which its front end tells, too
    encoder, _ = from_multiresolution(content, "mrhubert.pt")
    assert encoder.normalized_input is (pre_norm if stated is None else stated)
    assert [stack.pre_norm for stack in encoder.stacks] == [pre_norm] * 3


@pytest.mark.unit
def test_three_rates_are_nested(audio):
    """50, 25 and 16.7 Hz: resampled up in the order of the way down, features would be of another time."""
    conv_layers = [(8, kernel, stride) for _, kernel, stride in HUBERT_CONV_LAYERS]
    sizes = dict(conv_layers=conv_layers, d_model=24, num_heads=2, d_inner=32, pos_conv_kernel=8, pos_conv_groups=4)
    torch.manual_seed(0)
    encoder = MultiresolutionEncoder([1] * 5, [(1, 2), (2, 3)], **sizes).eval()
    (signal, *_), (length, *_) = audio
    down, further, up, top = encoder.resamplers
    assert [(one.up, one.down) for one in encoder.resamplers] == [(1, 2), (2, 3), (3, 2), (2, 1)]
    with torch.no_grad():
        found = [encoder.extract_features(signal[None], length[None], layer)[0][0] for layer in range(1, 6)]
        x, _ = encoder.feature_extractor(signal[None, None], length[None], padded=False)
        first, second, middle, third, last = (lambda x, stack=stack: stack(x)[-1] for stack in encoder.stacks)
        high = first(encoder.feature_projection(x))
        low = second(down(high))
        lowest = further(low)
        inner = middle(lowest) + lowest
        raised = third(up(inner))[:, : low.shape[1]]
        back = raised + low[:, : raised.shape[1]]
        output = last(top(back))[:, : high.shape[1]]
    frame = torch.arange(high.shape[1])
    at_base = [
        high,
        low[:, frame // 2],
        inner[:, frame // 2 * 2 // 3],
        back[:, (frame // 2).clamp(max=len(back[0]) - 1)],
    ]
    for expected, state in zip([*at_base, output + high[:, : output.shape[1]]], found):
        torch.testing.assert_close(state[: expected.shape[1]], expected[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="3 stacks of blocks do not fit 2 changes of the rate"):
        MultiresolutionEncoder([1] * 3, [(1, 2), (2, 3)], **sizes)


THREE_RATES = {
    "stacks.0": "encoders.0",
    "stacks.1": "encoders.1",
    "stacks.2": "middle_encoder",
    "stacks.3": "decoders.0",
    "stacks.4": "decoders.1",
    "resamplers.0": "downsample_modules.0",
    "resamplers.1": "downsample_modules.1",
    "resamplers.2": "upsample_modules.1",  # fairseq counts the way up from the top
    "resamplers.3": "upsample_modules.0",
}


@pytest.mark.unit
def test_three_rates_of_a_file():
    """All stacks have the same shapes, so that two in the wrong order would show nowhere. The strides of the front end
    and the order of norms in a block show in no shape; the config says them."""
    conv_layers = [(8, 10, 5), (8, 3, 2), (8, 8, 4), (8, 4, 4), (8, 2, 2)]
    sizes = dict(d_model=24, num_heads=2, d_inner=32, pos_conv_kernel=8, pos_conv_groups=4, resampling_kernel=3)
    sizes.update(conv_layers=conv_layers, pre_norm=True)
    torch.manual_seed(0)
    encoder = MultiresolutionEncoder([1, 2, 1, 2, 1], [(1, 2), (2, 3)], **sizes)
    tensors = {}
    for name, tensor in encoder.state_dict().items():
        part, inner = ".".join(name.split(".")[:2]), ".".join(name.split(".")[2:])
        if part.startswith("stacks"):
            name = fairseq_table("group_norm").their_name(inner).replace("encoder", THREE_RATES[part], 1)
        elif part.startswith("resamplers"):
            inner = inner.replace("sample.conv", "sample_conv.0").replace("sample.norm", "sample_conv.2")
            name = f"{THREE_RATES[part]}.{inner}"
        else:
            name = fairseq_table("group_norm").their_name(name)
        tensors[name] = tensor
    options = {"label_rate_ratios": [1, 2, 2, 3], "encoder_attention_heads": 2, "layer_norm_first": True}
    options["conv_feature_layers"] = str(conv_layers)
    found, notes = from_multiresolution({"cfg": {"model": options}, "model": tensors}, "mrhubert.pt")
    assert_same_weights(found.state_dict(), encoder.state_dict())
    assert found.rates == encoder.rates and notes == []
    assert [conv.conv.stride for conv in found.feature_extractor.conv_layers] == [(5,), (2,), (4,), (4,), (2,)]
    assert all(stack.pre_norm for stack in found.stacks)
    assert [len(stack.layers) for stack in found.stacks] == [1, 2, 1, 2, 1]


@pytest.mark.unit
def test_scripts_take_it_as_an_encoder_only(tmp_path, audio):
    """--encoder of fit_kmeans.py and label.py; a CTC model has no place for it."""
    _, content = make()
    torch.save(content, tmp_path / "mrhubert.pt")
    encoder = load_encoder(tmp_path / "mrhubert.pt")
    features = HiddenFeatures(encoder, layer=3)
    assert features.description.dimension == 24
    waves = [row[:samples].numpy() for row, samples in zip(*audio)]
    (first, *_), (alone,) = features(waves), features(waves[:1])
    assert abs(first - alone).max() < 1e-5
    with pytest.raises(ValueError, match="mrhubert.pt: an MR-HuBERT. It gives features"):
        read_checkpoint(tmp_path / "mrhubert.pt")
    for layer in (0, 6):
        with pytest.raises(ValueError, match=f"layer {layer}: the encoder has blocks 1 to 5"):
            HiddenFeatures(encoder, layer=layer)


@pytest.mark.unit
@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda state: state.pop("upsample_modules.0.upsample_conv.2.bias"),
            "missing tensors our resamplers.1.upsample.norm.bias",
        ),
        (
            lambda state: state.pop("post_extract_proj.weight"),
            "tensor our feature_projection.projection.weight",
        ),
        (lambda state: state.pop("decoders.0.layers.1.fc1.weight"), "missing .*stacks.2.layers.1.feed_forward"),
        (lambda state: state.update({"middle_encoder.layers.0.spk.weight": torch.zeros(3)}), "unknown tensors"),
        (
            lambda state: state.update({"encoders.1.layer_norm.bias": torch.zeros(24)}),
            "surplus tensor (encoders.1|middle_encoder).layer_norm.bias: more stacks",
        ),
        (
            lambda state: state["middle_encoder.layer_norm.bias"].fill_(float("nan")),
            "stacks.1.layer_norm.bias holds NaN",
        ),
        (lambda state: state.update({"middle_encoder.layer_norm.bias": torch.zeros(9)}), r"is \[9\], expected \[24\]"),
    ],
)
def test_a_wrong_file_is_named(change, message):
    _, content = make()
    content["model"] = {name: tensor.detach().clone() for name, tensor in content["model"].items()}
    change(content["model"])
    with pytest.raises(ValueError, match=f"mrhubert.pt: .*{message}"):
        from_multiresolution(content, "mrhubert.pt")
