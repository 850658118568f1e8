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

"""Transformer blocks whose linear layers megatron-core splits over the ranks of a tensor-parallel group.

Each of p ranks holds H / p heads and I / p inner units of every block; everything else is whole on every rank:

    x [B, T, D] --enter--> q, k, v: columns --> attention of H / p heads --> output: rows --leave--> + residual
                --enter--> first linear: columns --> GELU                --> second linear: rows --leave--> + residual

``enter`` is the identity, and its backward pass sums the gradient over the ranks; ``leave`` sums over the ranks. With
sequence parallelism, norms, residuals and dropout see T / p frames of each utterance: ``enter`` gathers the frames,
and ``leave`` sums and scatters them. Blocks begin and end with all frames, so Swap, label taps and the rest of the
encoder are the same as on one rank.

Names and shapes are those of `modules.transformer`, except in the dimension that is split (`split_dimension`):
concatenating the state dicts of p ranks gives a plain one.

Legend: B utterances (times views), T frames, D width, H heads, I inner width.
"""

import re
from contextlib import contextmanager
from dataclasses import replace
from typing import Dict, Iterator, Optional

import torch
from megatron.core import parallel_state
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_mshubert.modules.layer_norm import LayerNorm, layer_norm
from nemo_mshubert.modules.transformer import FeedForward, SelfAttention, TransformerBlock, take_frames

REMEDY = "Use parallel=megatron_tp2, _tp4 or _tp8, whichever divides it."
SPLIT = {  # name below a block: dimension of the tensor that is split
    r"attention\.[qkv]_proj\.(weight|bias)": 0,
    r"attention\.out_proj\.weight": 1,
    r"feed_forward\.intermediate_dense\.(weight|bias)": 0,
    r"feed_forward\.output_dense\.weight": 1,
}


def split_dimension(name: str) -> Optional[int]:
    """Dimension in which the tensor ``name`` of a state dict is split over the ranks; None if each holds it whole."""
    for pattern, dimension in SPLIT.items():
        if re.search(rf"(^|\.)layers\.\d+\.{pattern}$", name):
            return dimension
    return None


def split_tensor(tensor: Tensor, dimension: Optional[int]) -> Tensor:
    """This rank's part of a whole tensor."""
    if dimension is None:
        return tensor
    parts = tensor.chunk(parallel_state.get_tensor_model_parallel_world_size(), dimension)
    return parts[parallel_state.get_tensor_model_parallel_rank()]


def gather_tensor(tensor: Tensor, dimension: Optional[int]) -> Tensor:
    """The whole tensor on every rank; all ranks of the group must call it."""
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    if dimension is None or ranks == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(ranks)]
    torch.distributed.all_gather(parts, tensor.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts, dimension)


def split_state_dict(whole: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """This rank's part of a plain state dict."""
    return {name: split_tensor(tensor, split_dimension(name)) for name, tensor in whole.items()}


def gather_state_dict(parts: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The plain state dict from the parts of all ranks, on every rank."""
    return {name: gather_tensor(tensor, split_dimension(name)) for name, tensor in parts.items()}


def split_blocks(layers: nn.ModuleList, sequence_parallel: bool = False) -> None:
    """Replace every `TransformerBlock` by a `MegatronBlock`; the weights must be the same on all ranks.

    Raises:
        RuntimeError: ``megatron.core.parallel_state`` is not initialised.
        ValueError: heads or inner width are no multiple of the ranks, or blocks have relative positions (WavLM).
    """
    if not parallel_state.model_parallel_is_initialized():
        raise RuntimeError(
            "transformer_backend megatron needs its process groups: train with trainer.strategy=megatron_tp2 (or 4, "
            "8)."
        )
    for index, block in enumerate(layers):
        if not isinstance(block, MegatronBlock):
            layers[index] = MegatronBlock(block, sequence_parallel)


class MegatronBlock(TransformerBlock):
    """This rank's part of a `TransformerBlock`, on the device and in the dtype of its weights."""

    def __init__(self, block: TransformerBlock, sequence_parallel: bool):
        nn.Module.__init__(self)
        if type(block.attention) is not SelfAttention:
            raise ValueError(
                f"transformer_backend megatron: {type(block.attention).__name__} is not supported; use torch."
            )
        ranks = parallel_state.get_tensor_model_parallel_world_size()
        self.sequence_parallel = sequence_parallel and ranks > 1
        config = ModelParallelConfig(
            tensor_model_parallel_size=ranks,
            sequence_parallel=self.sequence_parallel,
            use_cpu_initialization=True,
            perform_initialization=False,
        )
        norm = SequenceParallelLayerNorm if self.sequence_parallel else LayerNorm
        self.pre_norm = block.pre_norm
        # In the order of TransformerBlock, because an optimizer numbers the parameters in this order
        self.attention = MegatronSelfAttention(block.attention, config)
        self.layer_norm = norm(len(block.layer_norm.weight))
        self.feed_forward = MegatronFeedForward(block.feed_forward, config)
        self.final_layer_norm = norm(len(block.final_layer_norm.weight))
        self.dropout = block.dropout
        example = block.layer_norm.weight
        self.to(device=example.device, dtype=example.dtype)
        for (name, parameter), (same_name, ours) in zip(
            block.named_parameters(), self.named_parameters(), strict=True
        ):
            assert name == same_name
            dimension = split_dimension(f"layers.0.{name}")
            ours.data.copy_(split_tensor(parameter.data, dimension))
            ours.tensor_model_parallel = dimension is not None  # Megatron's mark, for norms of gradients
            ours.requires_grad_(parameter.requires_grad)
        self.train(block.training)

    def forward(
        self,
        x_BTD: Tensor,
        key_mask_B11T: Optional[Tensor],
        position_bias: None = None,
        wanted_W: Optional[Tensor] = None,
    ) -> Tensor:
        """``[B, T, D]`` -> ``[B, T, D]``, or ``[W, D]`` for the frames ``wanted_W``; the same on all ranks.

        With sequence parallelism, a rank holds its share of every utterance's frames, so the block computes all
        frames.
        """
        if not self.sequence_parallel:
            return super().forward(x_BTD, key_mask_B11T, None, wanted_W)
        num_frames = x_BTD.shape[1]
        surplus = -num_frames % parallel_state.get_tensor_model_parallel_world_size()
        if surplus:  # frames that no frame attends to, so that all ranks have equally many
            x_BTD = F.pad(x_BTD, (0, 0, 0, surplus))
            if key_mask_B11T is None:
                key_mask_B11T = x_BTD.new_ones((1, 1, 1, num_frames), dtype=torch.bool)
            key_mask_B11T = F.pad(key_mask_B11T, (0, surplus), value=False)
        with own_random_numbers(self.training and self.dropout.p > 0):
            x_TBD = scatter_to_sequence_parallel_region(x_BTD.transpose(0, 1).contiguous())  # [T / p, B, D]
            x_TBD = super().forward(x_TBD, key_mask_B11T)
            x_TBD = gather_from_sequence_parallel_region(x_TBD.contiguous(), tensor_parallel_output_grad=False)
        return take_frames(x_TBD.transpose(0, 1)[:, :num_frames], wanted_W)


class MegatronSelfAttention(SelfAttention):
    """The attention core of `SelfAttention` over this rank's heads."""

    def __init__(self, whole: SelfAttention, config: ModelParallelConfig):
        nn.Module.__init__(self)
        ranks, d_model = config.tensor_model_parallel_size, whole.q_proj.in_features
        if whole.num_heads % ranks:
            raise ValueError(
                f"{whole.num_heads} attention heads cannot be split over {ranks} tensor-parallel ranks. {REMEDY}"
            )
        self.num_heads, self.dropout = whole.num_heads // ranks, whole.dropout
        self.k_proj, self.v_proj, self.q_proj = (Columns(d_model, d_model, config) for _ in range(3))
        self.out_proj = Rows(d_model, d_model, config)
        self.sequence_parallel = config.sequence_parallel

    def forward(
        self,
        x: Tensor,
        key_mask_B11T: Optional[Tensor],
        position_bias: None = None,
        wanted_W: Optional[Tensor] = None,
    ) -> Tensor:
        """``[B, T, D]`` -> the same, or ``[W, D]``; sequence-parallel: ``[T / p, B, D]`` -> the same."""
        x_BTD = enter(x, self.sequence_parallel)
        with own_random_numbers(self.training and self.dropout > 0):
            return super().forward(x_BTD, key_mask_B11T, None, wanted_W)


class MegatronFeedForward(FeedForward):
    """This rank's inner units."""

    def __init__(self, whole: FeedForward, config: ModelParallelConfig):
        nn.Module.__init__(self)
        ranks, linear = config.tensor_model_parallel_size, whole.intermediate_dense
        if linear.out_features % ranks:
            raise ValueError(
                f"d_inner {linear.out_features} cannot be split over {ranks} tensor-parallel ranks. {REMEDY}"
            )
        self.intermediate_dense = Columns(linear.in_features, linear.out_features, config)
        self.output_dense = Rows(linear.out_features, linear.in_features, config)
        self.activation_dropout = whole.activation_dropout
        self.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D]`` (sequence-parallel: ``[T / p, B, D]``) -> the same."""
        x_BTD = enter(x, self.sequence_parallel)
        with own_random_numbers(self.training and self.activation_dropout > 0):
            return super().forward(x_BTD)


def enter(x: Tensor, sequence_parallel: bool) -> Tensor:
    """All frames ``[B, T, D]``, as input to `Columns` that share one reduction of their gradients."""
    if sequence_parallel:
        return gather_from_sequence_parallel_region(x.contiguous(), tensor_parallel_output_grad=True).transpose(0, 1)
    return copy_to_tensor_model_parallel_region(x)


class _PlainState:
    """Leaves out Megatron's empty ``_extra_state`` entries, which a plain state dict lacks."""

    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state

    def _forget_extra_state(self) -> None:
        self._load_state_dict_pre_hooks.clear()


class Columns(_PlainState, ColumnParallelLinear):
    """``[..., D]`` -> this rank's ``[..., E / p]`` output features; `enter` reduces the gradient of the input."""

    def __init__(self, in_features: int, out_features: int, config: ModelParallelConfig):
        super().__init__(
            in_features,
            out_features,
            config=replace(config, sequence_parallel=False),  # `enter` has gathered the frames
            init_method=None,  # the weights are given
            disable_grad_reduce=True,
            skip_bias_add=True,
        )
        self._forget_extra_state()

    def forward(self, x: Tensor) -> Tensor:
        y, bias = super().forward(x)
        return y + bias.to(y.dtype)  # added in fp32, it would turn all that follows to fp32 under autocast


class Rows(_PlainState, RowParallelLinear):
    """This rank's ``[..., D / p]`` input features -> ``[..., E]``; with sequence parallelism ``[B, T, D / p]`` ->
    ``[T / p, B, E]``."""

    def __init__(self, in_features: int, out_features: int, config: ModelParallelConfig):
        super().__init__(
            in_features,
            out_features,
            config=config,
            init_method=None,
            bias=True,
            input_is_parallel=True,
            skip_bias_add=True,
        )
        self._forget_extra_state()

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.sequence_parallel:
            y, bias = super().forward(x_BTD)
            return y + bias.to(y.dtype)
        y, bias = super().forward(x_BTD.transpose(0, 1).contiguous())
        return y + copy_to_tensor_model_parallel_region(bias).to(y.dtype)  # its gradient comes from this rank's frames


class SequenceParallelLayerNorm(LayerNorm):
    """LayerNorm of this rank's frames; the gradients of its weights are summed over the ranks."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, *map(copy_to_tensor_model_parallel_region, (self.weight, self.bias)))


@contextmanager
def own_random_numbers(needed: bool) -> Iterator[None]:
    """If ``needed``, draw dropout from a stream of this rank, since ranks hold different units or frames here.

    Outside, the streams of all ranks stay the same, so that dropout of whole tensors is the same on all ranks. The
    seed is drawn from the common CPU stream, so a resumed run repeats it.
    """
    if not needed or parallel_state.get_tensor_model_parallel_world_size() == 1:
        yield
        return
    seed = int(torch.randint(2**62, ())) + parallel_state.get_tensor_model_parallel_rank()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        yield
