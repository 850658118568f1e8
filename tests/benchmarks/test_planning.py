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

"""The plan: bytes and days by hand, and nothing where nothing was measured."""

import json
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from nemo_mshubert.benchmarks.planning import (
    Cluster,
    Sizes,
    bucket_bytes,
    count_parameters,
    plan,
    plan_table,
    read_reports,
    state_bytes,
)
from tests.conftest import load_script

pytestmark = pytest.mark.unit
REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "conf" / "pretrain"
main = load_script("plan").main


def load(name):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose(name)


def write(path, benchmark, rows, **machine):
    path.write_text(
        json.dumps({"benchmark": benchmark, "machine": {"cpu": "C", "threads": 2, **machine}, "rows": rows})
    )
    return path


@pytest.fixture
def reports(tmp_path):
    rows = [
        ("ours", 87.5, 0.02, 4000.0),
        ("ours", 350.0, 0.1, 9999.0),
        ("transformers", 87.5, 1.0, 1.0),
        ("ours, no Swap", 87.5, 0.0125, 7000.0),
    ]
    keys = ("row", "batch_seconds", "seconds", "audio_seconds_per_second")
    steps = [{"size": "base", **dict(zip(keys, row))} for row in rows]
    steps[0]["peak_gib"] = 96_050_000 * 12 / 2**30 + 17.5  # weights, moments and activations
    loader = [
        {"row": "decoding alone", "per_process": 999.0, "bytes_per_audio_second": 16000.0},
        {"row": "ours, 2 processes", "per_process": 500.0},
    ]
    labels = [{"row": "labels", "audio_seconds_per_second": 1000.0}]
    return read_reports(
        [
            write(tmp_path / "a.json", "pretrain", steps, gpu="G"),
            write(tmp_path / "b.json", "loader", loader),
            write(tmp_path / "c.json", "labelling", labels),
        ]
    )


def values_of(experiment, cluster, reports):
    """The values of a plan at base size for 960 hours, by quantity."""
    return {line.quantity: line.value for line in plan(load(experiment), "base", 960, cluster, reports)}


def test_plan_of_the_paper(reports):
    """LibriSpeech on 32 GPUs: 400,000 updates of 2,800 s at 4,000 audio-s/s per GPU."""
    lines = values_of("mshubert_base", Cluster(32, 8, "auto"), reports)
    assert lines["parameters"] == pytest.approx(96.05, abs=0.01)
    assert lines["activations per GPU"] == pytest.approx(17.5, rel=1e-3)
    # Gradients of the update before, and DDP's copies, lie there when a forward pass has made all activations.
    assert lines["memory per GPU"] == pytest.approx(96.05e6 * (16 + 4) / 2**30 + 17.5, rel=1e-3)
    assert lines["audio per update"] == 2800
    assert lines["passes over the corpus"] == pytest.approx(400_000 * 2800 / (960 * 3600))
    assert lines["updates per day"] == pytest.approx(86400 * 4000 * 32 / 2800)
    assert lines["days"] == pytest.approx(400_000 * 2800 / (4000 * 32) / 86400)
    assert lines["loader cores per GPU"] == 8 and lines["loader cores per node"] == 64
    assert lines["audio"] == pytest.approx(960 * 3600 * 16000 / 1e12)
    assert lines["labels"] == pytest.approx(960 * 3600 * 50 * 8 / 3 / 1e12)
    assert lines["checkpoints"] == pytest.approx(3 * 96.05e6 * 12 / 1e12, rel=1e-3)
    assert lines["labels of the corpus"] == pytest.approx(0.96)


@pytest.mark.parametrize("gpus, strategy, seconds", [(128, "auto", 11200), (32, "megatron_tp2", 2800)])
def test_updates_of_more_gpus_and_of_shared_models(reports, gpus, strategy, seconds):
    """No update is less than a batch per GPU; GPUs that share a model are, at best, twice as fast with one batch."""
    lines = values_of("mshubert_base", Cluster(gpus, 8, strategy), reports)
    assert lines["audio per update"] == seconds
    assert lines["updates per day"] == pytest.approx(86400 * 4000 * gpus / seconds)


def test_gpus_that_share_a_model_all_read_its_data(reports):
    """Nodes with cores for one reader of each group would starve their GPUs."""
    cores = {}
    for strategy in ("auto", "fsdp2", "megatron_tp2", "megatron_tp8"):
        lines = values_of("mshubert_base", Cluster(32, 8, strategy), reports)
        cores[strategy] = lines["loader cores per GPU"]
    assert cores == {"auto": 8, "fsdp2": 8, "megatron_tp2": 16, "megatron_tp8": 64}


def test_the_slowest_loader_and_the_gpus_that_there_are_count(reports):
    """Cores by the best row would be too few, and those of a node of 8 too many for 4."""
    reports["loader"].append({"row": "ours, 8 processes", "per_process": 250.0, "machine": "M"})
    reports["loader"].append({"row": "NeMo's loader", "per_process": 10.0, "machine": "M"})
    lines = values_of("mshubert_base", Cluster(4, 8, "auto"), reports)
    assert lines["loader cores per GPU"] == 16 and lines["loader cores per node"] == 4 * 16


def test_activations_grow_with_the_batch(reports):
    """Measured at 87.5 s, planned for batches twice as long: GPUs of half of the memory would be rented."""
    config = load("mshubert_base")
    config.model.train_ds.batch_duration = 175
    lines = {line.quantity: line for line in plan(config, "base", 960, Cluster(16, 8, "auto"), reports)}
    assert lines["activations per GPU"].value == pytest.approx(2 * 17.5, rel=1e-3)
    assert lines["audio per update"].value == 2800


def test_hubert_is_planned_by_the_step_without_swap(reports):
    """Two views cost 1.6 to 1.8 times one: its days would be too many."""
    cluster = Cluster(32, 8, "auto")
    assert values_of("hubert_iter2_base", cluster, reports)["updates per day"] == pytest.approx(
        86400 * 7000 * 32 / 2800
    )
    del reports["pretrain"][-1]
    assert values_of("hubert_iter2_base", cluster, reports)["updates per day"] is None


def test_memory_of_a_cpu_says_nothing_about_a_gpu(tmp_path):
    """A step in fp32 on a CPU has other activations: the plan would ask for GPUs of the wrong size."""
    step = {"row": "ours", "size": "base", "batch_seconds": 16.0, "seconds": 8.0, "audio_seconds_per_second": 2.0}
    reports = read_reports([write(tmp_path / "a.json", "pretrain", [{**step, "peak_gib": 9.0}])])
    lines = plan(load("mshubert_base"), "base", 960, Cluster(32, 8, "auto"), reports)
    memory = {line.quantity: line for line in lines}
    assert memory["memory per GPU"].value is None and "on a CPU" in memory["activations per GPU"].source


def test_nothing_is_invented(reports):
    """Another size has no rows: what follows from them is not measured, and the command that measures it is named."""
    lines = plan(load("mshubert_large"), "large", 60000, Cluster(128, 8, "auto"), {})
    unknown = {line.quantity for line in lines if line.value is None}
    assert unknown >= {"memory per GPU", "updates per day", "days", "loader cores per GPU", "audio"}
    assert {"parameters", "labels", "checkpoints", "audio per update"}.isdisjoint(unknown)
    table = plan_table(lines)
    assert "| days | not measured | python scripts/benchmark.py pretrain --sizes large" in table
    assert "updates per day | not measured" in plan_table(
        plan(load("mshubert_large"), "large", 60000, Cluster(128, 8, "auto"), reports)
    )


def test_bytes_of_a_shared_model():
    """Per parameter 4 of weights, 4 of gradients, 8 of moments; blocks 900, one block 100, the rest 50."""
    sizes = Sizes(900, 100, 50)
    assert state_bytes(sizes, Cluster(16, 8, "auto")) == 950 * 16
    assert state_bytes(sizes, Cluster(16, 8, "fsdp2")) == 950 * 16 / 8 + 100 * 8
    assert state_bytes(sizes, Cluster(4, 8, "fsdp2")) == 950 * 16 / 4 + 100 * 8  # fewer GPUs than a node has
    assert state_bytes(sizes, Cluster(1, 8, "fsdp2")) == 950 * 16  # nothing is gathered
    # Two GPUs share the blocks; the moments of what a GPU holds are spread over the eight with the same weights.
    assert state_bytes(sizes, Cluster(16, 8, "megatron_tp2")) == (450 + 50) * (8 + 8 / 8)


def test_bytes_of_gradients_copies():
    """DDP copies the gradients of what a GPU holds; FSDP2 and a single GPU have no copies."""
    sizes = Sizes(900, 100, 50)
    strategies = {"auto": 950 * 4, "fsdp2": 0, "megatron_tp2": (450 + 50) * 4}
    assert {name: bucket_bytes(sizes, Cluster(16, 8, name)) for name in strategies} == strategies
    assert bucket_bytes(sizes, Cluster(1, 8, "auto")) == 0


@pytest.mark.parametrize(
    "parallel, strategy, copies",
    [([], "auto", "DDP's buckets"), (["--parallel", "fsdp2"], "fsdp2", "there is no DDP")],
)
def test_script_prints_the_plan(capsys, parallel, strategy, copies):
    """Hydra has an override for a group of parallel, and none for its absence."""
    main(["--hours", "960", "--gpus", "32", *parallel])
    table = capsys.readouterr().out
    assert f"fp32, strategy {strategy} |" in table and copies in table
    assert "| days | not measured | python scripts/benchmark.py pretrain --sizes base" in table


@pytest.mark.parametrize("size, parameters", [("base", 94_371_712), ("large", 315_435_136)])
def test_parameters_are_those_of_hubert(size, parameters):
    """Without the heads; large as fairseq has it, without biases in the front end."""
    config = load(f"mshubert_{size}")
    sizes, d_model, d_head = count_parameters(config), config.model.encoder.d_model, config.model.label_heads.d_head
    heads = sum(d_model * d_head + d_head + clusters * d_head for clusters in config.model.label_sets)
    assert sizes.all - heads == parameters
    assert sizes.blocks == sizes.block * config.model.encoder.num_layers


@pytest.mark.parametrize("content", ["[]", "", "| a table |"])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match="x.json: not a JSON file of scripts/benchmark.py"):
        read_reports([tmp_path / "x.json"])
    with pytest.raises(FileNotFoundError, match="gone.json: no such file. Make it with scripts/benchmark.py"):
        read_reports([tmp_path / "gone.json"])


@pytest.mark.parametrize(
    "option, message",
    [
        ("--experiment=mshubert_huge", "invalid choice: 'mshubert_huge' (choose from .*mshubert_large"),
        ("--parallel=fsdp", "invalid choice: 'fsdp' (choose from .*megatron_tp2"),
        ("--gpus=0", "--gpus 0: expected more than 0"),
        ("--hours=-1", "--hours -1.0: expected more than 0"),
        ("--hours=nan", "--hours nan: expected more than 0"),
        ("--hours=inf", "--hours inf: expected more than 0"),
    ],
)
def test_wrong_options_are_named(capsys, option, message):
    """Otherwise Hydra's traceback, or a division by zero."""
    with pytest.raises(SystemExit):
        main(["--hours", "960", "--gpus", "32", option])
    assert re.search(message.replace("(", r"\("), capsys.readouterr().err)


def test_gpus_that_cannot_share_models_are_refused():
    """The run itself would end before it begins."""
    with pytest.raises(SystemExit, match=r"12 GPUs are no multiple of the 8 that share a model \(megatron_tp8\)"):
        main(["--hours", "960", "--gpus", "12", "--parallel", "megatron_tp8"])


def test_the_measured_rows_plan_with_overrides(capsys):
    """docs/scaling.md: the paper's update on 8 H200 as one micro-batch each, compiled, from the files beside the
    docs."""
    files = sorted((REPOSITORY / "docs" / "h200").glob("*.json"))
    steps = read_reports(files)["pretrain"]
    row = next(row for row in steps if row["row"] == "ours, compiled" and 349 < row["batch_seconds"] < 351)
    speed = row["audio_seconds_per_second"]
    overrides = ["--overrides", "model.train_ds.batch_duration=350", "model.compile=true"]
    main(["--hours", "960", "--gpus", "8", *overrides, "--benchmarks", *map(str, files)])
    printed = capsys.readouterr().out
    assert f"| {speed:.0f} audio-s/s on one NVIDIA H200" in printed and "1 micro-batches" in printed
    (days,) = (line.split("|")[2] for line in printed.splitlines() if line.startswith("| days |"))
    assert float(days) == pytest.approx(400_000 * 2800 / (8 * speed) / 86400, rel=1e-3)
    assert "not measured" not in printed
    main(["--hours", "960", "--gpus", "8", "--overrides", "size=xlarge", "--benchmarks", *map(str, files)])
    assert "--sizes xlarge" in capsys.readouterr().out  # large's updates were planned with the speed of base
    deeper = ["--hours", "960", "--gpus", "8", "--overrides", "model.encoder.num_layers=24"]
    with pytest.raises(SystemExit, match="steps of size base are of another num_layers. Leave out --benchmarks"):
        main([*deeper, "--benchmarks", *map(str, files)])
    main(deeper)
    assert "not measured" in capsys.readouterr().out
