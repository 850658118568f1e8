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

"""Rejects options of `MSHuBERTModel` that cannot be met, or that contradict each other or the label maker."""

from typing import Dict

from omegaconf import DictConfig, OmegaConf

from nemo_mshubert.clustering.label_maker import LabelMaker
from nemo_mshubert.modules.frames import HUBERT_KERNELS_AND_STRIDES
from nemo_mshubert.modules.label_heads import place_label_sets
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder

LOSS_VIEWS = ("both", "masked_stream", "first_view")


def layer_of_each_set(cfg: DictConfig, label_maker: LabelMaker) -> Dict[int, int]:
    """Cluster count -> block; raises ``ValueError`` for sets that the label maker lacks, or that have no block."""
    if not OmegaConf.is_list(cfg.label_sets):
        raise ValueError(f"model.label_sets={cfg.label_sets}: expected a list of numbers, as in [500,250].")
    unknown = set(cfg.label_sets) - set(label_maker.sets)
    if unknown:
        raise ValueError(
            f"model.label_sets {sorted(unknown)} are not in the label maker {cfg.label_maker}, which has "
            f"{label_maker.sets}. Give the k-means file that has them, or set model.label_sets. Coarser sets "
            "of a published k-means: scripts/fit_kmeans.py --centres."
        )
    placed = place_label_sets(cfg.label_sets, cfg.encoder.num_layers, cfg.get("label_layers"))
    return {clusters: layer for layer, clusters in placed.items()}


def check_training(cfg: DictConfig) -> None:
    """Raise ``ValueError`` for a training option that cannot be met."""
    for name in ("swap", "compile"):
        if cfg.get(name) not in (True, False, None):  # Hydra reads "no" and "off" as words, which count as true
            raise ValueError(f"model.{name}={cfg[name]}: expected true or false.")
    if cfg.loss_views not in LOSS_VIEWS:
        raise ValueError(f"model.loss_views: expected one of {LOSS_VIEWS}, found {cfg.loss_views!r}.")
    if not 0 <= cfg.drop_label_sets < len(cfg.label_sets):
        raise ValueError(
            f"model.drop_label_sets: {cfg.drop_label_sets} of {len(cfg.label_sets)} sets; at least one must be kept."
        )
    if cfg.masking.mask_prob <= 0 or cfg.masking.mask_length < 1:
        raise ValueError(
            f"model.masking: mask_prob {cfg.masking.mask_prob} with mask_length {cfg.masking.mask_length} masks no "
            "frame, and val_loss, which is of masked frames, would be 0. Both must be above 0."
        )


def check_parts(cfg: DictConfig, encoder: MSHuBERTEncoder) -> None:
    """Raise ``ValueError`` for an encoder whose frames are not HuBERT's, or heads that do not fit it or the sets."""
    if tuple(encoder.feature_extractor.kernels_and_strides) != HUBERT_KERNELS_AND_STRIDES:
        raise ValueError(
            f"model.encoder.conv_layers={cfg.encoder.conv_layers}: labels and masks are of HuBERT's frames, so "
            f"(kernel, stride) must be {HUBERT_KERNELS_AND_STRIDES}. Channels may be others."
        )
    for name, source, value in (
        ("d_model", "model.encoder.d_model", encoder.d_model),
        ("label_sets", "model.label_sets", cfg.label_sets),
    ):
        if cfg.label_heads[name] != value:
            raise ValueError(
                f"model.label_heads.{name}={cfg.label_heads[name]}: it follows from {source}, which is {value}. "
                "Remove it, or set that."
            )
