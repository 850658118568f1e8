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

"""Speed of label making compared with the encoder's forward pass alone, and of k-means on a GPU compared with a CPU.

Rows:

    encoder alone        batches that are already on the device, up to the layer of the features
    features             `HiddenFeatures` from waveforms in memory: batching, chunks, copies
    labels               `label_manifest` from audio files to a labelled manifest; k-means of the same frames
    k-means, cuml        `fit_kmeans` on a sample of the features, on a GPU; not measured without a GPU or without cuML
    k-means, sklearn     the same on the CPU
"""

import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from nemo_mshubert.benchmarks.measurement import Column, Row, median_seconds
from nemo_mshubert.benchmarks.pretraining_step import encoder_options, load_config
from nemo_mshubert.clustering.features import MAX_CHUNK_SAMPLES, HiddenFeatures
from nemo_mshubert.clustering.kmeans import FULL_BATCH, fit_kmeans
from nemo_mshubert.clustering.label_maker import fit_label_maker
from nemo_mshubert.clustering.labelling import label_manifest
from nemo_mshubert.data.audio import load_audio
from nemo_mshubert.data.batching import batches_by_length
from nemo_mshubert.data.manifest import SAMPLE_RATE, read_manifest, write_manifest
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder
from nemo_mshubert.whole_files import PathLike

COLUMNS = [
    Column("row", "step"),
    Column("seconds", "seconds", ".2f"),
    Column("audio_seconds_per_second", "audio-s/s", ".1f"),
    Column("share_of_encoder", "of the encoder's speed", ".0%"),
    Column("inertia_per_frame", "inertia per frame", ".4g"),
]


def benchmark(
    configs: Path,
    size: str,
    manifest: PathLike,
    seconds: float,
    clusters: int,
    frames: int,
    repeats: int,
    device: torch.device,
) -> Iterator[Row]:
    """Yield each row as soon as it is measured. The encoder has random weights; features come from its middle layer (6
    of 12 in base).

    Args:
        configs: folder of ``mshubert_<size>.yaml``.
        seconds: of audio to use, from the start of the manifest.
        clusters: number of clusters, for the labels and for k-means.
        frames: size of the sample for k-means; if the audio has fewer, they are repeated with noise.
    """
    options = encoder_options(load_config(configs, size))
    torch.manual_seed(0)
    features = HiddenFeatures(MSHuBERTEncoder(**options), options["num_layers"] // 2, device)
    entries = first_seconds(read_manifest(manifest), seconds)
    waves = [load_audio(entry) for entry in entries]
    audio_seconds = sum(map(len, waves)) / SAMPLE_RATE
    outputs = features(waves)
    sample = torch.cat(outputs).cpu().numpy()
    maker = fit_label_maker(sample, [min(clusters, len(sample) // 2)], features.description)
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(Path(folder) / "audio.json", entries)

        def labels() -> None:
            (Path(folder) / "labelled.json").unlink(missing_ok=True)
            label_manifest(Path(folder) / "audio.json", Path(folder) / "labelled.json", maker, features)

        calls = {
            "encoder alone": encoder_alone(features, waves, device),
            "features": lambda: features(waves),
            "labels": labels,
        }
        measured = median_seconds(calls, repeats, device)
    for name, value in measured.items():
        yield {
            "row": name,
            "seconds": value,
            "audio_seconds_per_second": audio_seconds / value,
            "share_of_encoder": measured["encoder alone"] / value,
        }
    yield from kmeans_rows(enlarged(sample, frames), clusters)


def first_seconds(entries: List[Dict[str, Any]], seconds: float) -> List[Dict[str, Any]]:
    """The first entries that add up to ``seconds``, or all if there are fewer."""
    durations = np.cumsum([entry["duration"] for entry in entries])
    return entries[: int(np.searchsorted(durations, seconds)) + 1]


def encoder_alone(features: HiddenFeatures, waves: List[np.ndarray], device: torch.device) -> Callable[[], None]:
    """A call that runs the encoder over the batches of `HiddenFeatures`, which are already on the device."""
    ready = []
    for batch in batches_by_length([len(wave) for wave in waves], MAX_CHUNK_SAMPLES):
        audio = pad_sequence([torch.from_numpy(waves[index]) for index in batch], batch_first=True)
        length = torch.tensor([len(waves[index]) for index in batch])  # on the host, as in `HiddenFeatures`
        ready.append((audio.to(device), length))

    @torch.inference_mode()
    def run() -> None:
        for audio, length in ready:
            features.encoder.extract_features(audio, length, features.layer)

    return run


def enlarged(sample: np.ndarray, frames: int) -> np.ndarray:
    """``frames`` rows: the sample ``[N, D]``, then copies with noise of a tenth of its standard deviation."""
    rng = np.random.default_rng(0)
    copies = -(-frames // len(sample))
    spread = 0.1 * sample.std(axis=0)
    rows = [sample, *(sample + rng.normal(0, spread, sample.shape).astype(np.float32) for _ in range(copies - 1))]
    return np.concatenate(rows)[:frames].astype(np.float32)


def kmeans_rows(sample: np.ndarray, clusters: int) -> Iterator[Row]:
    """Time and inertia (mean squared distance to the centre) of each available backend. scikit-learn, which can take a
    hundred times as long, comes last. cuML is measured only with as many frames as make `fit_kmeans` use it."""
    for backend in ("cuml", "sklearn"):
        row = {"row": f"k-means, {backend}: {clusters} clusters, {len(sample)} frames of {sample.shape[1]}"}
        if backend == "cuml" and len(sample) <= FULL_BATCH:
            yield row  # not measured: `fit_kmeans` would use scikit-learn
            continue
        try:
            if backend == "cuml":
                fit_kmeans(sample[: max(20 * clusters, FULL_BATCH + 1)], clusters, backend)  # loads, compiles
            start = time.perf_counter()
            centres = fit_kmeans(sample, clusters, backend)
            row["seconds"] = time.perf_counter() - start
            row["inertia_per_frame"] = inertia(sample, centres)
        except ImportError:
            pass  # not measured
        yield row


def inertia(sample: np.ndarray, centres: np.ndarray) -> float:
    """Mean squared distance of a frame ``[N, D]`` to the nearest centre ``[K, D]``."""
    parts = torch.from_numpy(sample).split(16384)
    nearest = [torch.cdist(part, torch.from_numpy(centres)).min(dim=1).values.square().sum() for part in parts]
    return float(sum(nearest)) / len(sample)
