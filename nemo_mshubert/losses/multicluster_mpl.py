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

"""Multicluster masked prediction loss, section 2.2.2 of the paper.

N rows: masked frames of the views that enter the loss. K clusters of a set.
"""

from typing import Dict, List, Tuple

import torch
from nemo.core.classes import Loss, typecheck
from nemo.core.neural_types import LabelsType, LogitsType, LossType, NeuralType
from torch import Tensor
from torch.nn import functional as F

from nemo_mshubert.modules.frames import IGNORED_LABEL


class MulticlusterMPLLoss(Loss):
    """Sum over label sets of the cross-entropy at masked frames, plus the feature penalty.

    `forward` returns a sum and a count. Divided by the count over all ranks and accumulated micro-batches, the sum is
    the mean over masked frames per set, summed over sets, plus ``penalty_weight`` times the mean square of the
    convolutional output. fairseq (``loss_weights: [10]``), too, scales this penalty by the number of masked frames
    before it normalises.

    Args:
        penalty_weight: 10 in HuBERT.
    """

    def __init__(self, penalty_weight: float = 10.0):
        super().__init__()
        self.penalty_weight = penalty_weight

    @property
    def input_types(self) -> Dict[str, NeuralType]:
        return {
            "logits": [NeuralType(("B", "D"), LogitsType())],
            "labels": [NeuralType(tuple("B"), LabelsType())],
            "feature_penalty": NeuralType(None, LossType()),
        }

    @property
    def output_types(self) -> Dict[str, NeuralType]:
        return {
            "loss_sum": NeuralType(None, LossType()),
            "set_losses": [NeuralType(None, LossType())],
            "count": NeuralType(None, LossType()),
        }

    @typecheck()
    def forward(
        self, logits: List[Tensor], labels: List[Tensor], feature_penalty: Tensor
    ) -> Tuple[Tensor, List[Tensor], Tensor]:
        """
        Args:
            logits: per kept set ``[N, K]``.
            labels: per kept set ``[N]``, ``IGNORED_LABEL`` where a frame has none (the same frames in every set).
            feature_penalty: scalar.

        Returns:
            loss_sum (scalar: sum over sets and rows, penalty included), sum of each set, number of labelled rows.
        """
        set_losses = [
            F.cross_entropy(logits_NK.float(), labels_N, ignore_index=IGNORED_LABEL, reduction="sum")
            for logits_NK, labels_N in zip(logits, labels)
        ]
        count = (labels[0] != IGNORED_LABEL).sum()
        loss_sum = torch.stack(set_losses).sum() + self.penalty(feature_penalty, count)
        return loss_sum, set_losses, count

    def penalty(self, feature_penalty: Tensor, count: Tensor) -> Tensor:
        """The feature penalty that ``count`` rows add to the sum."""
        return self.penalty_weight * feature_penalty.float() * count
