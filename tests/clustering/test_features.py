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

"""If these fail, features (and labels) are shifted against the audio, or are not those the k-means was fitted on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from librosa.feature import delta
from scipy.fft import dct
from torch import nn
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from nemo_mshubert.clustering.features import HiddenFeatures, MfccFeatures, cut_at_frames
from nemo_mshubert.modules.fingerprint import weights_fingerprint
from nemo_mshubert.modules.frames import frame_count

pytestmark = pytest.mark.unit
LENGTHS = [399, 400, 401, 559, 560, 719, 720, 721, 1039, 1040, 16000, 31999, 32000, 32001]


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, num_samples).astype(np.float32)


def reference_mfcc_39(waveform):
    """The documented definition with other libraries: transformers' Kaldi spectrogram, SciPy's DCT, librosa's
    delta."""
    filters = mel_filter_bank(257, 23, 20, 8000, 16000, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True)
    log_mel = spectrogram(
        waveform.astype(np.float64),
        window_function(400, "povey", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=np.finfo(np.float32).eps,
        remove_dc_offset=True,
    )  # [23, windows]
    lifter = 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    mfcc = lifter[:, None] * dct(log_mel, axis=0, norm="ortho")[:13]
    first = delta(mfcc, width=5, mode="nearest")
    return np.concatenate([mfcc, first, delta(first, width=5, mode="nearest")]).T


@pytest.mark.parametrize("num_samples", LENGTHS)
def test_mfcc_has_one_row_per_hubert_frame(num_samples):
    (features,) = MfccFeatures()([noise(num_samples)])
    assert features.shape == (frame_count(num_samples), MfccFeatures().dimension)
    assert features.dtype == torch.float32


@pytest.mark.parametrize("num_samples", [400, 5000, 16080])
def test_mfcc_is_the_kaldi_definition_at_every_second_window(num_samples):
    waveform = noise(num_samples)
    theirs = reference_mfcc_39(waveform)
    (ours,) = MfccFeatures()([waveform])
    np.testing.assert_allclose(ours, theirs[::2], atol=2e-3)  # fp32 logarithms against fp64; values up to 100
    if num_samples > 400:
        assert np.abs(ours[:-1] - theirs[1::2]).max() > 1  # a shift by one window would be seen


def test_mfcc_makes_no_warning(recwarn):
    """Lhotse's, of "mismatched num_frames errors", would open every log of labels that fit."""
    MfccFeatures()
    assert not list(recwarn)


@pytest.mark.parametrize("num_samples", [400, 719, 33333])
def test_mfcc_is_torchaudios(num_samples):
    """What fairseq calls, where torchaudio is installed: labels of either fit the other's k-means."""
    torchaudio = pytest.importorskip("torchaudio", exc_type=(ImportError, OSError))
    waveform = torch.from_numpy(noise(num_samples))[None]
    theirs = torchaudio.compliance.kaldi.mfcc(waveform=waveform, sample_frequency=16000, use_energy=False).T
    first = torchaudio.functional.compute_deltas(theirs)
    theirs = torch.cat([theirs, first, torchaudio.functional.compute_deltas(first)]).T[::2]
    (ours,) = MfccFeatures()([waveform[0].numpy()])
    np.testing.assert_allclose(ours, theirs, atol=1e-4)  # values up to 40


def test_mfcc_frame_covers_the_samples_of_its_hubert_frame():
    """The cepstra (not the deltas) of frame t are those of its 400 samples alone."""
    waveform = noise(4000)
    (features,) = MfccFeatures()([waveform])
    for frame in (0, 3, 7):
        (alone,) = MfccFeatures()([waveform[320 * frame : 320 * frame + 400]])
        np.testing.assert_allclose(features[frame, :13], alone[0, :13], rtol=1e-4, atol=1e-4)


def test_mfcc_of_long_audio_is_not_changed_by_chunks(monkeypatch):
    waveform = noise(50000)
    (whole,) = MfccFeatures()([waveform])
    monkeypatch.setattr("nemo_mshubert.clustering.features.MAX_CHUNK_SAMPLES", 16000)
    (chunked,) = MfccFeatures()([waveform])
    np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hop", [160, 320])
@pytest.mark.parametrize("num_samples", LENGTHS)
def test_chunks_hold_every_window_once(num_samples, hop):
    """A window lost or doubled at a chunk edge shifts all labels behind it."""
    windows = []
    for chunk in cut_at_frames(num_samples, 4000, hop):
        assert 400 <= chunk.stop - chunk.start <= 4000 and chunk.stop <= num_samples
        windows += range(chunk.start, chunk.stop - 399, hop)
    assert windows == list(range(0, num_samples - 399, hop))


class LocalEncoder(nn.Module):
    """Frame t is a function of its 400 samples only, so that chunks must not change anything."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(400, 6)
        self.batches = []

    def extract_features(self, audio, length, layer):
        self.batches.append(tuple(audio.shape))
        assert not self.training and not torch.is_grad_enabled()
        return layer * self.project(audio.unfold(1, 400, 320)), frame_count(length)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return LocalEncoder()


def test_hidden_features_do_not_depend_on_chunks_or_neighbours(encoder, monkeypatch):
    waveforms = [noise(length, seed) for seed, length in enumerate(LENGTHS)]
    monkeypatch.setattr("nemo_mshubert.clustering.features.MAX_CHUNK_SAMPLES", 8000)
    chunked = HiddenFeatures(encoder, layer=3)
    encoder.batches.clear()
    outputs = chunked(waveforms)
    assert all(rows * samples <= 8000 for rows, samples in encoder.batches)  # the memory a batch needs is bounded
    assert any(rows > 1 for rows, _ in encoder.batches)
    for waveform, output in zip(waveforms, outputs):
        assert output.shape == (frame_count(len(waveform)), chunked.dimension)
        expected = [3 * encoder.project(torch.from_numpy(window)) for window in windows_of(waveform)]
        for row, expected_row in zip(output, expected):
            np.testing.assert_allclose(row, expected_row.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_utterances_of_corpora_are_not_cut(encoder):
    """A chunk does not see its neighbours: labels of a cut utterance are not those of the whole one, which fairseq
    makes of up to 100 s."""
    features = HiddenFeatures(encoder, layer=1)
    encoder.batches.clear()
    features([noise(35 * 16000)])  # LibriSpeech's longest
    features([noise(100 * 16000)])
    assert encoder.batches == [(1, 35 * 16000), (1, 100 * 16000)]
    (features_of_two_parts,) = features([noise(101 * 16000)])  # fairseq's limit: memory grows with the square
    assert len(encoder.batches) == 4 and len(features_of_two_parts) == frame_count(101 * 16000)


def windows_of(waveform):
    return [waveform[start : start + 400] for start in range(0, len(waveform) - 399, 320)]


def test_hidden_features_say_what_they_are(encoder):
    features = HiddenFeatures(encoder, layer=6)
    assert (features.description.kind, features.dimension, features.description.layer) == ("hidden", 6, 6)
    assert features.description.encoder == weights_fingerprint(encoder)
    assert "layer 6" in features.name and features.description.encoder in features.name


def test_features_say_whether_audio_is_scaled(encoder):
    """One encoder in two files: labels of scaled audio would pass for those of a k-means of audio as it is."""
    encoder.normalized_input = False
    plain = HiddenFeatures(encoder, layer=6).description
    encoder.normalized_input = True
    scaled = HiddenFeatures(encoder, layer=6).description
    assert plain.encoder == weights_fingerprint(encoder)  # label makers of such encoders keep their ids
    assert scaled.encoder == f"{plain.encoder}-normalized" and scaled != plain
    assert scaled.differs_in_scaling(plain) and plain.differs_in_scaling(scaled)
    assert not plain.differs_in_scaling(plain) and not plain.differs_in_scaling(replace(scaled, layer=5))
    assert not plain.differs_in_scaling(MfccFeatures.description)


def test_an_encoder_of_another_frame_rate_is_refused(encoder, monkeypatch):
    """Its labels would be counted, or cut off, as if they were 20 ms apart."""
    features = HiddenFeatures(encoder, layer=1)
    monkeypatch.setattr(encoder, "extract_features", lambda audio, length, _: (audio.unfold(1, 400, 160), length))
    with pytest.raises(ValueError, match="29 frames of 5000 samples, HuBERT's front end 15"):
        features([noise(5000)])


def test_audio_is_scaled_for_encoders_that_were_trained_on_scaled_audio(monkeypatch):
    """Otherwise the labels of a large model come from audio it has never seen the like of."""

    class Samples(torch.nn.Module):
        normalized_input = True

        def extract_features(self, audio, length, layer):
            frames = frame_count(length)
            return audio.unfold(1, 400, 320)[:, : int(frames.max()), :3], frames

    waveform = 0.05 * np.random.default_rng(0).standard_normal(5000).astype(np.float32) + 0.2
    (features,) = HiddenFeatures(Samples(), layer=1)([waveform])
    scaled = (waveform - waveform.mean()) / waveform.std()
    np.testing.assert_allclose(features[2], scaled[640:643], rtol=1e-4)
    waveform[2500:] *= 0.01  # a long file is scaled before it is cut: what is quiet stays quiet
    monkeypatch.setattr("nemo_mshubert.clustering.features.MAX_CHUNK_SAMPLES", 1600)
    (features,) = HiddenFeatures(Samples(), layer=1)([waveform])
    scaled = (waveform - waveform.mean()) / waveform.std()
    np.testing.assert_allclose(features[12], scaled[3840:3843], rtol=1e-4)
