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

"""What pre-training reports about its predictions at masked and at visible frames, per label set K, and about the two
views.

A prediction is a pair: logits ``{K: [N, K]}`` and labels, ``[N]`` per set in the same order. Validation adds up sums
over batches and ranks before it divides.
"""

from typing import Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from nemo_mshubert.modules.frames import IGNORED_LABEL
from nemo_mshubert.modules.mshubert_encoder import Views

Prediction = Tuple[Dict[int, Tensor], List[Tensor]]


def training_metrics(masked: Prediction, visible: Prediction, set_losses: List[Tensor]) -> Dict[str, Tensor]:
    """Metrics of one micro-batch and its kept sets; ``set_losses`` are sums over the masked frames."""
    metrics, (logits, targets) = {}, masked
    count, num_visible = (_num_labelled(labels[0]).clamp(min=1) for labels in (targets, visible[1]))
    for clusters, target, shown, loss in zip(logits, targets, visible[1], set_losses):
        metrics[f"train_{clusters}/loss"] = loss.detach() / count
        metrics[f"train_{clusters}/masked_accuracy"] = _num_correct(logits[clusters], target) / count
        metrics[f"train_{clusters}/unmasked_accuracy"] = _num_correct(visible[0][clusters], shown) / num_visible
        metrics[f"train_{clusters}/label_entropy_bits"] = _entropy_bits(_histogram(target, clusters))
    return metrics


def validation_sums(
    masked: Prediction, visible: Prediction, set_losses: List[Tensor], count: Tensor
) -> Dict[str, Tensor]:
    """Sums over one batch; ``count`` is the number of labelled masked rows, over which ``set_losses`` are sums."""
    sums, (logits, targets) = {"masked": count, "unmasked": _num_labelled(visible[1][0])}, masked
    for clusters, target, shown, loss in zip(logits, targets, visible[1], set_losses):
        sums[f"{clusters}/loss"] = loss
        sums[f"{clusters}/correct"] = _num_correct(logits[clusters], target)
        sums[f"{clusters}/visible_correct"] = _num_correct(visible[0][clusters], shown)
        sums[f"{clusters}/histogram"] = _histogram(target, clusters)
        sums[f"{clusters}/predicted"] = _histogram(logits[clusters].argmax(dim=-1), clusters)
    return sums


def view_cosines(views: Views, masked_M: Tensor, visible_U: Tensor) -> Dict[str, Tensor]:
    """Sums over frames of the cosine between the two views after each tapped block, and counts of frames. Without Swap
    there are no cosines.

    Args:
        masked_M, visible_U: indices of frames into ``B * T``.
    """
    frames = {"masked": masked_M, "unmasked": visible_U}
    sums = {f"{kind}_frames": _length(index) for kind, index in frames.items()}
    for layer, x_VBTD in views.tapped.items():
        if len(x_VBTD) == 2:
            cosine_R = torch.cosine_similarity(*x_VBTD.float().flatten(1, 2), dim=-1)  # R = B * T
            sums.update({f"{kind}_cosine_{layer}": cosine_R[index].sum() for kind, index in frames.items()})
    return sums


def validation_means(sums: Dict[str, Tensor], label_sets: Sequence[int]) -> Dict[str, Tensor]:
    """Means from the `validation_sums` and `view_cosines` of all batches; ``val_loss`` is summed over label sets."""
    log, masked, unmasked = {}, sums["masked"].clamp(min=1), sums["unmasked"].clamp(min=1)
    for clusters in label_sets:
        log[f"val_{clusters}/loss"] = sums[f"{clusters}/loss"] / masked
        log[f"val_{clusters}/masked_accuracy"] = sums[f"{clusters}/correct"] / masked
        log[f"val_{clusters}/unmasked_accuracy"] = sums[f"{clusters}/visible_correct"] / unmasked
        log[f"val_{clusters}/label_entropy_bits"] = _entropy_bits(sums[f"{clusters}/histogram"])
        log[f"val_{clusters}/predicted_entropy_bits"] = _entropy_bits(sums[f"{clusters}/predicted"])
        log[f"val_{clusters}/predicted_codes"] = (sums[f"{clusters}/predicted"] > 0).sum().double()
    for name in (name for name in sums if "cosine" in name):
        log[f"val_views/{name}"] = sums[name] / sums[f"{name.split('_')[0]}_frames"].clamp(min=1)
    return {"val_loss": sum(log[f"val_{clusters}/loss"] for clusters in label_sets), **log}


def _length(x: Tensor) -> Tensor:
    return torch.tensor(len(x), device=x.device)


def _num_labelled(labels_N: Tensor) -> Tensor:
    return (labels_N != IGNORED_LABEL).sum()


def _num_correct(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    return (logits_NK.argmax(dim=-1) == labels_N).sum()


def _histogram(labels_N: Tensor, clusters: int) -> Tensor:
    return torch.bincount(labels_N[labels_N != IGNORED_LABEL], minlength=clusters)


def _entropy_bits(counts_K: Tensor) -> Tensor:
    """Entropy of the labels in use: log2(K) if all are equally frequent, 0 if only one label occurs."""
    shares = counts_K.double() / counts_K.sum().clamp(min=1)
    return -torch.xlogy(shares, shares).sum() / torch.log(torch.tensor(2.0, dtype=torch.float64))
