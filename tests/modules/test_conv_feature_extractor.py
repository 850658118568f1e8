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

"""The convolutional front end: transformers' maths, and statistics of the utterance alone."""

import pytest
import torch
from transformers import HubertConfig
from transformers.models.hubert.modeling_hubert import HubertFeatureEncoder

from nemo_mshubert.modules import conv_feature_extractor, reference
from nemo_mshubert.modules.conv_feature_extractor import ConvFeatureExtractor, TimeGroupNorm
from nemo_mshubert.modules.frames import HUBERT_KERNELS_AND_STRIDES, frame_count

CHANNELS = 8
LAYERS = [(CHANNELS, kernel, stride) for kernel, stride in HUBERT_KERNELS_AND_STRIDES]


def randomise(module):
    """Weights that no two positions share: fresh norms are all ones and zeros."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def pair(norm, bias):
    config = HubertConfig(conv_dim=(CHANNELS,) * 7, feat_extract_norm=norm, conv_bias=bias)
    theirs = randomise(HubertFeatureEncoder(config))
    ours = ConvFeatureExtractor(LAYERS, f"{norm}_norm", bias).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.unit
@pytest.mark.parametrize("norm, bias", [("group", False), ("layer", True)])
def test_padded_batch_equals_transformers_one_at_a_time(norm, bias):
    """Pre-trained weights of others must give their features here, whatever else is in the batch."""
    ours, theirs = pair(norm, bias)
    lengths = torch.tensor([16000, 9999, 400])
    signal = torch.zeros(3, 1, 16000)
    with torch.no_grad():
        for row, length in zip(signal, lengths):
            row[0, :length] = torch.randn(length)
        padded, frames = ours(signal, lengths, padded=True)
        assert frames.tolist() == frame_count(lengths).tolist()
        for row, length in enumerate(lengths):
            alone = theirs(signal[row, :, :length])[0].T  # [T, C]
            torch.testing.assert_close(padded[row, : frames[row]], alone, rtol=1e-4, atol=1e-5)
        unpadded, _ = ours(signal[:1], lengths[:1], padded=False)
        torch.testing.assert_close(unpadded, theirs(signal[0]).transpose(1, 2), rtol=1e-4, atol=1e-5)
        if norm == "group":  # the test can fail: a plain group norm sees the padding
            plain, _ = ours(signal, lengths, padded=False)
            assert not torch.allclose(plain[1, : frames[1]], padded[1, : frames[1]], atol=1e-3)


@pytest.mark.unit
@pytest.mark.parametrize("norm, bias", [("group", False), ("layer", True)])
@pytest.mark.parametrize("padded", [False, True])
def test_reference_path_is_the_fast_one(norm, bias, padded, monkeypatch):
    """Who doubts a fast path must be able to do without it. 16000 samples: 3199 windows, in four parts."""
    ours, _ = pair(norm, bias)
    signal, lengths = torch.randn(2, 1, 16000), torch.tensor([16000, 9999 if padded else 16000])
    fast, frames = ours(signal, lengths, padded)
    called = []
    convolve = torch.nn.Conv1d.forward
    monkeypatch.setattr(torch.nn.Conv1d, "forward", lambda *arguments: called.append(1) or convolve(*arguments))
    ours(signal, lengths, padded)
    assert not called
    monkeypatch.setattr(reference, "forced", True)
    expected, _ = ours(signal, lengths, padded)
    assert len(called) == 7
    for row, count in enumerate(frames):
        torch.testing.assert_close(fast[row, :count], expected[row, :count], rtol=1e-4, atol=1e-5)


@pytest.mark.unit
@pytest.mark.parametrize("norm, bias", [("group", False), ("layer", True)])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("size, expected_rows", [(3 * 639 * CHANNELS - 1, [2, 2, 1]), (639 * CHANNELS - 1, [1] * 5)])
def test_parts_of_a_large_batch_are_the_batch(norm, bias, padded, size, expected_rows, monkeypatch):
    """A batch that is large enough to go through the convolutions in parts must give the same frames and gradients;
    so must one of utterances that are too large for a part."""
    ours, _ = pair(norm, bias)
    signal = torch.randn(5, 1, 3200)
    lengths = torch.tensor([3200, 900, 3200, 2000, 400]) if padded else torch.full((5,), 3200)
    weight_BTC = torch.randn(5, 9, CHANNELS)

    def frames_and_gradients():
        ours.zero_grad()
        x_BTC, frames = ours(signal, lengths, padded)
        valid_BT1 = (torch.arange(9) < frames[:, None])[..., None]
        (x_BTC * weight_BTC * valid_BT1).sum().backward()
        return x_BTC * valid_BT1, frames, [parameter.grad.clone() for parameter in ours.parameters()]

    rows = []
    hook = ours.conv_layers[0].register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    with monkeypatch.context() as patch:
        patch.setattr(conv_feature_extractor, "PART_SIZE", size)  # 639 frames in the first layer
        in_parts = frames_and_gradients()
    assert rows == expected_rows
    hook.remove()
    monkeypatch.setattr(reference, "forced", True)
    torch.testing.assert_close(in_parts, frames_and_gradients(), rtol=1e-4, atol=1e-5)


@pytest.mark.unit
def test_group_norm_ignores_what_lies_in_the_padding():
    """Garbage behind an utterance must not leak in, nor an empty row make NaNs."""
    norm = randomise(TimeGroupNorm(CHANNELS))
    lengths = torch.tensor([5, 9, 0])
    x_BTC = torch.randn(3, 9, CHANNELS)
    dirty = x_BTC.clone()
    dirty[0, 5:] = 1e4
    with torch.no_grad():
        clean, noisy = norm(x_BTC, lengths, True), norm(dirty, lengths, True)
        torch.testing.assert_close(clean[0, :5], noisy[0, :5])
        torch.testing.assert_close(clean[1:2], norm(x_BTC[1:2], lengths[1:2], False), rtol=1e-4, atol=1e-5)
    assert clean.isfinite().all()


@pytest.mark.unit
def test_group_norm_is_exact_far_from_zero():
    """bf16 audio with an offset: fp32 statistics, and the variance of centred values."""
    norm = TimeGroupNorm(1)
    x_BTC = 1000 + torch.randn(1, 200, 1)
    with torch.no_grad():
        y_BTC = norm(x_BTC, torch.tensor([100]), True)[:, :100]
    valid_BTC = x_BTC[:, :100].double()
    expected = (valid_BTC - valid_BTC.mean()) / valid_BTC.std(correction=0)
    torch.testing.assert_close(y_BTC.double(), expected, rtol=1e-3, atol=1e-3)
    x_BTC = x_BTC.bfloat16()
    found, exact = (norm(x, torch.tensor([100]), True) for x in (x_BTC, x_BTC.float()))
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x_BTC, torch.tensor([200]), False).dtype == torch.bfloat16


@pytest.mark.unit
def test_unknown_norm_is_refused():
    """A typo in a config must not train another network."""
    with pytest.raises(ValueError, match="expected one of .*batch_norm"):
        ConvFeatureExtractor(LAYERS, "batch_norm")
