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

"""HuBERT's transformer: convolutional positional embedding and post-LN (base) or pre-LN (large) blocks.

Weights and maths equal ``HubertEncoderLayer`` / ``HubertEncoderLayerStableLayerNorm`` of transformers and
``TransformerSentenceEncoderLayer`` of fairseq. B utterances (times views), T frames, D width, H heads, W wanted
frames, as indices into B * T.
"""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nemo_mshubert.modules import reference
from nemo_mshubert.modules.attention_in_parts import attend
from nemo_mshubert.modules.autocast import to_autocast_dtype
from nemo_mshubert.modules.dropout import Dropout, dropout
from nemo_mshubert.modules.fft_conv import KeptSpectra, fft_conv
from nemo_mshubert.modules.layer_norm import LayerNorm

INIT_STD = 0.02  # fairseq: init_bert_params


def init_linear(linear: nn.Linear) -> nn.Linear:
    """N(0, 0.02) weights and zero bias (fairseq: ``init_bert_params``)."""
    nn.init.normal_(linear.weight, std=INIT_STD)
    nn.init.zeros_(linear.bias)
    return linear


class ConvPositionalEmbedding(nn.Module):
    """Grouped, weight-normalised convolution over time; with an even kernel the surplus last frame is dropped."""

    def __init__(self, d_model: int, kernel: int, groups: int):
        super().__init__()
        conv = nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(conv.weight, std=(4.0 / (kernel * d_model)) ** 0.5)
        nn.init.zeros_(conv.bias)
        self.conv = nn.utils.parametrizations.weight_norm(conv, dim=2)
        self.num_surplus_frames = 1 - kernel % 2
        self.spectra = KeptSpectra()

    def forward(self, x_BTD: Tensor, valid_BT: Optional[Tensor] = None) -> Tensor:
        """``[B, T, D]``, zero beyond each utterance -> ``[B, T, D]``; ``valid_BT`` is for `stacked_pos_conv`."""
        conv = self.conv
        if not _takes_fourier_transforms(x_BTD):
            y_BDT = conv(x_BTD.transpose(1, 2))
            return F.gelu(y_BDT[..., : y_BDT.shape[-1] - self.num_surplus_frames]).transpose(1, 2)
        operands = x_BTD, conv.weight, conv.bias, conv.groups
        no_gradient = not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in operands[:3]))
        # On a GPU the host would have to wait for the comparison of kernels, and transforming them takes no time.
        by_kept_spectra = no_gradient and reference.takes_cpu_kernels(x_BTD)
        return F.gelu(self.spectra.convolve(*operands) if by_kept_spectra else fft_conv(*operands))


def _takes_fourier_transforms(x: Tensor) -> bool:
    return x.device.type != "mps" and not reference.is_taken()  # transforms were not tested on Apple's GPUs


class SelfAttention(nn.Module):
    """Multi-head attention of all frames to all valid frames."""

    def __init__(self, d_model: int, num_heads: int, dropout: float):
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"d_model {d_model} is not divisible by num_heads {num_heads}.")
        self.num_heads = num_heads
        self.dropout = dropout
        self.k_proj = init_linear(nn.Linear(d_model, d_model))
        self.v_proj = init_linear(nn.Linear(d_model, d_model))
        self.q_proj = init_linear(nn.Linear(d_model, d_model))
        self.out_proj = init_linear(nn.Linear(d_model, d_model))

    def forward(
        self,
        x_BTD: Tensor,
        key_mask_B11T: Optional[Tensor],
        position_bias_HTT: Optional[Tensor] = None,
        wanted_W: Optional[Tensor] = None,
    ) -> Tensor:
        """``[B, T, D]`` -> ``[B, T, D]``, or ``[W, D]`` for the frames ``wanted_W``; ``key_mask_B11T`` is True at
        frames to attend to, None for all."""
        operand_BTD = to_autocast_dtype(x_BTD)
        q_BHTE, k_BHTE, v_BHTE = (
            proj(operand_BTD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = self.attention_mask(x_BTD, key_mask_B11T, position_bias_HTT)
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q_BHTE.dtype)
        y_BHTE = attend(q_BHTE, k_BHTE, v_BHTE, mask, self.dropout if self.training else 0.0)
        return self.out_proj(take_frames(y_BHTE.transpose(1, 2).flatten(2), wanted_W))

    def attention_mask(
        self, x_BTD: Tensor, key_mask: Optional[Tensor], position_bias: Optional[Tensor]
    ) -> Optional[Tensor]:
        """The mask or bias applied before the softmax; `relative_position.GatedSelfAttention` adds a bias."""
        return key_mask


class FeedForward(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, d_model: int, d_inner: int, activation_dropout: float):
        super().__init__()
        self.intermediate_dense = init_linear(nn.Linear(d_model, d_inner))
        self.output_dense = init_linear(nn.Linear(d_inner, d_model))
        self.activation_dropout = activation_dropout

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden = F.gelu(self.intermediate_dense(x_BTD))
        return self.output_dense(dropout(hidden, self.activation_dropout, self.training))


class TransformerBlock(nn.Module):
    """Attention and feed-forward with residuals; norms after them (post-LN, base) or before them (pre-LN, large)."""

    def __init__(
        self,
        attention: SelfAttention,
        d_model: int,
        d_inner: int,
        dropout: float,
        activation_dropout: float,
        pre_norm: bool,
    ):
        super().__init__()
        self.attention = attention
        self.layer_norm = LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, d_inner, activation_dropout)
        self.final_layer_norm = LayerNorm(d_model)
        self.dropout = Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(
        self,
        x_BTD: Tensor,
        key_mask_B11T: Optional[Tensor],
        position_bias_HTT: Optional[Tensor] = None,
        wanted_W: Optional[Tensor] = None,
    ) -> Tensor:
        """``[B, T, D]`` -> ``[B, T, D]``, or ``[W, D]`` for the frames ``wanted_W``: queries, keys and values are
        computed for all frames, everything after the attention only for these."""
        operand_BTD = self.layer_norm(x_BTD) if self.pre_norm else x_BTD
        attended = self.attention(operand_BTD, key_mask_B11T, position_bias_HTT, wanted_W)
        x = take_frames(x_BTD, wanted_W) + self.dropout(attended)
        if self.pre_norm:
            return x + self.dropout(self.feed_forward(self.final_layer_norm(x)))
        x = self.layer_norm(x)
        return self.final_layer_norm(x + self.dropout(self.feed_forward(x)))


def take_frames(x_BTD: Tensor, wanted_W: Optional[Tensor]) -> Tensor:
    """``[W, D]``: the frames ``wanted_W``, which has no repeats; ``x_BTD`` itself if ``wanted_W`` is None."""
    return x_BTD if wanted_W is None else _TakeFrames.apply(x_BTD, wanted_W)


class _TakeFrames(torch.autograd.Function):
    """Writes each gradient to the row that was taken. Autograd would add gradients up, in case a row was taken
    twice."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, wanted_W: Tensor) -> Tensor:
        ctx.save_for_backward(wanted_W)
        ctx.shape = x_BTD.shape
        return x_BTD.flatten(0, 1).index_select(0, wanted_W)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_WD: Tensor) -> Tuple[Tensor, None]:
        (wanted_W,) = ctx.saved_tensors
        gradient_ND = gradient_WD.new_zeros(ctx.shape).flatten(0, 1)
        return gradient_ND.index_copy_(0, wanted_W, gradient_WD).view(ctx.shape), None


def zero_touch(module: nn.Module) -> Tensor:
    """A zero that depends on every trainable parameter of ``module``.

    It is added where a part is skipped in one step. The gradients of that part are then zero instead of missing on
    every rank, so DDP need not search for unused parameters, and an optimiser step treats the part alike on all ranks.
    For a DTensor, it touches this rank's shard.
    """
    trainable = (parameter for parameter in module.parameters() if parameter.requires_grad)
    return sum((p.to_local() if hasattr(p, "to_local") else p).sum() for p in trainable) * 0.0
