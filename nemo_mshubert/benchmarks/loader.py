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

"""Speed of the training loader from tarred FLAC with labels.

Rows, in seconds of audio per second of wall-clock time:

    decoding alone       soundfile over the members of the same tars, in one process: the limit set by the codec
    NeMo's loader        the stock Lhotse loader with its audio collation, without labels, in this process
    ours, n processes    `training_loader` as training uses it (crops, labels, resumable order); 0: in this process

Two more values are measured for NeMo's loader and for ours in this process: the memory of the utterances that
shuffling and bucketing hold back, and the speed of choosing batches without decoding their audio, as a resumed run
does to skip the batches it has already had.

The speed counts the audio that a loader returns. Ours decodes only the crop of an utterance, NeMo's decodes all that
it uses of the utterance, and decoding alone decodes whole files.
"""

import io
import itertools
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence

import soundfile
import torch
from hydra import compose, initialize_config_dir
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import AudioSamples
from nemo.collections.common.data.lhotse import get_lhotse_dataloader_from_config
from nemo.collections.common.data.lhotse.cutset import read_cutset_from_config
from omegaconf import DictConfig, OmegaConf

from nemo_mshubert.benchmarks.measurement import Column, Row, peak_gib
from nemo_mshubert.data.labels import FrameLabels
from nemo_mshubert.data.manifest import SAMPLE_RATE, iter_manifest
from nemo_mshubert.data.pretraining_dataset import PretrainingDataset
from nemo_mshubert.data.resumable_loader import training_loader
from nemo_mshubert.data.tarred import make_tarred
from nemo_mshubert.whole_files import PathLike

COLUMNS = [
    Column("row", "from tarred FLAC"),
    Column("processes", "processes", "d"),
    Column("audio_seconds_per_second", "audio-s/s", ".0f"),
    Column("per_process", "audio-s/s and process", ".0f"),
    Column("share_of_decoding", "per process / decoding alone", ".2f"),
    Column("held_mib", "MiB of 10,000 utterances held back", ".0f"),
    Column("passed_per_second", "utterances/s passed over", ".0f"),
]
HELD = 2000  # number of utterances whose memory is measured
CPU = torch.device("cpu")


class AudioOnly(torch.utils.data.Dataset):
    """Batches ``audio [B, S]``, ``length [B]``, made by Lhotse's own collation."""

    def __getitem__(self, cuts: CutSet) -> Dict[str, torch.Tensor]:
        audio, length = AudioSamples()(cuts)
        return {"audio": audio, "length": length}


def benchmark(
    configs: Path, manifest: PathLike, workers: Sequence[int], seconds: float, shards: int, device: torch.device
) -> List[Row]:
    """The rows.

    Args:
        configs: folder of conf/pretrain, from which the loader's options of ``mshubert_base`` are taken.
        manifest: labelled, with FLAC files; it is packed into shards in a temporary folder.
        workers: numbers of loader processes.
        seconds: measuring time of each row.
        shards: number of shards of the tarred data.
    """
    where, entry = next(iter_manifest(manifest))
    labels = FrameLabels.from_manifest(entry.get("labels"), where)
    with tempfile.TemporaryDirectory() as folder:
        make_tarred(manifest, folder, shards)
        config = loader_config(configs, Path(folder), shards, manifest)
        rows = [{"row": "decoding alone", "processes": 1, **speed(decoded_seconds(Path(folder)), seconds)}]
        stock = get_lhotse_dataloader_from_config(stock_options(config), 0, 1, AudioOnly())
        rows.append({"row": "NeMo's loader", "processes": 1, **speed(batch_seconds(stock), seconds)})
        stock_cuts, _ = read_cutset_from_config(stock_options(config))
        rows[-1].update(sampling(stock_cuts, stock.dataset.sampler, seconds))
        for count in workers:
            config.num_workers = count
            dataset = PretrainingDataset(labels.maker, list(labels.sets), config.crop)
            loader = training_loader(config, dataset, 0, 1)
            row = {"row": f"ours, {count} processes", "processes": max(count, 1)}
            rows.append({**row, **speed(batch_seconds(loader), seconds, warm_up=4 * count + 1)})
            if count == 0:
                rows[-1].update(sampling(loader.dataset.visits, loader.dataset.sampler, seconds))
        shard_bytes = sum(path.stat().st_size for path in Path(folder).glob("audio_*.tar"))
    rows[0]["bytes_per_audio_second"] = shard_bytes / sum(entry["duration"] for _, entry in iter_manifest(manifest))
    for row in rows:
        row["per_process"] = row["audio_seconds_per_second"] / row["processes"]
        row["share_of_decoding"] = row["per_process"] / rows[0]["per_process"]
    return rows


def loader_config(configs: Path, folder: Path, shards: int, manifest: PathLike) -> DictConfig:
    """Options of ``mshubert_base`` for the shards, with buckets and buffers no larger than the manifest needs."""
    with initialize_config_dir(str(configs), version_base=None):
        config = compose("mshubert_base", overrides=["label_maker=-", "train_manifest=-", "validation_manifest=-"])
    options = OmegaConf.create(OmegaConf.to_container(config, resolve=True)["model"]["train_ds"])
    utterances = sum(1 for _ in iter_manifest(manifest))
    options.update(
        manifest_filepath=f"{folder}/sharded_manifests/manifest__OP_0..{shards - 1}_CL_.json",
        tarred_audio_filepaths=f"{folder}/audio__OP_0..{shards - 1}_CL_.tar",
        num_buckets=min(options.num_buckets, max(utterances // 20, 2)),
        num_cuts_for_bins_estimate=utterances,
        bucket_buffer_size=min(options.bucket_buffer_size, utterances),
        shuffle_buffer_size=min(options.shuffle_buffer_size, utterances),
        num_workers=0,
        pin_memory=False,
    )
    return options


def stock_options(config: DictConfig) -> DictConfig:
    """The options for NeMo's loader: without our own, and without the thread that fills buckets, which never ends."""
    options = OmegaConf.to_container(config)
    stock = {key: value for key, value in options.items() if key not in ("crop", "max_unreadable")}
    return OmegaConf.create({**stock, "concurrent_bucketing": False})


def decoded_seconds(folder: Path) -> Iterator[float]:
    """Decode one tar member after another, over and over, and yield their seconds of audio."""
    for path in itertools.cycle(sorted(folder.glob("audio_*.tar"))):
        with tarfile.open(path) as tar:
            for member in tar:
                samples, _ = soundfile.read(io.BytesIO(tar.extractfile(member).read()), dtype="float32")
                yield len(samples) / SAMPLE_RATE


def batch_seconds(loader: Any) -> Iterator[float]:
    """Yield the seconds of audio of one batch after another."""
    return (float(batch["length"].sum()) / SAMPLE_RATE for batch in loader)


def sampling(cuts: Iterable[Cut], sampler: Iterable[CutSet], seconds: float) -> Dict[str, Optional[float]]:
    """Memory of the cuts that wait to be chosen, and number of utterances that a sampler chooses per second."""

    def hold() -> Callable[[], Any]:
        held = list(itertools.islice(cuts, HELD))
        return lambda: held

    gib = peak_gib(hold, CPU)
    passed = per_second((len(batch) for batch in sampler), seconds)
    return {"held_mib": gib and 1024 * gib * 10_000 / HELD, "passed_per_second": passed}


def speed(audio_seconds: Iterator[float], seconds: float, warm_up: int = 1) -> Dict[str, float]:
    return {"audio_seconds_per_second": per_second(audio_seconds, seconds, warm_up)}


def per_second(amounts: Iterator[float], seconds: float, warm_up: int = 1) -> float:
    """Sum of ``amounts`` per second, over at least ``seconds``. The first ``warm_up`` items, which fill buffers and
    start processes, do not count."""
    for _ in range(warm_up):
        next(amounts)
    start, total = time.perf_counter(), 0.0
    while time.perf_counter() - start < seconds:
        total += next(amounts)
    rate = total / (time.perf_counter() - start)
    amounts.close()  # ends the worker processes of an endless loader
    return rate
