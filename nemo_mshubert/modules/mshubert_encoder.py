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

"""The encoder: convolutional front end, projection, positional embedding, transformer, and Swap for pre-training.

The same object pre-trains (``forward_views``), makes label features (``extract_features``) and serves as the encoder
of a stock NeMo CTC model (``forward``). Legend: V = 2 views (0 masked, 1 clean), B utterances, S samples, T frames, D
width, W wanted frames, as indices into B * T.
"""

import math
from dataclasses import dataclass
from typing import Collection, Dict, List, Optional, Sequence, Tuple

import torch
from nemo.core.classes import NeuralModule, typecheck
from nemo.core.classes.exportable import Exportable
from nemo.core.classes.mixins import AccessMixin
from nemo.core.neural_types import AcousticEncodedRepresentation, LengthsType, NeuralType, SpectrogramType
from torch import Tensor, nn

from nemo_mshubert.modules import reference
from nemo_mshubert.modules.adapters import AdaptableBlock, EncoderAdapters
from nemo_mshubert.modules.conv_feature_extractor import HUBERT_CONV_LAYERS, ConvFeatureExtractor, FeatureProjection
from nemo_mshubert.modules.dropout import Dropout
from nemo_mshubert.modules.frames import RECEPTIVE_FIELD_SAMPLES, valid_positions
from nemo_mshubert.modules.layer_norm import LayerNorm
from nemo_mshubert.modules.masking import channel_mask, span_mask
from nemo_mshubert.modules.relative_position import GatedSelfAttention, RelativePositionBias
from nemo_mshubert.modules.stacked_pos_conv import StackedConvPositionalEmbedding
from nemo_mshubert.modules.swap import swap, swap_source
from nemo_mshubert.modules.transformer import ConvPositionalEmbedding, SelfAttention, take_frames, zero_touch

TRANSFORMER_BACKENDS = ("torch", "megatron")


@dataclass
class Views:
    """What pre-training needs from one forward pass."""

    # block number from 1 -> [V, B, T, D] after that block's exchange, or [V, W, D]; 0: the input of the first block,
    # before any exchange; V = 1 without Swap
    tapped: Dict[int, Tensor]
    frames_B: Tensor  # valid frames per utterance
    feature_penalty: Tensor  # mean square of the convolutional output over valid frames, a scalar in fp32
    wanted_W: Optional[Tensor] = None  # the frames of ``tapped`` ``[V, W, D]``

    def at(self, layer: int, frames_W: Tensor) -> Tensor:
        """``[V, W, D]`` after block ``layer``; raises ``ValueError`` if only other frames were computed."""
        if self.wanted_W is None:
            return self.tapped[layer].flatten(1, 2).index_select(1, frames_W)
        if frames_W is not self.wanted_W:
            raise ValueError("These frames were not asked of forward_views (wanted_W).")
        return self.tapped[layer]


class MSHuBERTEncoder(NeuralModule, Exportable, AccessMixin, EncoderAdapters):
    """HuBERT encoder with Swap. Without arguments: HuBERT base, 94,371,712 parameters.

    With the same weights it equals ``transformers.HubertModel`` run on each utterance alone: padding changes nothing.

    Args (names in brackets are fairseq's):
        conv_layers: ``(channels, kernel, stride)`` per convolution (conv_feature_layers).
        conv_norm: ``group_norm`` (base) or ``layer_norm`` (large) (extractor_mode).
        conv_bias: whether the convolutions have a bias.
        d_model, num_layers, num_heads, d_inner: the transformer (encoder_embed_dim, encoder_layers, ...).
        pre_norm: pre-LN blocks and a final LayerNorm (large) (layer_norm_first).
        pos_conv_kernel, pos_conv_groups: positional convolution (conv_pos, conv_pos_groups).
        pos_conv_depth: above 1, data2vec's stack of positional convolutions, each with ``pos_conv_kernel``.
        position_buckets, position_max_distance: with more than 0 buckets, WavLM's gated relative position bias
            (num_buckets, max_distance).
        dropout, attention_dropout, activation_dropout, dropout_input: as in fairseq.
        layerdrop: chance of skipping a block in training; a skipped block is the identity (encoder_layerdrop).
        feature_grad_mult: scale of the gradient into the front end; 0 freezes it.
        mask_prob, mask_length: frame masks that `forward` draws in training, for fine-tuning (time "SpecAugment" of
            wav2vec 2.0, with the learned mask embedding). Pre-training passes its masks to `forward_views`.
        mask_channel_prob, mask_channel_length: masks of channels, set to zero, that `forward` draws in training.
        transformer_backend: with ``megatron``, `parallel.tensor_parallel` replaces the ``torch`` blocks in training by
            blocks of megatron-core, split over ranks. Weights start and end in the plain form, so files do not need
            megatron-core.
    """

    def __init__(
        self,
        conv_layers: Sequence[Tuple[int, int, int]] = HUBERT_CONV_LAYERS,
        conv_norm: str = "group_norm",
        conv_bias: bool = False,
        d_model: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        d_inner: int = 3072,
        pre_norm: bool = False,
        pos_conv_kernel: int = 128,
        pos_conv_groups: int = 16,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.0,
        dropout_input: float = 0.1,
        layerdrop: float = 0.05,
        feature_grad_mult: float = 0.1,
        mask_prob: float = 0.0,
        mask_length: int = 10,
        mask_channel_prob: float = 0.0,
        mask_channel_length: int = 64,
        pos_conv_depth: int = 1,
        position_buckets: int = 0,
        position_max_distance: int = 800,
        transformer_backend: str = "torch",
    ):
        super().__init__()
        if transformer_backend not in TRANSFORMER_BACKENDS:
            raise ValueError(
                f"transformer_backend: expected one of {TRANSFORMER_BACKENDS}, found {transformer_backend!r}."
            )
        if (mask_prob > 0 and mask_length < 1) or (mask_channel_prob > 0 and mask_channel_length < 1):
            raise ValueError(
                f"mask_length {mask_length}, mask_channel_length {mask_channel_length}: expected 1 or more. Without "
                "masks set mask_prob and mask_channel_prob to 0."
            )
        self.transformer_backend = transformer_backend
        self.d_model = d_model
        self.subsampling_factor = math.prod(stride for _, _, stride in conv_layers)
        self._feat_in = 1
        self._feat_out = d_model
        self.pre_norm = pre_norm
        self.layerdrop = layerdrop
        self.feature_grad_mult = feature_grad_mult
        self.mask_prob, self.mask_length = mask_prob, mask_length
        self.mask_channel_prob, self.mask_channel_length = mask_channel_prob, mask_channel_length

        self.normalized_input = False  # set by load_encoder: it was trained on scaled audio
        self.drawn_weights: Tuple[str, ...] = ()  # set by load_encoder: weights that the checkpoint lacks
        self._was_training = False  # the mode before `freeze`
        self.frozen = False  # set by callbacks.EncoderFreeze: `forward` passes no gradient to the encoder

        self.feature_extractor = ConvFeatureExtractor(conv_layers, conv_norm, conv_bias)
        self.feature_extractor.requires_grad_(feature_grad_mult > 0)
        self.feature_projection = FeatureProjection(self.feature_extractor.out_channels, d_model, dropout_input)
        self.mask_embedding = nn.Parameter(torch.rand(d_model))  # fairseq: mask_emb ~ U(0, 1)
        if pos_conv_depth == 1:
            self.pos_conv_embed = ConvPositionalEmbedding(d_model, pos_conv_kernel, pos_conv_groups)
        else:
            self.pos_conv_embed = StackedConvPositionalEmbedding(
                d_model, pos_conv_kernel, pos_conv_groups, pos_conv_depth
            )
        self.position_bias = None
        attention = SelfAttention
        if position_buckets > 0:
            self.position_bias = RelativePositionBias(position_buckets, position_max_distance, num_heads)
            attention = GatedSelfAttention
        self.layer_norm = LayerNorm(d_model)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            AdaptableBlock(
                attention(d_model, num_heads, attention_dropout),
                d_model,
                d_inner,
                dropout,
                activation_dropout,
                pre_norm,
            )
            for _ in range(num_layers)
        )

    # --- NeMo's contract -----------------------------------------------------------------------------------------

    @property
    def input_types(self) -> Dict[str, NeuralType]:
        return {
            "audio_signal": NeuralType(("B", "D", "T"), SpectrogramType()),
            "length": NeuralType(tuple("B"), LengthsType()),
        }

    @property
    def output_types(self) -> Dict[str, NeuralType]:
        return {
            "outputs": NeuralType(("B", "D", "T"), AcousticEncodedRepresentation()),
            "encoded_lengths": NeuralType(tuple("B"), LengthsType()),
        }

    def input_example(self, max_batch: int = 1, max_dim: int = 16000):
        """Random samples ``[max_batch, 1, max_dim]`` and their lengths, for export."""
        device = self.mask_embedding.device
        signal = torch.randn(max_batch, 1, max_dim, device=device, dtype=self.mask_embedding.dtype)
        return signal, torch.full((max_batch,), max_dim, dtype=torch.int64, device=device)

    @typecheck()
    def forward(self, audio_signal: Tensor, length: Tensor) -> Tuple[Tensor, Tensor]:
        """Samples ``[B, 1, S]`` and counts ``[B]`` -> encoded frames ``[B, D, T]`` and counts ``[B]``.

        In training, frames and channels are masked as configured. Frames beyond an utterance hold no information.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x_BTD, frames_B, padded, _ = self._embed_audio(audio_signal, length)
            if self.training:
                x_BTD = self._mask_for_finetuning(x_BTD, frames_B)
            x_BTD = self._run_transformer(x_BTD, frames_B, padded)[-1]
        if self.training and self.frozen:
            x_BTD = x_BTD + zero_touch(self)
        return x_BTD.transpose(1, 2), frames_B

    def train(self, mode: bool = True) -> "MSHuBERTEncoder":
        """As in PyTorch; the mode from before a `freeze` is forgotten."""
        self._was_training = False
        return super().train(mode)

    def freeze(self) -> None:
        """As in NeMo, which ends in evaluation mode; `unfreeze` restores the mode before."""
        was_training = self.training or self._was_training
        super().freeze()
        self._was_training = was_training

    def unfreeze(self, partial: bool = False) -> None:
        """As in NeMo, but with ``partial`` it restores the mode before `freeze`, or the one chosen since.

        NeMo's own ends in training mode, and so does ``transcribe()``: whatever is computed afterwards would be
        masked.
        """
        was_training = self.training or self._was_training
        super().unfreeze(partial)
        if partial:
            self.train(was_training)

    # --- Pre-training and features -------------------------------------------------------------------------------

    def forward_views(
        self,
        audio_signal: Tensor,
        length: Tensor,
        mask_BT: Tensor,
        tapped_layers: Collection[int],
        use_swap: bool = True,
        generator: Optional[torch.Generator] = None,
        wanted_W: Optional[Tensor] = None,
    ) -> Views:
        """Section 2.2.1: the masked view and its unmasked duplicate, exchanged at the masked frames after every block.

        Args:
            audio_signal: ``[B, 1, S]``; length: ``[B]`` samples, preferably on the host.
            mask_BT: True at masked frames, ``[B, T]``, never beyond an utterance.
            tapped_layers: numbers of the blocks (from 1; 0: input of the first) whose outputs are wanted; blocks above
                the highest are not run.
            use_swap: False for the paper's "- Swap": the masked view alone (HuBERT).
            generator: draws the blocks that layerdrop skips; by default PyTorch's own.
            wanted_W: the only frames whose outputs are wanted (those in the loss), as indices into ``B * T`` without
                repeats. `Views.tapped` holds these frames, and the last block that is run computes only these after
                its attention.
        """
        x_BTD, frames_B, padded, feature_penalty = self._embed_audio(audio_signal, length)
        masked_BTD = torch.where(mask_BT[..., None], self.mask_embedding.to(x_BTD.dtype), x_BTD)
        views = torch.stack([masked_BTD, x_BTD]) if use_swap else masked_BTD[None]  # [V, B, T, D]
        num_views, last_layer = len(views), max(tapped_layers)
        rows_Q = None  # the wanted frames of all views, Q = V * W
        if wanted_W is not None:
            rows_Q = (torch.arange(num_views, device=mask_BT.device)[:, None] * mask_BT.numel() + wanted_W).flatten()
        outputs = self._run_transformer(
            views.flatten(0, 1),
            frames_B.repeat(num_views),
            padded,
            source_R=swap_source(mask_BT) if use_swap else None,
            last_layer=last_layer,
            generator=generator,
            rows_Q=rows_Q,
        )
        tapped = {}
        for layer in tapped_layers:
            x = outputs[layer] if layer == last_layer > 0 else take_frames(outputs[layer], rows_Q)
            tapped[layer] = x.unflatten(0, (num_views, -1))
        return Views(tapped, frames_B, feature_penalty, wanted_W)

    def compile_blocks(self) -> None:
        """Let ``torch.compile`` fuse the operations between the matrix products of the blocks: one graph serves all
        blocks and lengths, another the last block at wanted frames. The names of the weights do not change."""
        for block in self.layers:
            block.compile(dynamic=True)

    def hidden_states(self, audio_signal: Tensor, length: Tensor) -> Tuple[List[Tensor], Tensor]:
        """Unmasked input of the first block and output of every block, ``num_layers + 1`` tensors ``[B, T, D]``, and
        frame counts ``[B]``.

        With pre-LN the last tensor is taken after the final LayerNorm, as in transformers.
        """
        x_BTD, frames_B, padded, _ = self._embed_audio(audio_signal, length)
        return self._run_transformer(x_BTD, frames_B, padded), frames_B

    def extract_features(self, audio: Tensor, length: Tensor, layer: int) -> Tuple[Tensor, Tensor]:
        """Samples ``[B, S]`` and counts ``[B]`` -> output of block ``layer`` (from 1; 0: input of the first block)
        ``[B, T, D]`` and frame counts ``[B]``. Later blocks are not computed.

        Equals fairseq's ``extract_features``, but with pre-LN the last block is taken after the final LayerNorm, as in
        `hidden_states`. Raises ``ValueError`` if there is no such block.
        """
        if not 0 <= layer <= len(self.layers):
            raise ValueError(f"layer {layer}: the encoder has blocks 1 to {len(self.layers)} (0 is their input).")
        x_BTD, frames_B, padded, _ = self._embed_audio(audio[:, None, :], length)
        return self._run_transformer(x_BTD, frames_B, padded, last_layer=layer)[layer], frames_B

    # --- Parts ---------------------------------------------------------------------------------------------------

    def _embed_audio(self, signal_B1S: Tensor, length_B: Tensor) -> Tuple[Tensor, Tensor, bool, Tensor]:
        """Front end and projection: ``[B, T, D]``, frame counts ``[B]``, whether rows are padded, feature penalty.

        If the lengths are on the host, it does not wait for a GPU.
        """
        missing = RECEPTIVE_FIELD_SAMPLES - signal_B1S.shape[-1]
        if missing > 0:  # to one frame, which belongs to no utterance, so that no shape is empty
            signal_B1S = nn.functional.pad(signal_B1S, (0, missing))
        padded = reference.is_exporting() or bool((length_B < signal_B1S.shape[-1]).any())

        with torch.set_grad_enabled(torch.is_grad_enabled() and self.feature_grad_mult > 0):
            length_B = length_B.to(signal_B1S.device, torch.int64, non_blocking=True)
            x_BTC, frames_B = self.feature_extractor(signal_B1S, length_B, padded)
        if self.feature_grad_mult == 0 and any(p.requires_grad for p in self.feature_extractor.parameters()):
            # NeMo's unfreeze() makes them trainable, and DDP then waits for their gradients
            x_BTC = x_BTC + zero_touch(self.feature_extractor)
        elif x_BTC.requires_grad and self.feature_grad_mult != 1:
            x_BTC.register_hook(lambda gradient: gradient * self.feature_grad_mult)
        feature_penalty = self._mean_square(x_BTC, frames_B, padded) if self.training else x_BTC.new_zeros(())

        x_BTD = self.feature_projection(x_BTC)
        if padded:  # the positional convolution must see zeros there, as it does beyond the end of a single utterance
            x_BTD = x_BTD * valid_positions(frames_B, x_BTD.shape[1])[..., None]
        return x_BTD, frames_B, padded, feature_penalty

    @staticmethod
    def _mean_square(x_BTC: Tensor, frames_B: Tensor, padded: bool) -> Tensor:
        squares_BT = x_BTC.float().square().mean(dim=-1)
        if not padded:
            return squares_BT.mean()
        valid_BT = valid_positions(frames_B, squares_BT.shape[1])
        return (squares_BT * valid_BT).sum() / valid_BT.sum().clamp(min=1)

    def _mask_for_finetuning(self, x_BTD: Tensor, frames_B: Tensor) -> Tensor:
        """Masks of wav2vec 2.0 fine-tuning: spans of frames become the mask embedding, spans of channels zero."""
        num_rows, num_frames, width = x_BTD.shape
        if self.mask_prob > 0:
            # batches are padded: with the count of the shortest row, long rows would hardly be masked
            mask_BT = span_mask(
                frames_B.tolist(), self.mask_prob, self.mask_length, num_frames, same_count=False, min_spans=0
            )
            x_BTD = torch.where(mask_BT.to(x_BTD.device)[..., None], self.mask_embedding.to(x_BTD.dtype), x_BTD)
        elif self.mask_embedding.requires_grad:
            x_BTD = x_BTD + self.mask_embedding.sum() * 0.0  # see zero_touch
        if self.mask_channel_prob > 0:
            mask_BD = channel_mask(num_rows, width, self.mask_channel_prob, self.mask_channel_length)
            x_BTD = x_BTD.masked_fill(mask_BD.to(x_BTD.device)[:, None, :], 0.0)
        return x_BTD

    def _run_transformer(
        self,
        x_NTD: Tensor,
        frames_N: Tensor,
        padded: bool,
        source_R: Optional[Tensor] = None,
        last_layer: Optional[int] = None,
        generator: Optional[torch.Generator] = None,
        rows_Q: Optional[Tensor] = None,
    ) -> List[Tensor]:
        """Input of the first block and outputs of blocks 1 to ``last_layer`` (default: all), each ``[N, T, D]``; with
        ``rows_Q``, indices into N * T, the last output holds only these frames, ``[Q, D]``.

        Blocks above ``last_layer`` are not run; in training their gradients are zero. With ``source_R``, the N = 2B
        rows are two views, which `swap` exchanges after every block.
        """
        valid_NT, key_mask, position_bias = None, None, None
        if padded:
            # an empty row attends to its padding, which avoids NaN
            valid_NT = valid_positions(frames_N.clamp(min=1), x_NTD.shape[1])
            key_mask = valid_NT[:, None, None, :]
        if self.position_bias is not None:
            position_bias = self.position_bias(x_NTD.shape[1])
        x_NTD = x_NTD + self.pos_conv_embed(x_NTD, valid_NT)
        if not self.pre_norm:
            x_NTD = self.layer_norm(x_NTD)
        x_NTD = self.dropout(x_NTD)

        if self.training and last_layer is not None and last_layer < len(self.layers):
            idle = [*self.layers[last_layer:], *([self.layer_norm] if self.pre_norm else [])]
            x_NTD = x_NTD + sum(map(zero_touch, idle))
        if rows_Q is not None and source_R is not None:
            rows_Q = source_R.index_select(0, rows_Q)  # the exchange after the last block
        outputs, blocks = [x_NTD], self.layers[:last_layer]
        for number, layer in enumerate(blocks, start=1):  # numbered from 1, as in the paper
            wanted_Q = rows_Q if number == len(blocks) else None
            if self.training and self.layerdrop > 0 and torch.rand((), generator=generator).item() < self.layerdrop:
                # the identity: taps and the parity of the exchanges do not change
                x_NTD = take_frames(x_NTD, wanted_Q) + zero_touch(layer)
                if self.position_bias is not None:  # shared by all blocks, which may all be skipped
                    x_NTD = x_NTD + zero_touch(self.position_bias)
            else:
                x_NTD = layer(x_NTD, key_mask, position_bias, wanted_Q)
            if source_R is not None and wanted_Q is None:
                x_NTD = swap(x_NTD.unflatten(0, (2, -1)), source_R).flatten(0, 1)
            if number == len(self.layers) and self.pre_norm:
                x_NTD = self.layer_norm(x_NTD)
            outputs.append(x_NTD)
            self._register_for_interctc(number, x_NTD, frames_N)
        return outputs

    def _register_for_interctc(self, number: int, x_BTD: Tensor, frames_B: Tensor) -> None:
        """Offer the output of a block to NeMo's intermediate CTC losses, which count blocks from 0."""
        if not self.is_access_enabled(getattr(self, "model_guid", None)):
            return
        if number - 1 in self.access_cfg.get("interctc", {}).get("capture_layers", []):
            self.register_accessible_tensor(name=f"interctc/layer_output_{number - 1}", tensor=x_BTD.transpose(1, 2))
            self.register_accessible_tensor(name=f"interctc/layer_length_{number - 1}", tensor=frames_B)
