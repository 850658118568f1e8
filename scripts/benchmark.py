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

"""Speed of the pre-training step beside its peer, as ratios of two things measured in one run on the same batches.

    python scripts/benchmark.py --output benchmark.json                 # CPU: tiny; with a GPU: base, too
    python scripts/benchmark.py --sizes tiny base --batch_seconds 16 --repeats 5

Rows, each the median of ``--repeats`` interleaved steps (forward, loss, backward, clip, AdamW):
    ours                        MSHuBERTEncoder with Swap, six heads, loss at both views
    ours, no Swap               the masked view alone
    ours, one head              Swap, the finest label set only
    transformers                HubertModel's modules with the same Swap, heads, loss and masks
Peak memory is reported on GPUs only.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Callable, Dict, List

import torch
import transformers
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import HubertConfig, HubertModel

from nemo_mshubert.data.manifest import SAMPLE_RATE, atomic_write
from nemo_mshubert.losses.multicluster_mpl import MulticlusterMPLLoss
from nemo_mshubert.modules.frames import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES
from nemo_mshubert.modules.label_heads import LabelHeads, place_label_sets
from nemo_mshubert.modules.masking import span_mask
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder, Views
from nemo_mshubert.modules.swap import swap

CONFIGS = Path(__file__).resolve().parents[1] / "conf" / "pretrain"
LABEL_SETS = [1000, 500, 250, 125, 50, 25]
MASK_PROB, MASK_LENGTH = 0.65, 10


def encoder_options(size: str) -> Dict:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose(f"mshubert_{size}")
    options = OmegaConf.to_container(config.model.encoder, resolve=True)
    options.pop("_target_")
    return {**options, "layerdrop": 0.0}  # a skipped block would make the steps unequal


class TransformersViews(torch.nn.Module):
    """`MSHuBERTEncoder.forward_views` made of the modules of ``transformers.HubertModel``."""

    def __init__(self, options: Dict):
        super().__init__()
        config = HubertConfig(
            hidden_size=options["d_model"],
            num_hidden_layers=options["num_layers"],
            num_attention_heads=options["num_heads"],
            intermediate_size=options["d_inner"],
            conv_dim=[layer[0] for layer in options["conv_layers"]],
            conv_kernel=[layer[1] for layer in options["conv_layers"]],
            conv_stride=[layer[2] for layer in options["conv_layers"]],
            conv_bias=options["conv_bias"],
            feat_extract_norm="layer" if options["conv_norm"] == "layer_norm" else "group",
            do_stable_layer_norm=options["pre_norm"],
            num_conv_pos_embeddings=options["pos_conv_kernel"],
            num_conv_pos_embedding_groups=options["pos_conv_groups"],
            hidden_dropout=options["dropout"],
            attention_dropout=options["attention_dropout"],
            activation_dropout=options["activation_dropout"],
            feat_proj_dropout=options["dropout_input"],
            layerdrop=0.0,
        )
        self.hubert = HubertModel(config)
        self.pre_norm = options["pre_norm"]

    def forward_views(self, audio_signal, length, mask_BT, tapped_layers, use_swap=True) -> Views:
        features = self.hubert.feature_extractor(audio_signal[:, 0]).transpose(1, 2)
        x = self.hubert.feature_projection(features)
        masked = torch.where(mask_BT[..., None], self.hubert.masked_spec_embed.to(x.dtype), x)
        x = torch.cat([masked, x])
        encoder = self.hubert.encoder
        x = x + encoder.pos_conv_embed(x)
        x = encoder.dropout(x if self.pre_norm else encoder.layer_norm(x))
        tapped = {}
        for number, layer in enumerate(encoder.layers, start=1):
            output = layer(x)
            x = output[0] if isinstance(output, tuple) else output  # a tuple in older versions
            x = swap(x.unflatten(0, (2, -1)), mask_BT).flatten(0, 1)
            if number == len(encoder.layers) and self.pre_norm:
                x = encoder.layer_norm(x)
            if number in tapped_layers:
                tapped[number] = x.unflatten(0, (2, -1))
        return Views(tapped, length, features.float().square().mean())


class Step:
    """One training step on a fixed random batch."""

    def __init__(self, encoder, d_model: int, num_layers: int, label_sets: List[int], use_swap: bool, device, batch):
        self.encoder = encoder.to(device).train()
        self.layer_of_set = {k: layer for layer, k in place_label_sets(label_sets, num_layers).items()}
        self.heads = LabelHeads(d_model, label_sets).to(device)
        self.loss = MulticlusterMPLLoss()
        self.use_swap = use_swap
        self.parameters = [*self.encoder.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, fused=device.type == "cuda")
        self.device = device
        self.audio, self.length, self.mask, self.labels = batch

    def __call__(self) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            views = self.encoder.forward_views(
                self.audio, self.length, self.mask, self.layer_of_set.values(), self.use_swap
            )
            rows = {k: views.tapped[layer][:, self.mask].flatten(0, 1) for k, layer in self.layer_of_set.items()}
            logits = self.heads(rows)
            num_views = 2 if self.use_swap else 1
            labels = [(self.labels % k)[self.mask].repeat(num_views) for k in logits]
            loss, _, count = self.loss(
                logits=list(logits.values()), labels=labels, feature_penalty=views.feature_penalty
            )
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def make_batch(seconds: float, utterance_seconds: float, device):
    frames = int(utterance_seconds * SAMPLE_RATE - RECEPTIVE_FIELD_SAMPLES) // HOP_SAMPLES + 1
    rows = max(1, int(seconds / utterance_seconds))
    samples = (frames - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES
    audio = 0.1 * torch.randn(rows, 1, samples)
    mask = span_mask([frames] * rows, MASK_PROB, MASK_LENGTH)
    labels = torch.randint(max(LABEL_SETS), (rows, frames))
    length = torch.full((rows,), samples)
    return [tensor.to(device) for tensor in (audio, length, mask, labels)], rows * samples / SAMPLE_RATE


def measure(steps: Dict[str, Callable], repeats: int, device) -> Dict[str, Dict[str, float]]:
    """Median seconds of each step (and peak GPU memory), the steps taking turns."""
    times: Dict[str, List[float]] = {name: [] for name in steps}
    memory: Dict[str, float] = {}
    for repeat in range(repeats + 1):  # the first round warms up
        for name, step in steps.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {
        name: {"seconds": statistics.median(values), **({"peak_gib": memory[name]} if name in memory else {})}
        for name, values in times.items()
    }


def benchmark(size: str, batch_seconds: float, utterance_seconds: float, repeats: int, device) -> List[Dict]:
    options = encoder_options(size)
    batch, audio_seconds = make_batch(batch_seconds, utterance_seconds, device)
    shape = (options["d_model"], options["num_layers"])
    rows = {
        "ours": Step(MSHuBERTEncoder(**options), *shape, LABEL_SETS, True, device, batch),
        "ours, no Swap": Step(MSHuBERTEncoder(**options), *shape, LABEL_SETS, False, device, batch),
        "ours, one head": Step(MSHuBERTEncoder(**options), *shape, LABEL_SETS[:1], True, device, batch),
        "transformers": Step(TransformersViews(options), *shape, LABEL_SETS, True, device, batch),
    }
    measured = measure(rows, repeats, device)
    ours = measured["ours"]["seconds"]
    return [
        {
            "size": size,
            "row": name,
            **values,
            "audio_seconds_per_second": audio_seconds / values["seconds"],
            "time_over_ours": values["seconds"] / ours,
        }
        for name, values in measured.items()
    ]


def table(rows: List[Dict]) -> str:
    lines = ["| size | step | audio-s/s | time / ours | peak GiB |", "|---|---|---|---|---|"]
    for row in rows:
        peak = f"{row['peak_gib']:.2f}" if "peak_gib" in row else "not measured"
        lines.append(
            f"| {row['size']} | {row['row']} | {row['audio_seconds_per_second']:.1f} | {row['time_over_ours']:.2f} | {peak} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument(
        "--sizes", nargs="+", default=["base"] if on_gpu else ["tiny"], choices=("tiny", "base", "large")
    )
    parser.add_argument("--batch_seconds", type=float, default=87.5 if on_gpu else 32)
    parser.add_argument("--utterance_seconds", type=float, default=12.5 if on_gpu else 4)
    parser.add_argument("--repeats", type=int, default=20 if on_gpu else 5)
    parser.add_argument("--threads", type=int, help="CPU threads; PyTorch's default")
    parser.add_argument("--output", help="JSON file")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if on_gpu else "cpu")
    machine = {
        "device": torch.cuda.get_device_name() if on_gpu else f"{platform.processor() or platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "precision": "bf16 autocast" if on_gpu else "fp32",
    }
    rows = [
        row
        for size in args.sizes
        for row in benchmark(size, args.batch_seconds, args.utterance_seconds, args.repeats, device)
    ]
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(table(rows))
    if args.output:
        with atomic_write(args.output) as stream:
            json.dump({"machine": machine, "arguments": vars(args), "rows": rows}, stream, indent=2)


if __name__ == "__main__":
    main()
