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

"""HuBERT's convolutional front end: raw 16 kHz samples to one 512-wide frame every 20 ms.

Weights and maths equal ``HubertFeatureEncoder`` of transformers and ``ConvFeatureExtractionModel`` of fairseq, except
that the group norm takes its statistics over the frames of an utterance, never over the padding behind it.
"""

from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_mshubert.modules import reference
from nemo_mshubert.modules.conv_as_matmul import conv_as_matmul
from nemo_mshubert.modules.conv_with_time_norm import conv_with_time_norm
from nemo_mshubert.modules.dropout import Dropout
from nemo_mshubert.modules.frames import HUBERT_KERNELS_AND_STRIDES, frame_count, valid_positions
from nemo_mshubert.modules.layer_norm import EPSILON, LayerNorm

HUBERT_CONV_LAYERS = tuple((512, kernel, stride) for kernel, stride in HUBERT_KERNELS_AND_STRIDES)
PART_SIZE = 1 << 21  # numbers in a tensor: 8 MiB in fp32


class TimeGroupNorm(nn.GroupNorm):
    """One group per channel: normalises each channel over time, in fp32; the output has the dtype of the input."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, eps=EPSILON, affine=True)

    def forward(self, x_BTC: Tensor, lengths_B: Tensor, padded: bool) -> Tensor:
        """``[B, T, C]`` -> same; with ``padded``, the statistics of row b come from its first ``lengths_B[b]``
        frames."""
        if not padded:
            return super().forward(x_BTC.transpose(1, 2)).transpose(1, 2).to(x_BTC.dtype)
        valid_BT1 = valid_positions(lengths_B, x_BTC.shape[1])[..., None]
        count_B11 = lengths_B.clamp(min=1)[:, None, None]
        x = x_BTC.float()
        centred = x - (x * valid_BT1).sum(1, keepdim=True) / count_B11
        variance = (centred * valid_BT1).square().sum(1, keepdim=True) / count_B11
        # [None]: torch's ONNX exporter loses a parameter that goes through nothing but a cast to its own type
        scale = torch.rsqrt(variance + self.eps) * self.weight.float()[None]
        return (centred * scale + self.bias.float()[None]).to(x_BTC.dtype)


class ChannelLayerNorm(LayerNorm):
    """`LayerNorm` over the channels of ``[B, T, C]``; it does not need the lengths."""

    def forward(self, x_BTC: Tensor, lengths_B: Tensor, padded: bool) -> Tensor:
        return super().forward(x_BTC)


NORMS = {"group_norm": TimeGroupNorm, "layer_norm": ChannelLayerNorm}


class ConvLayer(nn.Module):
    """Convolution, norm (where the layer has one), GELU."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, bias: bool, norm: Optional[nn.Module]
    ):
        super().__init__()
        self.conv = nn.Conv1d(in_channels, channels, kernel, stride, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight)  # fairseq: make_conv
        self.layer_norm = norm
        self._norm_is_foldable = isinstance(norm, TimeGroupNorm) and in_channels == 1 and not bias

    def forward(self, x_BTC: Tensor, lengths_B: Tensor, padded: bool) -> Tensor:
        conv, norm = self.conv, self.layer_norm
        if self._norm_is_foldable and x_BTC.device.type != "mps" and not reference.is_taken():  # Apple's: no fp64
            affine = (norm.weight, norm.bias, norm.eps)
            weight_OK, stride = conv.weight[:, 0], conv.stride[0]
            return F.gelu(conv_with_time_norm(x_BTC[..., 0], weight_OK, *affine, stride, lengths_B, padded))
        y_BTC = self._convolve(x_BTC)
        return F.gelu(y_BTC if norm is None else norm(y_BTC, lengths_B, padded))

    def _convolve(self, x_BTC: Tensor) -> Tensor:
        conv = self.conv
        if reference.is_taken():
            return conv(x_BTC.transpose(1, 2)).transpose(1, 2)
        convolve = conv_as_matmul if x_BTC.device.type == "cpu" else conv_channels_last
        return convolve(x_BTC, conv.weight, conv.bias, conv.stride[0])


def conv_channels_last(x_BTC: Tensor, weight_OCK: Tensor, bias_O: Optional[Tensor], stride: int) -> Tensor:
    """``conv1d`` without padding of ``[B, T, C]`` to ``[B, (T - K) // stride + 1, O]`` by cuDNN's channels-last
    kernels. ``conv1d`` itself would re-order channels and frames, and cuDNN would re-order them back."""
    x_BC1T = x_BTC.transpose(1, 2).unsqueeze(2)
    weight_OC1K = weight_OCK.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    return F.conv2d(x_BC1T, weight_OC1K, bias_O, (1, stride)).squeeze(2).transpose(1, 2)


class ConvFeatureExtractor(nn.Module):
    """Stack of `ConvLayer`.

    Args:
        conv_layers: ``(channels, kernel, stride)`` per layer.
        norm: ``"group_norm"``: over time, after the first convolution only (base); ``"layer_norm"``: over channels, in
            every layer (large).
        bias: whether the convolutions have a bias.
    """

    def __init__(self, conv_layers: Sequence[Tuple[int, int, int]], norm: str = "group_norm", bias: bool = False):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm: expected one of {tuple(NORMS)}, found {norm!r}.")
        self.kernels_and_strides = [(kernel, stride) for _, kernel, stride in conv_layers]
        in_channels = [1] + [channels for channels, _, _ in conv_layers]
        self.conv_layers = nn.ModuleList(
            ConvLayer(
                in_channels[index],
                channels,
                kernel,
                stride,
                bias,
                NORMS[norm](channels) if index == 0 or norm == "layer_norm" else None,
            )
            for index, (channels, kernel, stride) in enumerate(conv_layers)
        )
        self.out_channels = in_channels[-1]

    def forward(self, signal_B1S: Tensor, lengths_B: Tensor, padded: bool) -> Tuple[Tensor, Tensor]:
        """Samples ``[B, 1, S]`` and their counts ``[B]`` -> frames ``[B, T, C]`` and frame counts ``[B]``.

        A valid frame never sees samples beyond its utterance, so padding does not change it.

        On a CPU, a few utterances at a time go through all layers. The tensors of a large batch would need new memory
        in every layer: the C library returns blocks of 32 MiB and more to Linux, which clears them again page by page.
        """
        rows = self._rows_at_once(signal_B1S)
        if rows >= len(signal_B1S):
            return self._extract(signal_B1S, lengths_B, padded)
        parts = [self._extract(*part, padded) for part in zip(signal_B1S.split(rows), lengths_B.split(rows))]
        frames, counts = zip(*parts)
        return torch.cat(frames), torch.cat(counts)

    def _rows_at_once(self, signal_B1S: Tensor) -> int:
        if signal_B1S.device.type != "cpu" or reference.is_taken():
            return len(signal_B1S)
        num_frames = frame_count(signal_B1S.shape[-1], self.kernels_and_strides[:1])
        return max(1, PART_SIZE // max(1, num_frames * self.conv_layers[0].conv.out_channels))

    def _extract(self, signal_B1S: Tensor, lengths_B: Tensor, padded: bool) -> Tuple[Tensor, Tensor]:
        x_BTC = signal_B1S.transpose(1, 2)
        for layer, kernel_and_stride in zip(self.conv_layers, self.kernels_and_strides):
            lengths_B = frame_count(lengths_B, [kernel_and_stride])
            x_BTC = layer(x_BTC, lengths_B, padded)
        return x_BTC, lengths_B


class FeatureProjection(nn.Module):
    """LayerNorm over the channels of the front end, then Linear to the width of the transformer, then dropout."""

    def __init__(self, channels: int, d_model: int, dropout: float):
        super().__init__()
        self.layer_norm = LayerNorm(channels)
        self.projection = nn.Linear(channels, d_model)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.dropout(self.projection(self.layer_norm(x_BTC)))
