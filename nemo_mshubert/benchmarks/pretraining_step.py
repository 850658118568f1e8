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

"""Speed of the pre-training step beside its peers: ratios of things measured in one run on the same batch.

Rows, each the median of interleaved steps (forward, loss, backward, clip, AdamW):

    ours                 `MSHuBERTEncoder` with Swap, six heads, loss at both views
    ours, no Swap        the masked view alone
    ours, one head       Swap, the finest label set only
    transformers         the modules of ``HubertModel`` with the same Swap, heads, loss and masks
    torchaudio           the modules of ``hubert_pretrain_base`` likewise; not measured where it is not installed

The utilisation is `flops.step_flops` per second over the FLOP/s of a large matrix product in the same precision on the
same machine, measured in the same run. Memory is what a step adds, with weights, gradients and moments.
"""

from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Sequence

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import nn

from nemo_mshubert.benchmarks.flops import step_flops
from nemo_mshubert.benchmarks.measurement import Column, Row, matmul_flops, median_seconds, peak_gib
from nemo_mshubert.benchmarks.peers import PEERS
from nemo_mshubert.data.manifest import SAMPLE_RATE
from nemo_mshubert.losses.multicluster_mpl import MulticlusterMPLLoss
from nemo_mshubert.modules.frames import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES
from nemo_mshubert.modules.label_heads import LabelHeads, place_label_sets
from nemo_mshubert.modules.masking import span_mask
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder

COLUMNS = [
    Column("size", "size"),
    Column("batch_seconds", "batch, s", ".1f"),
    Column("row", "step"),
    Column("seconds", "seconds", ".3f"),
    Column("audio_seconds_per_second", "audio-s/s", ".1f"),
    Column("time_over_ours", "time / ours", ".2f"),
    Column("utilisation", "model FLOPs / matmul FLOPs", ".1%"),
    Column("peak_gib", "peak GiB", ".2f"),
]


class Batch:
    """Random audio of equal length, masks and labels of the finest set.

    Args:
        seconds: of audio; rounded down to whole utterances, at least one.
        utterance_seconds: of each; rounded down to the frame grid.
    """

    def __init__(self, seconds: float, utterance_seconds: float, config: DictConfig, device: torch.device):
        self.num_frames = int(utterance_seconds * SAMPLE_RATE - RECEPTIVE_FIELD_SAMPLES) // HOP_SAMPLES + 1
        self.num_rows = max(1, int(seconds / utterance_seconds))
        self.num_samples = (self.num_frames - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES
        masking = config.model.masking
        mask_BT = span_mask([self.num_frames] * self.num_rows, masking.mask_prob, masking.mask_length)
        self.num_masked = int(mask_BT.sum())
        self.audio = 0.1 * torch.randn(self.num_rows, 1, self.num_samples, device=device)
        self.length = torch.full((self.num_rows,), self.num_samples, device=device)
        self.mask_BT = mask_BT.to(device)
        self.labels_BT = torch.randint(max(config.model.label_sets), mask_BT.shape, device=device)

    @property
    def seconds(self) -> float:
        return self.num_rows * self.num_samples / SAMPLE_RATE


class Step:
    """One training step on a fixed batch, in bf16 on a GPU and in fp32 on a CPU."""

    def __init__(
        self, encoder: nn.Module, config: DictConfig, batch: Batch, label_sets: Sequence[int], use_swap: bool
    ):
        device = batch.audio.device
        model = config.model
        self.encoder = encoder.to(device).train()
        placed = place_label_sets(label_sets, model.encoder.num_layers)
        self.layer_of_set = {clusters: layer for layer, clusters in placed.items()}
        self.heads = LabelHeads(model.encoder.d_model, label_sets, model.label_heads.d_head).to(device)
        self.loss = MulticlusterMPLLoss(model.loss.penalty_weight)
        self.use_swap = use_swap
        self.parameters = [*self.encoder.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, fused=device.type == "cuda")
        self.batch = batch

    def __call__(self) -> None:
        batch, on_gpu = self.batch, self.batch.audio.is_cuda
        with torch.autocast(batch.audio.device.type, torch.bfloat16, enabled=on_gpu):
            views = self.encoder.forward_views(
                batch.audio, batch.length, batch.mask_BT, self.layer_of_set.values(), self.use_swap
            )
            rows = {k: views.tapped[layer][:, batch.mask_BT].flatten(0, 1) for k, layer in self.layer_of_set.items()}
            logits = self.heads(rows)
            num_views = 2 if self.use_swap else 1
            labels = [(batch.labels_BT % k)[batch.mask_BT].repeat(num_views) for k in logits]
            loss, _, count = self.loss(
                logits=list(logits.values()), labels=labels, feature_penalty=views.feature_penalty
            )
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def benchmark(
    configs: Path,
    sizes: Sequence[str],
    batch_seconds: Sequence[float],
    utterance_seconds: float,
    repeats: int,
    device: torch.device,
) -> List[Row]:
    """Rows of every size and batch.

    Args:
        configs: folder of ``mshubert_<size>.yaml``, from which encoder, heads and masks are taken.
        batch_seconds: of audio in a batch; a row whose batch does not fit the GPU says so.
        utterance_seconds: of each utterance of a batch.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    reachable = matmul_flops(device, dtype)
    rows = []
    for size in sizes:
        config = load_config(configs, size)
        for seconds in batch_seconds:
            batch = Batch(seconds, utterance_seconds, config, device)
            rows += batch_rows(size, config, batch, repeats, reachable)
    return rows


def load_config(configs: Path, size: str) -> DictConfig:
    """``mshubert_<size>`` without layerdrop: a skipped block would make the steps unequal."""
    with initialize_config_dir(str(configs), version_base=None):
        return compose(f"mshubert_{size}", overrides=["model.encoder.layerdrop=0"])


def batch_rows(size: str, config: DictConfig, batch: Batch, repeats: int, reachable_flops: float) -> List[Row]:
    """The rows of one size and batch; ``reachable_flops`` are those of `matmul_flops`."""
    options, device = encoder_options(config), batch.audio.device
    rows, steps = {}, {}
    for name, variant in variants(options, list(config.model.label_sets)).items():
        rows[name] = {"size": size, "batch_seconds": batch.seconds, "row": name}
        build = partial(variant.build, config, batch)
        try:
            rows[name]["peak_gib"] = peak_gib(build, device)
            steps[name] = build()
            steps[name]()
        except ImportError:
            rows[name]["row"] += ": not installed"
        except torch.cuda.OutOfMemoryError:
            rows[name]["row"] += ": out of memory"
            steps.pop(name, None)
        flops = step_flops(
            options,
            batch.num_rows,
            batch.num_samples,
            1 + variant.use_swap,
            batch.num_masked,
            variant.label_sets,
            config.model.label_heads.d_head,
        )
        rows[name]["gflop_per_audio_second"] = flops / batch.seconds / 1e9
    for name, seconds in median_seconds(steps, repeats, device).items():
        rows[name].update(seconds=seconds, audio_seconds_per_second=batch.seconds / seconds)
        flops_per_second = rows[name]["gflop_per_audio_second"] * 1e9 * batch.seconds / seconds
        rows[name]["utilisation"] = flops_per_second / reachable_flops
    for row in rows.values():
        if "seconds" in row and "seconds" in rows["ours"]:
            row["time_over_ours"] = row["seconds"] / rows["ours"]["seconds"]
    return list(rows.values())


class Variant(NamedTuple):
    """A row: whose encoder, which label sets, with Swap or without."""

    make_encoder: Callable[[], nn.Module]
    label_sets: Sequence[int]
    use_swap: bool = True

    def build(self, config: DictConfig, batch: Batch) -> Step:
        return Step(self.make_encoder(), config, batch, self.label_sets, self.use_swap)


def variants(options: Dict[str, Any], label_sets: Sequence[int]) -> Dict[str, Variant]:
    """The rows by name; ``options`` are those of the encoder."""
    ours = partial(MSHuBERTEncoder, **options)
    return {
        "ours": Variant(ours, label_sets),
        "ours, no Swap": Variant(ours, label_sets, use_swap=False),
        "ours, one head": Variant(ours, label_sets[:1]),
        **{name: Variant(partial(peer, options), label_sets) for name, peer in PEERS.items()},
    }


def encoder_options(config: DictConfig) -> Dict[str, Any]:
    """Arguments of `MSHuBERTEncoder`."""
    options = OmegaConf.to_container(config.model.encoder, resolve=True)
    options.pop("_target_")
    return options
