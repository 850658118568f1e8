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

"""Speed of the pre-training step compared with its peers: ratios of times measured in one run on the same batch.

Each row is the median over steps (forward, loss, backward, clipping, AdamW). On a CPU the rows take turns, on a GPU
they are measured one after another.

    ours                 `MSHuBERTEncoder` with Swap, six heads, loss at both views
    ours, no Swap        only the masked view
    ours, one head       with Swap, only the finest label set
    ours, compiled       ``model.compile=true``; only on a GPU
    transformers         the modules of ``HubertModel`` with the same Swap, heads, loss and masks
    torchaudio           the modules of ``hubert_pretrain_base``, in the same way; not measured if it is not installed

The utilisation is `flops.step_flops` per second, divided by the FLOP/s of a large matrix product in the same
precision, measured on the same machine in the same run. The memory is what a step adds at its peak, including weights
and moments. With a large batch, this peak comes before there are gradients.
"""

from functools import cached_property, partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from nemo_mshubert.benchmarks.flops import step_flops
from nemo_mshubert.benchmarks.measurement import Column, Row, matmul_flops, median_seconds, peak_gib
from nemo_mshubert.benchmarks.peers import PEERS
from nemo_mshubert.data.manifest import SAMPLE_RATE
from nemo_mshubert.losses.multicluster_mpl import MulticlusterMPLLoss
from nemo_mshubert.modules.frames import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES
from nemo_mshubert.modules.label_heads import LabelHeads, place_label_sets
from nemo_mshubert.modules.masking import span_mask
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder

STEPS = ("ours", "ours, no Swap", "ours, one head", "transformers")  # the rows of `traffic` and `host`
OUT_OF_MEMORY = ": out of memory"
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
    """Random audio of equal length, masks, and labels of the finest set.

    Args:
        seconds: of audio in the batch, rounded down to whole utterances, at least one.
        utterance_seconds: of each utterance, rounded down to the frame grid.
    """

    def __init__(self, seconds: float, utterance_seconds: float, config: DictConfig, device: torch.device):
        self.num_frames = int(utterance_seconds * SAMPLE_RATE - RECEPTIVE_FIELD_SAMPLES) // HOP_SAMPLES + 1
        self.num_rows = max(1, int(seconds / utterance_seconds))
        self.num_samples = (self.num_frames - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES
        masking = config.model.masking
        mask_BT = span_mask([self.num_frames] * self.num_rows, masking.mask_prob, masking.mask_length)
        self.num_masked = int(mask_BT.sum())
        self.audio = 0.1 * torch.randn(self.num_rows, 1, self.num_samples, device=device)
        self.length = torch.full((self.num_rows,), self.num_samples)
        self.mask_BT = mask_BT.to(device)
        # Computed once, before the steps. Otherwise the host would wait for a GPU's count of them at every label set.
        self.masked_M = mask_BT.flatten().nonzero()[:, 0].to(device)  # indices into B * T
        self.labels_BT = torch.randint(max(config.model.label_sets), mask_BT.shape, device=device)

    @property
    def seconds(self) -> float:
        return self.num_rows * self.num_samples / SAMPLE_RATE

    def masked_labels(self, clusters: int) -> Tensor:
        """Labels ``[M]`` of the masked frames, for a set with so many clusters."""
        return (self.labels_BT % clusters).flatten().index_select(0, self.masked_M)


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
        self.fused = model.optim.fused
        self.batch = batch

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters, lr=1e-5, fused=self.fused)

    def __call__(self) -> None:
        self.backpropagate()
        torch.nn.utils.clip_grad_norm_(self.parameters, 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def backpropagate(self) -> None:
        batch, device = self.batch, self.batch.audio.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            views = self.encoder.forward_views(
                batch.audio,
                batch.length,
                batch.mask_BT,
                self.layer_of_set.values(),
                self.use_swap,
                wanted_W=batch.masked_M,
            )
            rows = {k: views.at(layer, batch.masked_M).flatten(0, 1) for k, layer in self.layer_of_set.items()}
            logits = self.heads(rows)
            labels = [batch.masked_labels(k).repeat(2 if self.use_swap else 1) for k in logits]
            loss, _, count = self.loss(
                logits=list(logits.values()), labels=labels, feature_penalty=views.feature_penalty
            )
        (loss / count).backward()


def benchmark(
    configs: Path,
    sizes: Sequence[str],
    batch_seconds: Sequence[float],
    utterance_seconds: float,
    repeats: int,
    device: torch.device,
) -> Iterator[Row]:
    """Yield the rows of every size and batch as soon as they are measured.

    Args:
        configs: folder of ``mshubert_<size>.yaml``, which define encoder, heads and masks.
        batch_seconds: of audio in a batch; if a batch does not fit into the GPU's memory, its row says so.
        utterance_seconds: of each utterance of a batch.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # as in training (training_setup.py); also for peers
    reachable = matmul_flops(device, dtype)
    for size in sizes:
        config = load_config(configs, size)
        for seconds in batch_seconds:
            batch = Batch(seconds, utterance_seconds, config, device)
            yield from batch_rows(size, config, batch, repeats, reachable)


def load_config(configs: Path, size: str) -> DictConfig:
    """``mshubert_<size>`` without layerdrop, since skipped blocks would make the steps unequal."""
    with initialize_config_dir(str(configs), version_base=None):
        return compose(f"mshubert_{size}", overrides=["model.encoder.layerdrop=0"])


def batch_rows(size: str, config: DictConfig, batch: Batch, repeats: int, reachable_flops: float) -> List[Row]:
    """The rows of one size and batch; ``reachable_flops`` is the result of `matmul_flops`."""
    found = variants(encoder_options(config), list(config.model.label_sets), batch.audio.is_cuda)
    rows = {name: _untimed_row(size, config, batch, name, variant) for name, variant in found.items()}
    builds = {name: partial(variant.build, config, batch) for name, variant in found.items()}
    for names in _groups(list(found), batch.audio.device):
        seconds = _measure({name: rows[name] for name in names}, builds, repeats, batch.audio.device)
        for name, value in seconds.items():
            flops_per_second = rows[name]["gflop_per_audio_second"] * 1e9 * batch.seconds / value
            rows[name].update(
                seconds=value,
                audio_seconds_per_second=batch.seconds / value,
                utilisation=flops_per_second / reachable_flops,
            )
    for row in rows.values():
        if "seconds" in row and "seconds" in rows["ours"]:
            row["time_over_ours"] = row["seconds"] / rows["ours"]["seconds"]
    return list(rows.values())


def _groups(names: List[str], device: torch.device) -> List[List[str]]:
    """Groups of rows whose steps exist at the same time and take turns.

    On a CPU this is one group, since its speed changes with its other work. On a GPU each row is a group: waiting
    models would take memory from the one that runs.
    """
    return [[name] for name in names] if device.type == "cuda" else [names]


def _untimed_row(size: str, config: DictConfig, batch: Batch, name: str, variant: "Variant") -> Row:
    flops = step_flops(
        encoder_options(config),
        batch.num_rows,
        batch.num_samples,
        1 + variant.use_swap,
        batch.num_masked,
        variant.label_sets,
        config.model.label_heads.d_head,
    )
    gflop = flops / batch.seconds / 1e9
    return {"size": size, "batch_seconds": batch.seconds, "row": name, "gflop_per_audio_second": gflop}


def _measure(
    rows: Dict[str, Row], builds: Dict[str, Callable[[], Step]], repeats: int, device: torch.device
) -> Dict[str, float]:
    """Median seconds by name. Peaks, and reasons for missing seconds, go into ``rows``. No step is kept afterwards."""
    steps = {}
    for name, row in rows.items():
        try:
            row["peak_gib"] = peak_gib(builds[name], device)
            steps[name] = builds[name]()
        except ImportError:
            row["row"] += ": not installed"
        except torch._dynamo.exc.TorchDynamoException as error:
            row["row"] += f": does not compile, {type(error).__name__}"
        except torch.cuda.OutOfMemoryError:
            row["row"] += OUT_OF_MEMORY
    seconds = median_seconds(steps, repeats, device, left_out=(torch.cuda.OutOfMemoryError,))
    for name in steps.keys() - seconds.keys():
        rows[name]["row"] += OUT_OF_MEMORY
    return seconds


class Variant(NamedTuple):
    """What a row measures: the encoder, the label sets, and Swap or not."""

    make_encoder: Callable[[], nn.Module]
    label_sets: Sequence[int]
    use_swap: bool = True

    def build(self, config: DictConfig, batch: Batch) -> Step:
        return Step(self.make_encoder(), config, batch, self.label_sets, self.use_swap)


def compiled_blocks(make_encoder: Callable[[], MSHuBERTEncoder]) -> MSHuBERTEncoder:
    encoder = make_encoder()
    encoder.compile_blocks()
    return encoder


def variants(options: Dict[str, Any], label_sets: Sequence[int], on_gpu: bool) -> Dict[str, Variant]:
    """Variants by name of their row; ``options`` are those of the encoder."""
    ours = partial(MSHuBERTEncoder, **options)
    compiled = {"ours, compiled": Variant(partial(compiled_blocks, ours), label_sets)}
    return {
        "ours": Variant(ours, label_sets),
        "ours, no Swap": Variant(ours, label_sets, use_swap=False),
        "ours, one head": Variant(ours, label_sets[:1]),
        **(compiled if on_gpu else {}),
        **{name: Variant(partial(peer, options), label_sets) for name, peer in PEERS.items()},
    }


def encoder_options(config: DictConfig) -> Dict[str, Any]:
    """Arguments of `MSHuBERTEncoder`."""
    options = OmegaConf.to_container(config.model.encoder, resolve=True)
    options.pop("_target_")
    return options
