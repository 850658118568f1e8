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

"""Plans what a pre-training needs (memory, days, loader cores, storage) from a config and from measurements.

Counts (parameters, bytes of weights, labels) are computed; speeds and activations come from JSON files of
scripts/benchmark.py. Nothing is guessed: a value that no file holds is "not measured", with the command that measures
it.

The memory is that at the end of a forward pass, when all activations exist. In the benchmark, which frees gradients
after every step, weights and moments exist at that time, too. In training, there are also gradients (of the earlier
micro-batches, or of the last update, since Lightning frees them only after the next forward pass) and DDP's copies of
them. If a batch is so small that the peak is elsewhere (in AdamW's step), the activations are overestimated.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

import torch
from omegaconf import DictConfig

from nemo_mshubert.benchmarks.measurement import NOT_MEASURED
from nemo_mshubert.benchmarks.pretraining_step import encoder_options
from nemo_mshubert.markdown import markdown_table
from nemo_mshubert.models.training_setup import micro_batches_per_update, num_data_parts
from nemo_mshubert.modules.frames import FRAME_RATE
from nemo_mshubert.modules.label_heads import LabelHeads
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder
from nemo_mshubert.parallel.registration import tensor_parallel_size
from nemo_mshubert.whole_files import PathLike

FP32 = 4  # bytes
WEIGHTS_AND_GRADIENTS, MOMENTS = 2 * FP32, 2 * FP32  # per parameter; AdamW keeps two moments
BUCKETS = FP32  # per parameter: DDP copies gradients to send them (gradient_as_bucket_view is False by default)
CHECKPOINT = AT_PEAK = FP32 + MOMENTS  # per parameter; at the benchmark's peak there are no gradients
CHECKPOINTS_ON_DISK = 3  # the last, the best, and the one being written
LABEL_BYTES = 2 * 4 / 3  # per frame: uint16 as base64
GIB, TB = 2**30, 1e12
SECONDS_PER_DAY = 86400
NO_LOADER = "python scripts/benchmark.py loader --manifest FILE --output FILE"
Reports = Dict[str, List[Dict[str, Any]]]  # name of the benchmark -> its rows


class Line(NamedTuple):
    """A line of the plan; ``value`` None: not measured."""

    quantity: str
    value: Optional[float]
    unit: str
    source: str  # where the value comes from, or the command that measures it


class Sizes(NamedTuple):
    """Numbers of parameters."""

    blocks: int  # of all transformer blocks
    block: int  # of one block
    rest: int

    @property
    def all(self) -> int:
        return self.blocks + self.rest


@dataclass
class Cluster:
    """The GPUs of the run, and how they share a model."""

    gpus: int
    gpus_per_node: int
    strategy: str  # trainer.strategy

    def __post_init__(self):
        ranks = tensor_parallel_size(self.strategy)
        if self.gpus % ranks:
            raise ValueError(f"{self.gpus} GPUs are no multiple of the {ranks} that share a model ({self.strategy}).")

    @property
    def sharded(self) -> int:
        """Number of GPUs over which FSDP2 shards a copy of the weights."""
        return min(self.gpus, self.gpus_per_node) if self.strategy == "fsdp2" else 1

    @property
    def uses_ddp(self) -> bool:
        """True also with tensor parallelism, where DDP works between the groups that share a model."""
        return self.gpus > 1 and self.strategy != "fsdp2"

    @property
    def data_parts(self) -> int:
        return num_data_parts({"devices": self.gpus, "strategy": self.strategy, "accelerator": "gpu"})


def read_reports(paths: Sequence[PathLike]) -> Reports:
    """Rows of JSON files of scripts/benchmark.py, by name of the benchmark.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or it is not such a file.
    """
    reports: Reports = {}
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{path}: no such file. Make it with scripts/benchmark.py --output, or leave it out."
            )
        try:
            report = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError:  # not JSON, or not text
            report = None
        if not isinstance(report, dict) or not {"benchmark", "machine", "rows"} <= report.keys():
            raise ValueError(f"{path}: not a JSON file of scripts/benchmark.py --output.")
        gpu = report["machine"].get("gpu")
        where = gpu or f"{report['machine']['cpu']}, {report['machine']['threads']} threads"
        rows = ({**row, "machine": where, "on_gpu": bool(gpu)} for row in report["rows"])
        reports.setdefault(report["benchmark"], []).extend(rows)
    return reports


def count_parameters(config: DictConfig) -> Sizes:
    """Parameters of encoder and heads, counted without allocating them."""
    with torch.device("meta"):
        encoder = MSHuBERTEncoder(**encoder_options(config))
        heads = LabelHeads(config.model.encoder.d_model, config.model.label_sets, config.model.label_heads.d_head)
    block, blocks, whole = map(_num_parameters, (encoder.layers[0], encoder.layers, encoder))
    return Sizes(blocks, block, whole - blocks + _num_parameters(heads))


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def state_bytes(sizes: Sizes, cluster: Cluster) -> float:
    """Bytes of weights, gradients and moments on one GPU, which depend on how GPUs share a model."""
    ranks = tensor_parallel_size(cluster.strategy)
    if ranks > 1:  # ranks with the same weights divide the moments among them
        own = sizes.blocks / ranks + sizes.rest
        return own * (WEIGHTS_AND_GRADIENTS + MOMENTS / cluster.data_parts)
    state = sizes.all * (WEIGHTS_AND_GRADIENTS + MOMENTS) / cluster.sharded
    return state + (sizes.block * WEIGHTS_AND_GRADIENTS if cluster.sharded > 1 else 0)  # a whole block is gathered


def bucket_bytes(sizes: Sizes, cluster: Cluster) -> float:
    """Bytes of DDP's copies of the gradients on one GPU."""
    own = sizes.blocks / tensor_parallel_size(cluster.strategy) + sizes.rest
    return own * BUCKETS if cluster.uses_ddp else 0.0


def plan(config: DictConfig, size: str, hours: float, cluster: Cluster, reports: Reports) -> List[Line]:
    """The lines of the plan.

    Args:
        config: of an experiment of conf/pretrain.
        size: its name in the rows of ``benchmark.py pretrain``.
        hours: of audio in the corpus.
        reports: result of `read_reports`.
    """
    sizes = count_parameters(config)
    step = _measured_step(reports, size, config)
    return [
        *_memory(config, sizes, cluster, step),
        *_time(config, hours, cluster, step),
        *_loader(cluster, step, reports),
        *_storage(hours, sizes, reports),
        _labelling(hours, reports),
    ]


def _measured_step(reports: Reports, size: str, config: DictConfig) -> Mapping[str, Any]:
    """The row of our step with this size and configuration whose batch is closest, or ``{"needed": size}``."""
    with_swap = "ours, compiled" if config.model.get("compile") else "ours"
    wanted = (with_swap if config.model.swap else "ours, no Swap", size)
    rows = [row for row in reports.get("pretrain", []) if (row["row"], row["size"]) == wanted]
    batch_seconds = config.model.train_ds.batch_duration
    return min(rows, key=lambda row: abs(row["batch_seconds"] - batch_seconds)) if rows else {"needed": size}


def _command(step: Mapping[str, Any]) -> str:
    return f"python scripts/benchmark.py pretrain --sizes {step['needed']} --output FILE, on such a GPU"


def _memory(config: DictConfig, sizes: Sizes, cluster: Cluster, step: Mapping[str, Any]) -> List[Line]:
    state, buckets = state_bytes(sizes, cluster) / GIB, bucket_bytes(sizes, cluster) / GIB
    lines = [
        Line("parameters", sizes.all / 1e6, "M", "encoder and label heads"),
        Line("weights, gradients, moments per GPU", state, "GiB", f"fp32, strategy {cluster.strategy}"),
        Line("gradients' copies per GPU", buckets, "GiB", "DDP's buckets" if buckets else "there is no DDP"),
    ]
    activations = total = None
    source = f"activations: {_command(step)}" if "needed" in step else "the row was measured on a CPU"
    if step.get("on_gpu") and step.get("peak_gib"):
        batch = config.model.train_ds.batch_duration
        at_peak = sizes.all * AT_PEAK / GIB
        activations = (step["peak_gib"] - at_peak) / step["batch_seconds"] * batch
        total = state + buckets + activations
        source = f"batches of {batch:g} s, from a peak of {step['peak_gib']:.1f} GiB at {step['batch_seconds']:.1f} s"
    bound = " (a whole model's: an upper bound)" if tensor_parallel_size(cluster.strategy) > 1 else ""
    return [
        *lines,
        Line("activations per GPU", activations, "GiB", source + bound),
        Line("memory per GPU", total, "GiB", ""),
    ]


def _time(config: DictConfig, hours: float, cluster: Cluster, step: Mapping[str, Any]) -> List[Line]:
    accumulated = micro_batches_per_update(config, cluster.data_parts)
    seconds = accumulated * config.model.train_ds.batch_duration * cluster.data_parts
    total = config.max_updates * seconds
    lines = [
        Line(
            "audio per update", seconds, "s", f"asked for {config.seconds_per_update:g} s; {accumulated} micro-batches"
        ),
        Line("passes over the corpus", total / (hours * 3600), "", f"{config.max_updates} updates"),
    ]
    updates = days = None
    source = _command(step) if "needed" in step else ""
    if not source:
        speed = step["audio_seconds_per_second"]
        updates = SECONDS_PER_DAY * speed * cluster.gpus / seconds
        days = config.max_updates / updates
        source = f"{speed:.0f} audio-s/s on one {step['machine']}; the time between GPUs is not in it: at best"
    return [*lines, Line("updates per day", updates, "", source), Line("days", days, "", source)]


def _loader(cluster: Cluster, step: Mapping[str, Any], reports: Reports) -> List[Line]:
    rows = [row for row in reports.get("loader", []) if row["row"].startswith("ours")]
    cores, source = None, NO_LOADER
    if rows and "needed" in step:
        source = _command(step)
    elif rows:
        slowest = min(rows, key=lambda row: row["per_process"])
        readers = tensor_parallel_size(cluster.strategy)  # each GPU of a group reads all data of the group
        cores = readers * step["audio_seconds_per_second"] / slowest["per_process"]
        source = f"{slowest['per_process']:.0f} audio-s/s per process ({slowest['row']}, {slowest['machine']})"
    node = min(cluster.gpus, cluster.gpus_per_node)
    return [
        Line("loader cores per GPU", cores, "", source),
        Line("loader cores per node", cores and cores * node, "", f"{node} GPUs"),
    ]


def _storage(hours: float, sizes: Sizes, reports: Reports) -> List[Line]:
    seconds = hours * 3600
    rows = [row for row in reports.get("loader", []) if row.get("bytes_per_audio_second")]
    audio = seconds * rows[0]["bytes_per_audio_second"] / TB if rows else None
    source = "the bytes per second of the shards that the loader was measured on" if rows else NO_LOADER
    return [
        Line("audio", audio, "TB", source),
        Line("labels", seconds * FRAME_RATE * LABEL_BYTES / TB, "TB", "the finest set in the manifest, base64"),
        Line("checkpoints", CHECKPOINTS_ON_DISK * sizes.all * CHECKPOINT / TB, "TB", f"{CHECKPOINTS_ON_DISK} files"),
    ]


def _labelling(hours: float, reports: Reports) -> Line:
    rows = [row for row in reports.get("labelling", []) if row["row"] == "labels"]
    if not rows:
        command = "python scripts/benchmark.py labelling --manifest FILE --output FILE"
        return Line("labels of the corpus", None, "device-hours", command)
    speed = rows[0]["audio_seconds_per_second"]
    source = f"{speed:.0f} audio-s/s on {rows[0]['machine']}; shards run side by side (label.py make --shard)"
    return Line("labels of the corpus", hours / speed, "device-hours", source)


def plan_table(lines: Sequence[Line]) -> str:
    """The plan as a Markdown table."""
    values = (NOT_MEASURED if line.value is None else f"{line.value:,.4g} {line.unit}".strip() for line in lines)
    rows = [(line.quantity, value, line.source) for line, value in zip(lines, values)]
    return markdown_table(("quantity", "value", "from"), rows)
