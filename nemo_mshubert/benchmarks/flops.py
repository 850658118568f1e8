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

"""Floating-point operations of a pre-training step, counted from its mathematics and not from what an implementation
repeats or saves."""

from typing import Any, Mapping, Sequence

from nemo_mshubert.modules.frames import frame_count


def forward_flops(
    encoder: Mapping[str, Any],
    num_rows: int,
    num_samples: int,
    num_views: int,
    num_masked: int,
    label_sets: Sequence[int],
    d_head: int,
) -> float:
    """FLOPs of one forward pass over ``num_rows`` utterances of ``num_samples`` samples; a multiply-add is two.

    With T frames, width D, inner width I, V views, M masked frames over all utterances, head width E and K clusters:

        convolutions    sum over layers of  2 T_out C_in C_out kernel           (once, not per view)
        projection      2 T C D
        positions       V 2 T D (D / groups) kernel
        a block         V T (8 D^2 + 4 D I + 4 T D)             (q, k, v, output; feed-forward; attention)
        a head          V M (2 D E + 2 E K)

    Norms, activations, softmax and the optimizer are memory-bound and, as usual, left out.

    Args:
        encoder: arguments of `MSHuBERTEncoder`.
        num_views: 2 with Swap.
        num_masked: number of masked frames in the batch.
    """
    layers = encoder["conv_layers"]
    channels, samples, convolutions = 1, num_samples, 0.0
    for width, kernel, stride in layers:
        samples = (samples - kernel) // stride + 1
        convolutions += 2.0 * samples * channels * width * kernel
        channels = width
    frames = frame_count(num_samples, [(kernel, stride) for _, kernel, stride in layers])
    d_model, d_inner = encoder["d_model"], encoder["d_inner"]
    projection = 2.0 * frames * channels * d_model
    positions = 2.0 * frames * d_model * (d_model / encoder["pos_conv_groups"]) * encoder["pos_conv_kernel"]
    block = frames * (8.0 * d_model**2 + 4.0 * d_model * d_inner + 4.0 * frames * d_model)
    per_row = convolutions + projection + num_views * (positions + encoder["num_layers"] * block)
    heads = num_views * num_masked * sum(2.0 * d_model * d_head + 2.0 * d_head * clusters for clusters in label_sets)
    return num_rows * per_row + heads


def step_flops(*args: Any, **kwargs: Any) -> float:
    """FLOPs of forward and backward pass: three times `forward_flops`, since the gradients of inputs and of weights
    cost as much as a forward pass each.

    These are model FLOPs, not hardware FLOPs: the repeated forward pass of activation checkpointing does not count.
    """
    return 3.0 * forward_flops(*args, **kwargs)
