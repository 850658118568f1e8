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

"""The preprocessor slot: NeMo's contract for raw samples."""

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from nemo_mshubert.modules.unit_variance import to_unit_variance
from nemo_mshubert.modules.waveform_preprocessor import WaveformPreprocessor


@pytest.fixture
def batch():
    """Samples ``[3, 1000]`` with garbage in the padding, and lengths 1000, 400, 0."""
    torch.manual_seed(2)
    return 0.3 + 2 * torch.randn(3, 1000), torch.tensor([1000, 400, 0])


@pytest.mark.unit
def test_samples_pass_through_and_padding_becomes_zero(batch):
    """HuBERT base takes samples as they are; padding of other loaders may hold anything."""
    audio, length = batch
    signal, out_length = WaveformPreprocessor()(input_signal=audio, length=length)
    assert signal.shape == (3, 1, 1000) and out_length.tolist() == [1000, 400, 0]
    assert torch.equal(signal[0, 0], audio[0]) and torch.equal(signal[1, 0, :400], audio[1, :400])
    assert not signal[1, 0, 400:].any() and not signal[2].any()


@pytest.mark.unit
def test_normalisation_equals_transformers_one_at_a_time(batch):
    """The large models: zero mean and unit variance over the utterance, not over its padding."""
    audio, length = batch
    signal, _ = WaveformPreprocessor(normalize="per_feature")(input_signal=audio, length=length)
    theirs = Wav2Vec2FeatureExtractor(do_normalize=True)
    for row in (0, 1):
        samples = audio[row, : length[row]].numpy()
        expected = theirs(samples, sampling_rate=16000, return_tensors="pt").input_values[0]
        torch.testing.assert_close(signal[row, 0, : length[row]], expected, rtol=1e-5, atol=1e-5)
    assert not signal[1, 0, 400:].any() and signal.isfinite().all()


@pytest.mark.unit
@pytest.mark.parametrize("loudness", [1.0, 1e-3, 1e-4, 0.0])
def test_long_files_are_scaled_as_short_ones(loudness):
    """A quiet file of an hour, scaled whole before it is cut, would sound to the model unlike its first minute
    alone."""
    waveform = loudness * (0.3 + torch.randn(1, 1000))
    signal, _ = WaveformPreprocessor(normalize="per_feature")(input_signal=waveform, length=torch.tensor([1000]))
    scaled = torch.from_numpy(to_unit_variance(waveform[0].numpy()))
    torch.testing.assert_close(scaled, signal[0, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_it_has_no_weights_and_the_attributes_of_nemo():
    """NeMo's streaming code rebuilds it from the config and reads the featurizer; timestamps use the stride."""
    for preprocessor in (WaveformPreprocessor(window_stride=6.25e-05), WaveformPreprocessor()):
        assert not preprocessor.state_dict()
        featurizer = preprocessor.featurizer
        assert (featurizer.sample_rate, featurizer.hop_length) == (16000, 1)
        assert featurizer.window_stride * 320 == pytest.approx(0.02)
        featurizer.dither, featurizer.pad_to = 0.1, 16  # set by pipelines, without meaning here


@pytest.mark.unit
@pytest.mark.parametrize("normalize", [False, "None", "NA"])
def test_nemos_other_names_for_no_normalisation(normalize, batch):
    """Its pipelines write them over the config of a model; refused, or taken for a scaling, they would be heard."""
    signal, _ = WaveformPreprocessor(normalize=normalize)(input_signal=batch[0], length=batch[1])
    assert torch.equal(signal[0, 0], batch[0][0])


@pytest.mark.unit
@pytest.mark.parametrize("arguments", [{"normalize": "all_features"}, {"features": 80}, {"window_stride": 0.01}])
def test_options_of_spectrograms_are_refused(arguments):
    """A config of another model family; with its stride, timestamps would be 160 times as late."""
    with pytest.raises(ValueError, match="expected null or per_feature|1 feature|one sample, 6.25e-05; found 0.01"):
        WaveformPreprocessor(**arguments)


@pytest.mark.unit
def test_floor_of_the_variance_is_that_of_transformers():
    """Quiet recordings: with fairseq's 1e-5 their samples would be a third of what the large models were given."""
    quiet = np.array([1e-3, -1e-3], np.float32)
    assert to_unit_variance(quiet) == pytest.approx(quiet / (1e-6 + 1e-7) ** 0.5)
