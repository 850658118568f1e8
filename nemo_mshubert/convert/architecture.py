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

"""The encoder's config: inferred from names and shapes of its tensors as far as possible, the rest from a config file.

Tensors do not show strides, the number of heads (except WavLM's), pre- or post-LN, and whether input is normalised. If
the source states a value that contradicts the tensors, that is an error. If it does not state a value, that of the
published models is assumed, and the assumption is reported.
"""

import re
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor

from nemo_mshubert.convert.tables import NameOf
from nemo_mshubert.modules.frames import HUBERT_KERNELS_AND_STRIDES
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder
from nemo_mshubert.modules.state_dicts import misfits

# Width -> heads: base, large, x-large and XLS-R 1B, XLS-R 2B. (hubert-xlarge has 16 heads of 80.)
PUBLISHED_HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}
HEAD_WIDTH = 64  # for other widths
WAVLM_MAX_DISTANCE = 800  # frames

_CONV = "feature_extractor.conv_layers.{}.conv.weight"
_POS_CONV = "pos_conv_embed.conv.parametrizations.weight.original1"
_STACKED_POS_CONV = "pos_conv_embed.layers.0.conv.weight"
_BUCKETS = "position_bias.embedding.weight"
# argument -> the tensor that shows it, if it is a single one
_WITNESSES = {
    "conv_norm": "feature_extractor.conv_layers.1.layer_norm.weight",
    "conv_bias": "feature_extractor.conv_layers.0.conv.bias",
    "d_model": "feature_projection.projection.weight",
    "d_inner": "layers.0.feed_forward.intermediate_dense.weight",
    "position_buckets": _BUCKETS,
    "num_heads": _BUCKETS,
}


def infer_architecture(
    weights: Mapping[str, Tensor], declared: Mapping[str, Any], name_of: NameOf, where: str
) -> Tuple[Dict[str, Any], List[str]]:
    """Arguments of `MSHuBERTEncoder`, and the assumptions that were made.

    Args:
        weights: tensors of the encoder, under our names.
        declared: arguments that the source's config states.
        name_of: our name of a tensor -> the source's, for messages.
        where: the file, for messages.

    Raises:
        ValueError: a tensor is missing, or one contradicts ``declared``.
    """
    finder = Finder(weights, name_of, where)
    found = {"conv_layers": finder.conv_layers(declared.get("conv_layers")), **finder.sizes()}
    for argument, value in found.items():
        if argument in declared and declared[argument] != value:
            raise ValueError(
                f"{where}: its config says {argument} {declared[argument]}, its tensors say {value} "
                f"({finder.witness(argument, declared[argument], value)}). The config is of another model, or the "
                "file is incomplete."
            )
    return _assume({**declared, **found})


def _assume(known: Dict[str, Any]) -> Tuple[Dict[str, Any], List[str]]:
    """Arguments that neither tensors nor config show, as in the published models, and notes about them."""
    notes = []
    if "num_heads" not in known:
        known["num_heads"] = published_heads(known["d_model"])
        notes.append(
            f"assumed {known['num_heads']} attention heads, as published models of width {known['d_model']} have"
        )
    if "pre_norm" not in known:  # data2vec is post-LN although its front end has LayerNorms
        known["pre_norm"] = known["conv_norm"] == "layer_norm" and "pos_conv_depth" not in known
        notes.append(
            f"assumed {'pre' if known['pre_norm'] else 'post'}-LN blocks, as published models of its front end"
        )
    if "position_buckets" in known and "position_max_distance" not in known:
        known["position_max_distance"] = WAVLM_MAX_DISTANCE
    return known, notes


def published_heads(d_model: int) -> int:
    """Number of attention heads of the published models of this width; for other widths, heads of the usual width."""
    return PUBLISHED_HEADS.get(d_model) or max(d_model // HEAD_WIDTH, 1)


def blank_weights(encoder: Mapping[str, Any]) -> Dict[str, Tensor]:
    """The state dict of ``MSHuBERTEncoder(**encoder)``, with shapes but without values."""
    with torch.device("meta"):
        return MSHuBERTEncoder(**encoder).state_dict()


def check_weights(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], name_of: NameOf, where: str) -> None:
    """Check that ``weights`` has exactly the tensors of ``own``, an encoder's state dict, in these shapes and finite.

    Raises:
        ValueError: they differ; the message names the tensor as the source spells it.
    """
    own, weights = ({name_of(name): tensor for name, tensor in state.items()} for state in (own, weights))
    if found := misfits(own, weights):
        raise ValueError(
            f"{where}: {'; '.join(found)}, by what other tensors tell of the encoder. The file is incomplete or "
            "changed; get it again."
        )
    check_finite(weights, where)


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raise ``ValueError`` with the name of a tensor that holds NaN or infinity."""
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{where}: {name} holds NaN or infinity: a broken or diverged checkpoint. Get another one."
            )


class Finder:
    """Reads sizes from the shapes of tensors."""

    def __init__(self, weights: Mapping[str, Tensor], name_of: NameOf, where: str):
        self.weights, self.name_of, self.where = weights, name_of, where

    def conv_layers(self, declared: Optional[List[List[int]]]) -> List[List[int]]:
        """``[channels, kernel, stride]`` per convolution; strides as declared, else HuBERT's."""
        number = max(self.count(r"feature_extractor\.conv_layers\.(\d+)\."), len(declared or ()))
        shapes = [self.shape(_CONV.format(index), 3) for index in range(number)]
        kernels = [kernel for _, _, kernel in shapes]
        if declared:
            strides = [stride for _, _, stride in declared]
        elif kernels == [kernel for kernel, _ in HUBERT_KERNELS_AND_STRIDES]:
            strides = [stride for _, stride in HUBERT_KERNELS_AND_STRIDES]
        else:
            raise ValueError(
                f"{self.where}: kernels {kernels} are not HuBERT's, so the strides must come from a config file, and "
                "there is none."
            )
        return [[channels, kernel, stride] for (channels, _, kernel), stride in zip(shapes, strides)]

    def sizes(self, stack: str = "") -> Dict[str, Any]:
        """All other arguments that the tensors show. ``stack`` is the prefix of the first stack of blocks, if there
        are several."""
        d_model, _ = self.shape("feature_projection.projection.weight", 2)
        every_conv_has_a_norm = self.has("feature_extractor.conv_layers.1.layer_norm.weight")
        return {
            "conv_norm": "layer_norm" if every_conv_has_a_norm else "group_norm",
            "conv_bias": self.has("feature_extractor.conv_layers.0.conv.bias"),
            "d_model": d_model,
            "num_layers": self.count(rf"{re.escape(stack)}layers\.(\d+)\."),
            "d_inner": self.shape(f"{stack}layers.0.feed_forward.intermediate_dense.weight", 2)[0],
            **self.positions(d_model, stack),
        }

    def positions(self, d_model: int, stack: str) -> Dict[str, Any]:
        stacked = self.has(_STACKED_POS_CONV)
        _, per_group, kernel = self.shape(stack + (_STACKED_POS_CONV if stacked else _POS_CONV), 3)
        found = {"pos_conv_kernel": kernel, "pos_conv_groups": d_model // max(per_group, 1)}
        if stacked:
            found["pos_conv_depth"] = self.count(r"pos_conv_embed\.layers\.(\d+)\.")
        if self.has(_BUCKETS):
            found["position_buckets"], found["num_heads"] = self.shape(_BUCKETS, 2)
        return found

    def witness(self, argument: str, declared: Any, found: Any) -> str:
        """Name of the tensor that shows an argument, and its shape if it exists."""
        name = _WITNESSES.get(argument, "")
        if argument == "conv_layers":
            differ = [index for index, (one, other) in enumerate(zip(declared, found)) if list(one) != other]
            name = _CONV.format(differ[0] if differ else len(declared))
        elif argument == "num_layers":
            name = f"layers.{min(declared, found)}.attention.q_proj.weight"
        elif argument.startswith("pos_conv"):
            name = _STACKED_POS_CONV if self.has(_STACKED_POS_CONV) else _POS_CONV
        shape = list(self.weights[name].shape) if self.has(name) else "absent"
        return f"{self.name_of(name)}: {shape}"

    def has(self, name: str) -> bool:
        return name in self.weights

    def shape(self, name: str, dimensions: int) -> List[int]:
        if name not in self.weights:
            raise ValueError(
                f"{self.where}: missing tensor {self.name_of(name)}. The file is incomplete; get it again."
            )
        shape = list(self.weights[name].shape)
        if len(shape) != dimensions:
            raise ValueError(f"{self.where}: {self.name_of(name)} is {shape}, expected {dimensions} dimensions.")
        return shape

    def count(self, pattern: str) -> int:
        """One more than the largest number that ``pattern`` finds in the names."""
        numbers = [int(match[1]) for match in (re.match(pattern, name) for name in self.weights) if match]
        return max(numbers, default=-1) + 1
