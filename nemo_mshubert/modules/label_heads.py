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

"""Prediction heads of the label sets, and which transformer block each set supervises.

N rows (masked frames of the views that enter the loss), D width, E head width, K clusters.
"""

from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

INTERMEDIATE_LAYER = 0.4  # lowest supervised block as a share of all (ICASSP 2023 code of the first author)

SHORTEST = 1e-12  # the least divisor of F.normalize


def place_label_sets(
    label_sets: Sequence[int], num_layers: int, label_layers: Optional[Mapping[int, int]] = None
) -> Dict[int, int]:
    """Map block number (from 1) to cluster count: ``int(linspace(L, int(0.4 L), n))``, the finest set at the top.

    12 blocks and six sets give {12: 1000, 10: 500, 8: 250, 7: 125, 5: 50, 4: 25}.

    Args:
        label_sets: cluster counts, each once.
        num_layers: L, blocks of the encoder.
        label_layers: explicit map of block to cluster count; it must place exactly the sets of ``label_sets``.

    Raises:
        ValueError: duplicate sets, more sets than blocks to hold them, a set without a block, or an unknown block.
    """
    if not label_sets or len(set(label_sets)) != len(label_sets):
        raise ValueError(f"label_sets: expected different cluster counts, at least one; found {list(label_sets)}.")
    if label_layers is None:
        finest_first = sorted(label_sets, reverse=True)
        layers = [
            int(layer) for layer in torch.linspace(num_layers, int(INTERMEDIATE_LAYER * num_layers), len(label_sets))
        ]
        if len(set(layers)) != len(layers) or min(layers) < 1:
            raise ValueError(
                f"{len(label_sets)} label sets do not fit between blocks {int(INTERMEDIATE_LAYER * num_layers)} and "
                f"{num_layers}. Use fewer sets, or more blocks, or place them yourself with model.label_layers."
            )
        return dict(zip(layers, finest_first))
    try:
        label_layers = {int(layer): int(clusters) for layer, clusters in label_layers.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"label_layers {label_layers}: expected block numbers and cluster counts, as in {{12: 1000, 10: 500}}."
        ) from error
    if sorted(label_layers.values()) != sorted(label_sets):
        raise ValueError(
            f"label_layers places the sets {sorted(label_layers.values())} but label_sets are {sorted(label_sets)}: "
            "give every set exactly one block."
        )
    outside = [layer for layer in label_layers if not 1 <= layer <= num_layers]
    if outside:
        raise ValueError(f"label_layers: blocks {outside} do not exist; the encoder has blocks 1 to {num_layers}.")
    return label_layers


class LabelHead(nn.Module):
    """Cosine similarity of a projected frame with K label embeddings, divided by a temperature (HuBERT, eq. 3)."""

    def __init__(self, d_model: int, num_clusters: int, d_head: int, temperature: float):
        super().__init__()
        self.final_proj = nn.Linear(d_model, d_head)
        self.label_embeddings = nn.Parameter(torch.rand(num_clusters, d_head))  # fairseq: label_embs_concat ~ U(0, 1)
        self.temperature = temperature

    def forward(self, x_ND: Tensor) -> Tensor:
        """``[N, D]`` -> fp32 logits ``[N, K]``; one normalised product, never an ``[N, K, E]`` tensor."""
        return _CosineLogits.apply(self.final_proj(x_ND), self.label_embeddings, self.temperature)


class _CosineLogits(torch.autograd.Function):
    """``F.normalize(x_NE.float()) @ F.normalize(w_KE.float()).T / temperature``, in fp32 even under autocast.

    Autograd would run twice as many kernels for the gradients, most of them tiny, and keep two more fp32 tensors of
    the size of ``x_NE`` for each label set.
    """

    @staticmethod
    def forward(ctx, x_NE: Tensor, w_KE: Tensor, temperature: float) -> Tensor:
        length_N1, length_K1 = _length(x_NE), _length(w_KE) * temperature
        ctx.save_for_backward(x_NE, w_KE, length_N1, length_K1)
        ctx.temperature = temperature
        with torch.autocast(x_NE.device.type, enabled=False):
            return (x_NE / length_N1) @ (w_KE / length_K1).T

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_NK: Tensor) -> Tuple[Tensor, Tensor, None]:
        x_NE, w_KE, length_N1, length_K1 = ctx.saved_tensors
        a_NE, b_KE = x_NE / length_N1, w_KE / length_K1  # the factors of the product
        with torch.autocast(x_NE.device.type, enabled=False):
            of_a_NE, of_b_KE = gradient_NK @ b_KE, gradient_NK.T @ a_NE
        of_x_NE = _through_division(of_a_NE, a_NE, length_N1, 1.0)
        of_w_KE = _through_division(of_b_KE, b_KE, length_K1, ctx.temperature)
        return of_x_NE.to(x_NE.dtype), of_w_KE.to(w_KE.dtype), None


def _length(x: Tensor) -> Tensor:
    """Euclidean lengths ``[..., 1]`` of ``[..., E]`` in fp32 (of fp64 in fp64), at least `SHORTEST`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).clamp_(min=SHORTEST)


def _through_division(gradient: Tensor, quotient: Tensor, divisor: Tensor, scale: float) -> Tensor:
    """The gradient of ``x`` from that of ``quotient = x / divisor``, where ``divisor`` is ``scale`` times the length
    of ``x``. The component along ``x`` is removed: it changes only the length of ``x``, not the quotient."""
    along = (gradient * quotient).sum(dim=-1, keepdim=True)
    return gradient.addcmul(along, quotient, value=-(scale**2)) / divisor


class LabelHeads(nn.Module):
    """One `LabelHead` per label set, keyed by cluster count.

    Args:
        d_model: width of the encoder.
        label_sets: cluster counts.
        d_head: width of the projection (fairseq: final_dim; 256 base, 768 large).
        temperature: 0.1 (fairseq: logit_temp).
    """

    def __init__(self, d_model: int, label_sets: Sequence[int], d_head: int = 256, temperature: float = 0.1):
        super().__init__()
        self.heads = nn.ModuleDict({str(k): LabelHead(d_model, k, d_head, temperature) for k in label_sets})

    def forward(self, tapped_ND: Dict[int, Tensor]) -> Dict[int, Tensor]:
        """``{cluster count: [N, D]}`` -> ``{cluster count: logits [N, K]}``, for the sets given."""
        return {clusters: self.heads[str(clusters)](x_ND) for clusters, x_ND in tapped_ND.items()}

    def absent(self, used_sets: Sequence[int]) -> List[nn.Module]:
        """Heads of the sets that are not in ``used_sets``."""
        return [head for name, head in self.heads.items() if int(name) not in used_sets]
