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

"""The preprocessor slot of a NeMo ASR model for encoders that take raw samples."""

import math
from types import SimpleNamespace
from typing import Dict, Optional

import torch
from nemo.collections.asr.modules.audio_preprocessing import AudioPreprocessor
from nemo.core.neural_types import AudioSignal, LengthsType, NeuralType, SpectrogramType

from nemo_mshubert.modules.frames import valid_positions
from nemo_mshubert.modules.unit_variance import VARIANCE_FLOOR


class WaveformPreprocessor(AudioPreprocessor):
    """Pass samples through as a one-feature "spectrogram" ``[B, 1, S]`` in the dtype of the model. No parameters.

    NeMo's streaming pipelines build a fresh preprocessor from the config, without weights, so the convolutional front
    end lives in the encoder. ``window_stride`` x ``encoder.subsampling_factor`` is 20 ms, which NeMo uses for
    timestamps.

    Args:
        sample_rate: Hz.
        window_stride: seconds per "feature": one sample.
        features: always 1.
        normalize: ``"per_feature"`` scales each utterance to zero mean and unit variance over its
            valid samples (the large models); None leaves the samples as they are (HuBERT base), as do NeMo's other
            names for it, False, ``"None"`` and ``"NA"``.
        dither, pad_to: accepted because NeMo's pipelines overwrite them; neither has a meaning for raw samples.
    """

    @property
    def input_types(self) -> Dict[str, NeuralType]:
        return {
            "input_signal": NeuralType(("B", "T"), AudioSignal(freq=self._sample_rate)),
            "length": NeuralType(tuple("B"), LengthsType()),
        }

    @property
    def output_types(self) -> Dict[str, NeuralType]:
        return {
            "processed_signal": NeuralType(("B", "D", "T"), SpectrogramType()),
            "processed_length": NeuralType(tuple("B"), LengthsType()),
        }

    def __init__(
        self,
        sample_rate: int = 16000,
        window_stride: Optional[float] = None,
        features: int = 1,
        normalize: Optional[str] = None,
        dither: float = 0.0,
        pad_to: int = 0,
    ):
        if normalize not in (None, False, "None", "NA", "per_feature"):
            raise ValueError(f"normalize: expected null or per_feature, found {normalize!r}.")
        if features != 1:
            raise ValueError(f"features: raw samples have 1 feature, found {features}.")
        stride = 1.0 / sample_rate if window_stride is None else window_stride
        if not math.isclose(stride * sample_rate, 1.0, rel_tol=1e-3):
            raise ValueError(
                f"window_stride: NeMo counts timestamps in it, and it is one sample, {1.0 / sample_rate}; found "
                f"{window_stride}. Remove it."
            )
        super().__init__(win_length=1, hop_length=1)  # samples
        self._sample_rate = sample_rate
        self.normalized = normalize == "per_feature"
        # NeMo's streaming code reads and sets these on `featurizer`.
        self.featurizer = SimpleNamespace(
            dither=dither,
            pad_to=pad_to,
            hop_length=1,
            window_size=stride,
            window_stride=stride,
            sample_rate=sample_rate,
        )

    def get_features(self, input_signal: torch.Tensor, length: torch.Tensor):
        """``[B, S]`` samples -> ``[B, 1, S]``, lengths unchanged; samples beyond an utterance are set to zero.

        Lengths may be on the host, and stay there.
        """
        length_B = length.to(input_signal.device, non_blocking=True)
        valid_BS = valid_positions(length_B, input_signal.shape[1])
        signal_BS = input_signal * valid_BS
        if self.normalized:
            count_B1 = length_B.clamp(min=1)[:, None]
            centred_BS = (signal_BS - signal_BS.sum(dim=1, keepdim=True) / count_B1) * valid_BS
            variance_B1 = centred_BS.square().sum(dim=1, keepdim=True) / count_B1
            signal_BS = centred_BS * torch.rsqrt(variance_B1 + VARIANCE_FLOOR)
        return signal_BS[:, None, :], length
