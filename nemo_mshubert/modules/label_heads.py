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

from typing import Dict, List, Mapping, Optional, Sequence

import torch
from nemo.core.classes import NeuralModule
from torch import Tensor, nn
from torch.nn import functional as F

INTERMEDIATE_LAYER = (
    0.4  # lowest supervised block as a share of all (hubert-facts: ICASSP 2023 code of the first author)
)


def place_label_sets(
    label_sets: Sequence[int], num_layers: int, label_layers: Optional[Mapping[int, int]] = None
) -> Dict[int, int]:
    """Map block number (from 1) to cluster count: ``int(linspace(L, int(0.4 L), n))``, the finest set at the top.

    12 blocks and six sets give {12: 1000, 10: 500, 8: 250, 7: 125, 5: 50, 4: 25}.

    Args:
        label_sets: cluster counts, each once.
        num_layers: L, blocks of the encoder.
        label_layers: explicit map of block to cluster count; must place exactly ``label_sets``.

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
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"label_layers {dict(label_layers)}: expected block numbers and cluster counts, as in "
            "{12: 1000, 10: 500}."
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
        projected_NE = self.final_proj(x_ND)
        with torch.autocast(x_ND.device.type, enabled=False):
            projected_NE = F.normalize(projected_NE.float(), dim=-1)
            embeddings_KE = F.normalize(self.label_embeddings.float(), dim=-1)
            return projected_NE @ embeddings_KE.T / self.temperature


class LabelHeads(NeuralModule):
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
        """Cluster count -> ``[N, D]`` gives cluster count -> logits ``[N, K]``, for the sets given."""
        return {clusters: self.heads[str(clusters)](x_ND) for clusters, x_ND in tapped_ND.items()}

    def absent(self, used_sets: Sequence[int]) -> List[nn.Module]:
        """Heads of the sets that are not in ``used_sets``."""
        return [head for name, head in self.heads.items() if int(name) not in used_sets]
