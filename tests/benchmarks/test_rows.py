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

from pathlib import Path

import pytest
import torch

from nemo_mshubert.benchmarks import inference, labelling, loader

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


def test_loader_ends_and_delivers_the_audio_of_its_shards(labelled):
    """Endless loaders are measured for a while and closed: the benchmark must come to its end."""
    rows = loader.benchmark(CONFIGS, labelled.train, workers=[0, 1], seconds=0.2, shards=2, device=CPU)
    names = ["decoding alone", "NeMo's loader", "ours, 0 processes", "ours, 1 processes"]
    assert [row["row"] for row in rows] == names
    assert all(row["per_process"] * row["processes"] == row["audio_seconds_per_second"] > 0 for row in rows)
    assert rows[0]["share_of_decoding"] == 1
    assert 1_000 < rows[0]["bytes_per_audio_second"] < 33_000  # 16-bit PCM: 32,000


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
