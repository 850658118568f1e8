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

"""The features for k-means: MFCCs (first iteration) or hidden states of an encoder (second iteration), at 50 Hz.

A feature maker has a ``description``, a ``name``, a ``dimension`` and a ``device``. It maps waveforms to features:

    waveforms: list of float32 [S], 16 kHz    ->    list of float32 [T, D], T = frame_count(S), 0 below 400 samples
"""

import warnings
from dataclasses import dataclass, replace
from typing import List, Optional

import numpy as np
import torch
from lhotse.features.kaldi.layers import Wav2MFCC
from scipy.signal import savgol_filter
from torch import Tensor, nn

from nemo_mshubert.data.batching import batches_by_length
from nemo_mshubert.data.manifest import SAMPLE_RATE
from nemo_mshubert.modules.fingerprint import weights_fingerprint
from nemo_mshubert.modules.frames import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, frame_count
from nemo_mshubert.modules.unit_variance import to_unit_variance

MFCC_HOP_SAMPLES = 160  # 10 ms
NORMALIZED = "-normalized"  # suffix to the fingerprint of an encoder whose audio is scaled to unit variance
MAX_CHUNK_SAMPLES = 100 * SAMPLE_RATE  # fairseq: dump_hubert_feature.py, max_chunk


@dataclass(frozen=True)
class FeatureDescription:
    """What a k-means file says about the features it was fitted on."""

    kind: str  # "mfcc" or "hidden"
    dimension: int
    layer: Optional[int] = None  # for "hidden": counted from 1
    encoder: Optional[str] = None  # for "hidden": weights_fingerprint, plus NORMALIZED if its audio is scaled

    @property
    def name(self) -> str:
        if self.kind == "mfcc":
            return f"{self.dimension} MFCC features"
        return f"{self.dimension} hidden features of layer {self.layer} of encoder {self.encoder}"

    def differs_in_scaling(self, other: "FeatureDescription") -> bool:
        """Whether both are from the same layer of the same encoder, but only one of them has scaled audio."""
        plain = [
            replace(each, encoder=each.encoder and each.encoder.removesuffix(NORMALIZED)) for each in (self, other)
        ]
        return self != other and plain[0] == plain[1]


class FeatureMaker:
    """The interface of this module: a ``description`` and a call."""

    device = torch.device("cpu")
    description: FeatureDescription

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def dimension(self) -> int:
        return self.description.dimension

    def __call__(self, waveforms: List[np.ndarray]) -> List[Tensor]:
        """Features ``float32 [T, D]``, ``T = frame_count(S)``, of each waveform ``float32 [S]`` at 16 kHz.

        They stay on ``device``, where labels are computed: a second of base's features is 154 kB, of labels 100 bytes.
        """
        raise NotImplementedError


class MfccFeatures(FeatureMaker):
    """13 Kaldi MFCCs with deltas and delta-deltas: 39 dimensions, every second frame of those at 100 Hz.

        samples           0        160       320       480
        MFCC window 0     |---- 400 samples ----|               = HuBERT frame 0
        MFCC window 1               |---- 400 samples ----|
        MFCC window 2                         |---- 400 samples ----|    = HuBERT frame 1

    Without padding at the edges, window ``2t`` covers exactly the 400 samples of HuBERT frame ``t``, and there are as
    many even windows as HuBERT frames. Deltas are computed at 100 Hz, before the odd windows are dropped.

    Parameters and waveform scale (floats in [-1, 1]) are those of fairseq's dump_mfcc_feature.py, which calls
    ``torchaudio.compliance.kaldi.mfcc`` and ``compute_deltas``. The original HuBERT makes MFCC labels at 100 Hz, and
    its model, at 50 Hz, reads every second one (``feat2tar_ratio`` in fairseq). Only those are made here.
    """

    description = FeatureDescription(kind="mfcc", dimension=39)

    def __init__(self):
        with warnings.catch_warnings():
            # Lhotse warns about snip_edges because its own frame counts assume padding; ours assume none.
            warnings.simplefilter("ignore")
            # high_freq 0 is the Nyquist frequency, as in Kaldi; Lhotse's default is 400 Hz less.
            self._mfcc = Wav2MFCC(sampling_rate=SAMPLE_RATE, snip_edges=True, high_freq=0.0)

    def __call__(self, waveforms: List[np.ndarray]) -> List[Tensor]:
        return [self._features(waveform) for waveform in waveforms]

    @torch.inference_mode()
    def _features(self, waveform: np.ndarray) -> Tensor:
        chunks = cut_at_frames(len(waveform), MAX_CHUNK_SAMPLES, MFCC_HOP_SAMPLES)
        if not chunks:
            return torch.empty(0, self.dimension)
        samples = torch.from_numpy(waveform)[None]
        mfcc = torch.cat([self._mfcc(samples[:, chunk])[0] for chunk in chunks]).numpy()  # [windows, 13]
        delta = _delta(mfcc)
        return torch.from_numpy(np.concatenate([mfcc, delta, _delta(delta)], axis=1)[::2])


class HiddenFeatures(FeatureMaker):
    """Output of a transformer layer of an encoder, unmasked, in fp32. On GPUs, cuDNN computes convolutions in TF32,
    PyTorch's default.

    Utterances longer than `MAX_CHUNK_SAMPLES` (which no padded batch exceeds) are cut into chunks of about equal
    length, so that no chunk is only a few frames long. Neighbouring chunks share the 80 samples by which the 400
    samples of a frame exceed the hop, so that no frame is lost (fairseq cuts without overlap and loses one frame per
    cut). Each chunk is processed on its own.

    Args:
        encoder: has ``extract_features(audio [B, S], length [B], layer) -> (features [B, T, D], frames [B])`` that
            does not depend on padding. It is moved to ``device`` and set to eval mode. If its ``normalized_input`` is
            true, every utterance is scaled to zero mean and unit variance before it is cut.
        layer: transformer layer, counted from 1.
        device: where to run.
    """

    def __init__(self, encoder: nn.Module, layer: int, device="cpu"):
        self.device = torch.device(device)
        self.encoder = encoder.to(self.device).eval()
        self.layer = layer
        self.fingerprint = weights_fingerprint(encoder)
        (one_frame,) = self._run([np.zeros(RECEPTIVE_FIELD_SAMPLES, np.float32)])
        self.description = FeatureDescription("hidden", one_frame.shape[1], layer, self.fingerprint + self.scaling)

    @property
    def normalized(self) -> bool:
        """Whether utterances are scaled to zero mean and unit variance."""
        return bool(getattr(self.encoder, "normalized_input", False))

    @property
    def scaling(self) -> str:
        """Suffix to the fingerprint of the encoder in the description of its features: `NORMALIZED`, or empty."""
        return NORMALIZED if self.normalized else ""

    def __call__(self, waveforms: List[np.ndarray]) -> List[Tensor]:
        pieces, owners = [], []
        for owner, waveform in enumerate(waveforms):
            if self.normalized:
                waveform = to_unit_variance(waveform)
            chunks = cut_at_frames(len(waveform), MAX_CHUNK_SAMPLES, HOP_SAMPLES)
            pieces += [waveform[chunk] for chunk in chunks]
            owners += [owner] * len(chunks)
        outputs: List[Optional[Tensor]] = [None] * len(pieces)
        for batch in batches_by_length([len(piece) for piece in pieces], MAX_CHUNK_SAMPLES):
            for index, output in zip(batch, self._run([pieces[index] for index in batch])):
                outputs[index] = output
        parts: List[List[Tensor]] = [[] for _ in waveforms]
        for owner, output in zip(owners, outputs):
            parts[owner].append(output)
        nothing = torch.empty(0, self.dimension, device=self.device)
        return [torch.cat(own) if len(own) > 1 else (own or [nothing])[0] for own in parts]

    @torch.inference_mode()
    def _run(self, pieces: List[np.ndarray]) -> List[Tensor]:
        audio = nn.utils.rnn.pad_sequence([torch.from_numpy(piece) for piece in pieces], batch_first=True)
        length = torch.tensor([len(piece) for piece in pieces])
        features = self._extract(audio.to(self.device), length)
        expected = frame_count(audio.shape[1])
        if features.shape[1] != expected:  # compare shapes: reading the counts would make the host wait for the GPU
            raise ValueError(
                f"The encoder makes {features.shape[1]} frames of {audio.shape[1]} samples, HuBERT's front end "
                f"{expected}: its labels would not fit the frames of training. Take one with HuBERT's convolutions."
            )
        return [row[:count] for row, count in zip(features.float(), frame_count(length).tolist())]

    def _extract(self, audio: Tensor, length: Tensor) -> Tensor:
        """Samples ``[B, S]`` on the device and their counts ``[B]`` -> features ``[B, T, D]``."""
        features, _ = self.encoder.extract_features(audio, length, self.layer)
        return features


def cut_at_frames(num_samples: int, max_samples: int, hop_samples: int) -> List[slice]:
    """Sample ranges of at most ``max_samples`` whose 400-sample windows, ``hop_samples`` apart, are together the
    windows of the whole.

    Neighbours overlap by ``400 - hop_samples``, so that each window lies completely in exactly one range. The last
    range keeps the samples after the last window: norms over time see them, as they do in training and in fairseq.
    """
    if num_samples < RECEPTIVE_FIELD_SAMPLES:
        return []
    windows = (num_samples - RECEPTIVE_FIELD_SAMPLES) // hop_samples + 1
    max_windows = (max_samples - RECEPTIVE_FIELD_SAMPLES) // hop_samples + 1
    num_chunks = -(-windows // max_windows)
    edges = [windows * chunk // num_chunks for chunk in range(num_chunks + 1)]
    ranges = [
        slice(first * hop_samples, (end - 1) * hop_samples + RECEPTIVE_FIELD_SAMPLES)
        for first, end in zip(edges, edges[1:])
    ]
    return [*ranges[:-1], slice(ranges[-1].start, num_samples)]


def _delta(features: np.ndarray) -> np.ndarray:
    """Kaldi's delta over 5 frames, edges replicated: the slope of the least-squares line; ``[T, D] -> [T, D]``."""
    return savgol_filter(features, window_length=5, polyorder=1, deriv=1, axis=0, mode="nearest")
