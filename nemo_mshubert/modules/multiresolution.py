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

"""MR-HuBERT (Shi et al. 2023), a U-net of transformers at 50 Hz, at a lower rate, and at 50 Hz again, as a feature
extractor.

    50 Hz   projection -> encoder ------------------- + -> output          output of the last block
                            |                       |
                         resample                decoder
                            |                       ^
    25 Hz                   +-> middle -> + ---> resample
                            |             ^
                            +-------------+

Weights and maths equal fairseq's ``multires_hubert.py`` on one utterance at a time. B utterances, T frames, D width.
"""

from typing import List, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_mshubert.modules.conv_feature_extractor import HUBERT_CONV_LAYERS, ConvFeatureExtractor, FeatureProjection
from nemo_mshubert.modules.layer_norm import EPSILON, LayerNorm
from nemo_mshubert.modules.transformer import ConvPositionalEmbedding, SelfAttention, TransformerBlock

RESIDUAL_SCALE = 0.4**0.5  # for each sum of a resampled signal and its shortcut


class MultiresolutionEncoder(nn.Module):
    """Hidden states of a pre-trained MR-HuBERT. It has no dropout and no masks: it is not for training.

    Args:
        depths: numbers of blocks of the encoders, the middle one and the decoders, e.g. ``[4, 4, 4]``; an odd length.
        rates: ``(up, down)`` per resampling on the way down; ``[(1, 2)]`` is 50 Hz and 25 Hz.
        resampling_kernel: kernel size of the resampling convolutions.
        plain_resampling: one convolution per resampling, instead of one up and one down.
        the others: as in `MSHuBERTEncoder`.
    """

    normalized_input = False  # set by the code that loads weights

    def __init__(
        self,
        depths: Sequence[int],
        rates: Sequence[Tuple[int, int]],
        conv_layers: Sequence[Tuple[int, int, int]] = HUBERT_CONV_LAYERS,
        conv_norm: str = "group_norm",
        conv_bias: bool = False,
        d_model: int = 768,
        num_heads: int = 12,
        d_inner: int = 3072,
        pre_norm: bool = False,
        pos_conv_kernel: int = 128,
        pos_conv_groups: int = 16,
        resampling_kernel: int = 1,
        plain_resampling: bool = False,
    ):
        super().__init__()
        if len(depths) != 2 * len(rates) + 1:
            raise ValueError(f"{len(depths)} stacks of blocks do not fit {len(rates)} changes of the rate.")
        self.rates = [tuple(rate) for rate in rates]
        self.feature_extractor = ConvFeatureExtractor(conv_layers, conv_norm, conv_bias)
        self.feature_projection = FeatureProjection(self.feature_extractor.out_channels, d_model, dropout=0.0)
        position = ConvPositionalEmbedding(d_model, pos_conv_kernel, pos_conv_groups)
        self.stacks = nn.ModuleList(
            Stack(depth, d_model, num_heads, d_inner, pre_norm, position if index == 0 else None)
            for index, depth in enumerate(depths)
        )
        ways = [*self.rates, *((up, down) for down, up in reversed(self.rates))]  # down, then back up
        self.resamplers = nn.ModuleList(
            Resampler(d_model, resampling_kernel, up, down, plain_resampling) for up, down in ways
        )

    @property
    def num_layers(self) -> int:
        return sum(len(stack.layers) for stack in self.stacks)

    def extract_features(self, audio: Tensor, length: Tensor, layer: int) -> Tuple[Tensor, Tensor]:
        """Samples ``[B, S]`` and counts ``[B]`` -> output of block ``layer`` ``[B, T, D]`` at 50 Hz, frame counts
        ``[B]``.

        Blocks are counted from 1 through encoder, middle and decoder. Frames of a lower rate are repeated. The last
        block's output includes the shortcut from the encoder (fairseq: ``extract_features(last_layer=True)``).
        Utterances run one by one, since the norms between the rates are over time and would see padding.
        """
        if not 1 <= layer <= self.num_layers:
            raise ValueError(f"layer {layer}: the encoder has blocks 1 to {self.num_layers}.")
        rows = [self._block_outputs(row[None, :samples])[layer - 1][0] for row, samples in zip(audio, length.tolist())]
        frames_B = torch.tensor([len(row) for row in rows], device=audio.device)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), frames_B

    def _block_outputs(self, signal_1S: Tensor) -> List[Tensor]:
        """Outputs of all blocks for one utterance, each ``[1, T, D]`` at 50 Hz."""
        length = torch.tensor([signal_1S.shape[-1]], device=signal_1S.device)
        x_BTC, _ = self.feature_extractor(signal_1S[:, None], length, padded=False)
        x_BTD = self.feature_projection(x_BTC)
        num_frames, levels = x_BTD.shape[1], len(self.rates)
        states: List[Tensor] = []
        shortcuts: List[Tensor] = []
        for index, stack in enumerate(self.stacks):
            outputs = stack(x_BTD)
            if index < levels:
                shortcuts.append(outputs[-1])
            elif index == levels:
                shortcuts.append(x_BTD)  # around the middle: its own input
            if index >= levels:
                outputs[-1] = _sum(outputs[-1], shortcuts.pop())
            level = min(index, 2 * levels - index)
            states += [self._at_base_rate(output, level, num_frames) for output in outputs]
            if index < 2 * levels:
                x_BTD = self.resamplers[index](outputs[-1])
        return states

    def _at_base_rate(self, x_BTD: Tensor, level: int, num_frames: int) -> Tensor:
        frame = torch.arange(num_frames, device=x_BTD.device)
        for up, down in self.rates[:level]:
            frame = frame * up // down
        return x_BTD[:, frame.clamp(max=x_BTD.shape[1] - 1)]


class Stack(nn.Module):
    """Transformer blocks at one rate, with one LayerNorm: before them (post-LN) or after them (pre-LN)."""

    def __init__(self, depth: int, d_model: int, num_heads: int, d_inner: int, pre_norm: bool, position):
        super().__init__()
        self.pos_conv_embed = position
        self.pre_norm = pre_norm
        self.layer_norm = LayerNorm(d_model)
        self.layers = nn.ModuleList(
            TransformerBlock(SelfAttention(d_model, num_heads, 0.0), d_model, d_inner, 0.0, 0.0, pre_norm)
            for _ in range(depth)
        )

    def forward(self, x_BTD: Tensor) -> List[Tensor]:
        """``[B, T, D]`` -> outputs of all blocks; with pre-LN, the last one is taken after the norm."""
        if self.pos_conv_embed is not None:
            x_BTD = x_BTD + self.pos_conv_embed(x_BTD)
        if not self.pre_norm:
            x_BTD = self.layer_norm(x_BTD)
        outputs = []
        for layer in self.layers:
            x_BTD = layer(x_BTD, None)
            outputs.append(x_BTD)
        if self.pre_norm:
            outputs[-1] = self.layer_norm(outputs[-1])
        return outputs


class Resampler(nn.Module):
    """Multiplies the frame rate by ``up`` / ``down``: a transposed convolution, a strided one, and shortcuts around
    each of them and around both.

    ``plain`` has only the convolution that changes the rate, and no shortcut around both (fairseq:
    ``ConvDownsampler``, ``ConvUpsampler``; without ``plain``: ``ConvAdapter``).
    """

    def __init__(self, channels: int, kernel: int, up: int, down: int, plain: bool):
        super().__init__()
        self.up, self.down, self.plain = up, down, plain
        transposed = nn.ConvTranspose1d(channels, channels, kernel, up, output_padding=up - 1, bias=False)
        strided = nn.Conv1d(channels, channels, kernel, down, padding=(kernel - 1) // 2, bias=False)
        self.upsample = None if plain and up == 1 else NormedConv(transposed, channels)
        self.downsample = None if plain and down == 1 else NormedConv(strided, channels)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """``[B, T, D]`` -> ``[B, about T * up / down, D]``."""
        repeated_BTD = x_BTD.repeat_interleave(self.up, dim=1)
        if self.upsample is not None:
            x_BTD = RESIDUAL_SCALE * _sum(self.upsample(x_BTD), repeated_BTD)
        if self.downsample is not None:
            x_BTD = RESIDUAL_SCALE * _sum(self.downsample(x_BTD), x_BTD[:, :: self.down])
        if not self.plain:
            x_BTD = RESIDUAL_SCALE * _sum(x_BTD, repeated_BTD[:, :: self.down])
        return x_BTD


class NormedConv(nn.Module):
    """Convolution, one norm over time and channels, GELU."""

    def __init__(self, conv: nn.Module, channels: int):
        super().__init__()
        self.conv = conv
        self.norm = nn.GroupNorm(1, channels, eps=EPSILON)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x_BTD.transpose(1, 2)))).transpose(1, 2)


def _sum(first_BTD: Tensor, second_BTD: Tensor) -> Tensor:
    """The sum over the frames that both have."""
    num_frames = min(first_BTD.shape[1], second_BTD.shape[1])
    return first_BTD[:, :num_frames] + second_BTD[:, :num_frames]
