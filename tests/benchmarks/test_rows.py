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

"""The rows of labels and inference are there, and belong together."""

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from nemo_mshubert.benchmarks import inference, labelling, loader
from nemo_mshubert.data.manifest import read_manifest

pytestmark = pytest.mark.unit
CONFIGS = Path(__file__).parents[2] / "conf" / "pretrain"
CPU = torch.device("cpu")


def test_labels(labelled):
    rows = list(labelling.benchmark(CONFIGS, "tiny", labelled.dev, 5, clusters=5, frames=400, repeats=1, device=CPU))
    encoder, features, labels, cuml, sklearn = rows
    assert [row["row"] for row in rows[:3]] == ["encoder alone", "features", "labels"]
    assert encoder["share_of_encoder"] == 1 and labels["share_of_encoder"] == encoder["seconds"] / labels["seconds"]
    assert sklearn["seconds"] > 0 and sklearn["inertia_per_frame"] > 0
    assert "5 clusters, 400 frames of 144" in sklearn["row"]


def test_rates_of_labels_are_seconds_of_audio_per_second(labelled, monkeypatch):
    """What a plan makes hours of: a rate upside down, or in samples, would be off by orders of magnitude. Features are
    of the middle layer, as fit_kmeans.py takes them."""
    layers = []

    def timed(calls, *_):
        for call in calls.values():
            call()
            call()
        return dict(zip(calls, (1.0, 2.0, 4.0)))

    def alone(features, *_):
        layers.append(features.layer)
        return lambda: None

    monkeypatch.setattr(labelling, "median_seconds", timed)
    monkeypatch.setattr(labelling, "encoder_alone", alone)
    monkeypatch.setattr(labelling, "kmeans_rows", lambda *_: [])
    entries = read_manifest(labelled.dev)
    seconds = sum(entry["duration"] for entry in entries[:2])
    rows = list(labelling.benchmark(CONFIGS, "tiny", labelled.dev, seconds - 0.1, 5, 400, repeats=1, device=CPU))
    rates = [row["audio_seconds_per_second"] for row in rows]
    assert rates == pytest.approx([seconds, seconds / 2, seconds / 4], rel=1e-3)
    assert [row["share_of_encoder"] for row in rows] == [1, 0.5, 0.25] and layers == [4]  # of eight


def test_audio_of_a_measurement_is_what_was_asked_for():
    entries = [{"duration": 2.0}] * 3
    found = [len(labelling.first_seconds(entries, seconds)) for seconds in (0.5, 2.0, 2.5, 4.0, 100.0)]
    assert found == [1, 1, 2, 2, 3]


def test_frames_are_added_near_those_that_are_there():
    """Copies would be clusters of one point, and noise of the size of the data no clusters at all."""
    sample = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32) * [1, 10, 100]
    rows = labelling.enlarged(sample.astype(np.float32), 120)
    assert rows.shape == (120, 3) and rows.dtype == np.float32 and len(np.unique(rows, axis=0)) == 120
    np.testing.assert_allclose(rows[:50], sample, rtol=1e-6)
    added = rows[50:100] - sample
    np.testing.assert_allclose(added.std(axis=0) / sample.std(axis=0), 0.1, atol=0.03)
    np.testing.assert_allclose(labelling.enlarged(sample.astype(np.float32), 20), sample[:20], rtol=1e-6)


def test_inertia_by_hand():
    """The worse centres of a fast backend would pass for as good ones."""
    sample, centres = np.float32([[0, 0], [0, 3], [10, 0]]), np.float32([[0, 1], [10, 4]])
    assert labelling.inertia(sample, centres) == pytest.approx((1 + 4 + 16) / 3)


def test_loader_ends_and_delivers_the_audio_of_its_shards(labelled):
    """Endless loaders are measured for a while and closed: the benchmark must come to its end."""
    rows = loader.benchmark(CONFIGS, labelled.train, workers=[0, 1], seconds=0.2, shards=2, device=CPU)
    names = ["decoding alone", "NeMo's loader", "ours, 0 processes", "ours, 1 processes"]
    assert [row["row"] for row in rows] == names
    assert all(row["per_process"] * row["processes"] == row["audio_seconds_per_second"] > 0 for row in rows)
    assert rows[0]["share_of_decoding"] == 1
    assert 1_000 < rows[0]["bytes_per_audio_second"] < 33_000  # 16-bit PCM: 32,000


def test_rates_of_a_loader_are_without_its_start(monkeypatch):
    """Processes that start and buffers that fill take longer than a measurement; the time of its last batch belongs
    to it."""
    clock, closed = SimpleNamespace(now=0.0), []

    def amounts():
        try:
            for cost, amount in [(100.0, 1.0), (100.0, 1.0), (2.0, 5.0), (2.0, 7.0), (2.0, 9.0)]:
                clock.now += cost
                yield amount
        finally:
            closed.append(True)

    monkeypatch.setattr(loader, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    assert loader.per_second(amounts(), 3.0, warm_up=2) == (5 + 7) / 4
    assert closed  # else the worker processes of an endless loader stay


def test_audio_of_a_loader_is_counted_in_seconds(tmp_path):
    """Of batches what is no padding, of shards every file."""
    loaded = loader.batch_seconds([{"length": torch.tensor([16000, 8000])}])
    assert next(loaded) == 1.5
    with tarfile.open(tmp_path / "audio_0.tar", "w") as tar:
        for number, samples in enumerate((16000, 4000)):
            flac = io.BytesIO()
            soundfile.write(flac, np.zeros(samples), 16000, format="FLAC")
            member = tarfile.TarInfo(f"{number}.flac")
            member.size = len(flac.getvalue())
            flac.seek(0)
            tar.addfile(member, flac)
    decoded = loader.decoded_seconds(tmp_path)
    assert [next(decoded) for _ in range(4)] == [1.0, 0.25, 1.0, 0.25]


@pytest.mark.parametrize("gib, mib", [(0.5, 0.5 * 1024 * 10_000 / 2000), (None, None)])
def test_memory_of_utterances_held_back_is_of_ten_thousand(monkeypatch, gib, mib):
    """Of the 2,000 that are held for it, a fifth; where memory cannot be measured, nothing."""
    held = []

    def peak(build, device):
        held.append(len(build()()))
        return gib

    monkeypatch.setattr(loader, "peak_gib", peak)
    monkeypatch.setattr(loader, "per_second", lambda amounts, seconds: sum(amounts))
    found = loader.sampling(range(5000), [["a", "b"], ["c"]], 1.0)
    assert found == {"held_mib": mib, "passed_per_second": 3} and held == [2000]


def test_times_of_inference_are_of_batches_and_texts_of_each_utterance_alone(labelled, monkeypatch):
    """A factor upside down would make the slower side the faster one."""
    calls = []
    entries = read_manifest(labelled.dev)[:2]
    seconds = sum(entry["duration"] for entry in entries)

    def side(name, texts):
        def transcribe(batch_seconds):
            calls.append((name, batch_seconds))
            return texts

        return lambda source, given, device, dtype: transcribe if given == entries else None

    def timed(calls, *_):
        for call in calls.values():
            call()
        return {"ours": 2.0, "transformers": 5.0}

    monkeypatch.setattr(inference, "ours", side("ours", ["sea", "ship"]))
    monkeypatch.setattr(inference, "theirs", side("transformers", ["sea ", "shop"]))
    monkeypatch.setattr(inference, "median_seconds", timed)
    options = dict(batch_seconds=10, precision="fp32", repeats=1, device=CPU)
    rows = inference.benchmark(CONFIGS, "tiny", None, labelled.dev, seconds - 0.1, **options)
    assert calls == [("ours", 0.0), ("transformers", 0.0), ("ours", 10), ("transformers", 10)]
    assert [row["seconds"] for row in rows] == [2.0, 5.0] and [row["time_over_ours"] for row in rows] == [1, 2.5]
    assert [row["real_time_factor"] for row in rows] == pytest.approx([2 / seconds, 5 / seconds])
    assert [row["same_texts"] for row in rows] == [1, 0.5] and rows[1]["batch_seconds"] == 10


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_inference_of_the_same_model(labelled, precision):
    """The peer has the same weights, or its time means nothing: alone, every utterance gives the same text in fp32."""
    options = dict(batch_seconds=10, precision=precision, repeats=1, device=CPU)
    rows = inference.benchmark(CONFIGS, "tiny", None, labelled.dev, 5, **options)
    assert [row["row"] for row in rows] == ["ours", "transformers"]
    assert [row["precision"] for row in rows] == [precision] * 2
    assert precision == "bf16" or [row["same_texts"] for row in rows] == [1, 1]
    assert all(row["real_time_factor"] > 0 for row in rows)


def test_inference_needs_letters(labelled, ssl_path, bpe_path):
    """Their model has no place for word pieces, and a pre-trained one writes no text."""
    options = dict(batch_seconds=10, precision="fp32", repeats=1, device=CPU)
    for path in (ssl_path, bpe_path):
        with pytest.raises(ValueError, match=f"{path}: expected a CTC model over letters"):
            inference.benchmark(CONFIGS, "tiny", path, labelled.dev, 5, **options)


def test_both_sides_run_in_the_precision_of_their_row(labelled, tmp_path, monkeypatch):
    """A side that stayed in fp32 would look slow."""
    found = []
    original = torch.nn.Linear.forward

    def forward(self, x):
        found.append((x.dtype, self.weight.dtype))
        return original(self, x)

    path = inference.save_random_model(CONFIGS, "tiny", tmp_path / "random.nemo")
    inference.write_huggingface(inference.read_nemo(path), tmp_path / "transformers")
    entries = inference.read_manifest(labelled.dev)[:1]
    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    for side, source in ((inference.ours, path), (inference.theirs, tmp_path / "transformers")):
        found.clear()
        side(source, entries, CPU, torch.bfloat16)(0.0)
        assert set(found) == {(torch.bfloat16, torch.bfloat16)}
