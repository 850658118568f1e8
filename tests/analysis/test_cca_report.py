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

"""Word-CCA end to end: chords for words, minuscule encoders, results, resuming, the script."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from nemo_mshubert.analysis import cca_report
from nemo_mshubert.analysis.cca import CcaSettings
from nemo_mshubert.analysis.cca_report import (
    analyze_models,
    areas,
    load_hidden_states,
    plot_curves,
    read_pooled,
    results_table,
    summary_table,
    write_pooled,
)
from nemo_mshubert.analysis.word_segments import AllHiddenStates, pool_instances, sample_instances
from nemo_mshubert.data.alignments import read_alignments
from tests.conftest import load_script

pytestmark = pytest.mark.unit


NUM_WORDS, INSTANCES, WORD_SECONDS = 30, 16, 0.2
WORDS = [f"w{number:02d}" for number in range(NUM_WORDS)]


@pytest.fixture(scope="module")
def chords(tmp_path_factory):
    """``manifest`` and ``alignments`` of 8 utterances that speak 30 words twice each: a word is a chord in noise."""
    folder = tmp_path_factory.mktemp("chords")
    rng = np.random.default_rng(0)
    time = np.arange(int(WORD_SECONDS * 16000)) / 16000
    chord = {word: rng.uniform(100, 4000, size=3) for word in WORDS}
    lines, aligned = [], []
    for number in range(INSTANCES // 2):
        order = rng.permutation(WORDS * 2).tolist()
        audio = np.concatenate([np.sin(2 * np.pi * np.outer(time, chord[word])).sum(axis=1) for word in order])
        audio = 0.1 * audio + 0.02 * rng.normal(size=len(audio))
        soundfile.write(folder / f"u{number}.flac", audio, 16000)
        lines.append({"audio_filepath": f"u{number}.flac", "duration": len(audio) / 16000, "text": " ".join(order)})
        times = [(word, index * WORD_SECONDS, (index + 1) * WORD_SECONDS) for index, word in enumerate(order)]
        rows = [{"word": word, "start": round(start, 2), "end": round(end, 2)} for word, start, end in times]
        aligned.append({"utt_id": f"u{number}", "words": rows})
    (folder / "dev.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in aligned))
    return SimpleNamespace(manifest=folder / "dev.json", alignments=folder / "words.jsonl")


@pytest.fixture
def sample(chords):
    return sample_instances([chords.manifest], read_alignments([chords.alignments], "word"), WORDS, INSTANCES)


@pytest.fixture
def load(tiny_encoder):
    """``load(path)``: the seeded encoder ``<seed>.nemo``; ``load.calls`` counts the passes of audio."""

    class Counted(AllHiddenStates):
        def __call__(self, waveforms):
            make.calls += 1
            return super().__call__(waveforms)

    def make(path):
        return Counted(tiny_encoder(seed=int(Path(path).stem)))

    make.calls = 0
    return make


# --- Results ---------------------------------------------------------------------------------------------------------


def test_results_of_two_models(sample, load, tmp_path):
    runs = analyze_models([("A", "1.nemo"), ("B", "2.nemo")], sample, tmp_path, load=load)
    results = json.loads((tmp_path / "cca.json").read_text())
    assert results["models"] == runs and results["settings"]["num_trials"] == 3
    assert results["sample"]["instances"] == NUM_WORDS * INSTANCES and "layers 0" in results["areas"]["auc"]
    for run in runs:
        assert [row["layer"] for row in run["layers"]] == [0, 1, 2, 3, 4]
        for row in run["layers"]:
            scores = [trial["score"] for trial in row["trials"]]
            assert row["score"] == pytest.approx(np.mean(scores)) and row["std"] == pytest.approx(np.std(scores))
            assert 0.3 < row["score"] <= 1  # random weights let chords through
        assert run["auc"] == areas([row["score"] for row in run["layers"]])["auc"]
    with open(tmp_path / "cca.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [(row["name"], row["layer"]) for row in table] == [(n, str(layer)) for n in "AB" for layer in range(5)]
    assert float(table[7]["score"]) == pytest.approx(runs[1]["layers"][2]["score"], abs=1e-6)
    assert list(table[0])[-3:] == ["trial_1", "trial_2", "trial_3"]
    assert summary_table(runs) in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "cca.png").read_bytes().startswith(b"\x89PNG")
    assert "AUC over layers 0-4" in results_table(runs)


def test_files_of_one_name_have_one_depth(sample, tiny_encoder, tmp_path):
    """Found when hours of scoring were done; the results that were written then ended the report, too."""

    def load(path):
        return AllHiddenStates(tiny_encoder(num_layers=int(Path(path).stem)))

    with pytest.raises(
        ValueError, match="2.nemo: 2 layers, where another file of A has 3. Give models of other depths"
    ):
        analyze_models([("A", "3.nemo"), ("A", "2.nemo")], sample, tmp_path, load=load)
    assert [run["file"] for run in json.loads((tmp_path / "cca.json").read_text())["models"]] == ["3.nemo"]


def test_words_that_are_not_in_the_audio_are_at_chance(sample, load, tmp_path):
    """The same audio and times, the names shuffled."""
    sample = replace(sample, unit=np.random.default_rng(0).permutation(sample.unit))
    (run,) = analyze_models([("A", "1.nemo")], sample, tmp_path, load=load)
    assert max(abs(row["score"]) for row in run["layers"]) < 0.1


def test_areas_by_hand():
    expected = {"auc": 0.5 * 0.2 + 0.4 + 0.8 + 0.5 * 0.6, "auc_blocks": 0.5 * 0.4 + 0.8 + 0.5 * 0.6}
    assert areas([0.2, 0.4, 0.8, 0.6]) == pytest.approx({**expected, "auc_normalized": expected["auc"] / 3})
    assert areas([0.7] * 13) == pytest.approx({"auc": 8.4, "auc_blocks": 7.7, "auc_normalized": 0.7})


def fake_run(name, *scores):
    rows = [{"layer": n, "score": score, "std": 0, "trials": []} for n, score in enumerate(scores)]
    return {"name": name, "file": f"{name}.nemo", **areas(scores), "layers": rows}


def test_plot_has_a_curve_per_name_and_a_band_per_group():
    runs = [fake_run("ours", 0.1, 0.5, 0.3), fake_run("ours", 0.3, 0.7, 0.5), fake_run("HuBERT", 0.1, 0.2, 0.1)]
    (axes,) = plot_curves(runs, "PWCCA").axes
    ours, hubert = axes.get_lines()
    assert ours.get_ydata().tolist() == pytest.approx([0.2, 0.6, 0.4])
    assert hubert.get_ydata().tolist() == pytest.approx([0.1, 0.2, 0.1])
    assert len(axes.collections) == 1
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["ours (AUC 0.90)", "HuBERT (AUC 0.30)"]


def test_more_models_than_markers_are_all_drawn():
    """Ten markers: the eleventh model was on no plot."""
    (axes,) = plot_curves([fake_run(f"model {number}", 0.1, 0.2) for number in range(23)], "PWCCA").axes
    assert len(axes.get_lines()) == 23


def test_text_has_the_best_layer_and_the_areas():
    """What is read off the terminal, layers counted from 0, the input of the transformer."""
    first, *lines = results_table([fake_run("ours", 0.1, 0.2, 0.5, 0.3), fake_run("- Swap", 0.1, 0.3)]).splitlines()
    assert first == "ours (ours.nemo)" and lines[0] == "  0.100 0.200 0.500 0.300"
    areas_of_all = "AUC over layers 0-3: 0.900, over 1-3: 0.750, mean height 0.300"  # 0.05 + 0.2 + 0.5 + 0.15
    assert lines[1] == f"  best layer 2; {areas_of_all}"
    assert lines[4] == "  best layer 1; AUC over layers 0-1: 0.200, over 1-1: 0.000, mean height 0.200"


def test_flat_curves_are_not_drawn_on_the_upper_edge():
    """Random or barely trained encoders are alike in all layers: half of each marker was cut off."""
    (axes,) = plot_curves([fake_run("random", 0.1, 0.101, 0.1)], "PWCCA").axes
    bottom, top = axes.get_ylim()
    assert bottom == 0 and top > 0.104


def test_summary_has_mean_and_spread_of_the_seeds():
    """What docs quote: three seeds of a model are a mean and a sample standard deviation, one seed has no spread."""
    scores = [(0.1, 0.5, 0.3), (0.3, 0.9, 0.5), (0.2, 0.1, 0.1)]
    runs = [*(fake_run("ours", *row) for row in scores), fake_run("deeper", 0.1, 0.2, 0.3, 0.4)]
    header, _, ours, deeper = summary_table(runs).splitlines()
    assert header == "| model | runs | layer 0 | layer 1 | layer 2 | layer 3 | AUC |"
    cells = [f"{np.mean(column):.3f} ± {np.std(column, ddof=1):.3f}" for column in zip(*scores)]
    areas_of_runs = [run["auc"] for run in runs[:3]]
    area = f"{np.mean(areas_of_runs):.3f} ± {np.std(areas_of_runs, ddof=1):.3f}"
    assert ours == f"| ours | 3 | {' | '.join(cells)} |  | {area} |"
    assert deeper == "| deeper | 1 | 0.100 | 0.200 | 0.300 | 0.400 | 0.750 |"


# --- Resuming --------------------------------------------------------------------------------------------------------


def test_a_second_call_computes_nothing(sample, load, tmp_path, monkeypatch):
    first = analyze_models([("A", "1.nemo")], sample, tmp_path, load=load)
    calls = load.calls
    monkeypatch.setattr(cca_report, "score_views", None)  # may not be called
    assert analyze_models([("renamed", "1.nemo")], sample, tmp_path, load=load)[0]["layers"] == first[0]["layers"]
    assert load.calls == calls


def test_an_interrupted_call_goes_on(sample, load, tmp_path, monkeypatch):
    """The first model is done, the second one is pooled but not scored: only its scores are made."""
    models = [("A", "1.nemo"), ("B", "2.nemo")]
    whole = analyze_models(models, sample, tmp_path / "whole", load=load)
    analyze_models(models[:1], sample, tmp_path / "parts", load=load)
    score = cca_report.score_views
    monkeypatch.setattr(cca_report, "score_views", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        analyze_models(models, sample, tmp_path / "parts", load=load)
    assert [run["name"] for run in json.loads((tmp_path / "parts" / "cca.json").read_text())["models"]] == ["A"]
    monkeypatch.setattr(cca_report, "score_views", score)
    calls = load.calls
    assert analyze_models(models, sample, tmp_path / "parts", load=load) == whole
    assert load.calls == calls


def test_another_sample_or_setting_is_computed_anew(chords, sample, load, tmp_path):
    settings = [CcaSettings(), CcaSettings(seed=1), CcaSettings(weights="layerwise-analysis")]
    scores = [analyze_models([("A", "1.nemo")], sample, tmp_path, one, load)[0]["auc"] for one in settings]
    assert len(set(scores)) == 3 and len(list((tmp_path / "features").iterdir())) == 1
    aligned = read_alignments([chords.alignments], "word")
    other = sample_instances([chords.manifest], aligned, WORDS, INSTANCES - 2, seed=1)
    analyze_models([("A", "1.nemo")], other, tmp_path, load=load)
    assert len(list((tmp_path / "features").iterdir())) == 2
    analyze_models([("A", "2.nemo")], sample, tmp_path, load=load)
    assert len(list((tmp_path / "features").iterdir())) == 3
    assert not list(tmp_path.rglob("*.tmp"))


def test_one_encoder_of_scaled_and_of_plain_audio_has_two_curves(sample, tiny_encoder, tmp_path):
    """Its two files differ in their preprocessor alone: the scores of one would be shown as those of the other."""

    def load(path):
        return AllHiddenStates(tiny_encoder(), SimpleNamespace(normalized=path == "scaled.nemo"))

    runs = analyze_models([("plain", "plain.nemo"), ("scaled", "scaled.nemo")], sample, tmp_path, load=load)
    scores = [[row["score"] for row in run["layers"]] for run in runs]
    assert scores[0] != scores[1]
    (alone,) = analyze_models([("scaled", "scaled.nemo")], sample, tmp_path / "alone", load=load)
    assert [row["score"] for row in alone["layers"]] == scores[1]


def test_pooled_features_on_disk(sample, load, tmp_path):
    pooled = pool_instances(sample, load("1.nemo"))
    path = tmp_path / "features.npz"
    write_pooled(path, pooled)
    for layer, states in enumerate(pooled):
        np.testing.assert_array_equal(read_pooled(path, layer), states)
    whole = path.read_bytes()
    method = whole.index(b"PK\x01\x02") + 10  # of compression, in the directory at the end
    for damaged in (b"", whole[:1000], whole[:method] + b"\x63" + whole[method + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="features.npz: damaged.*Delete it"):
            read_pooled(path, 0)
    write_pooled(path, pooled[:2])
    with pytest.raises(ValueError, match="features.npz: damaged.*layer_2"):
        read_pooled(path, 2)


def test_a_file_in_place_of_the_output_folder_is_noticed_before_any_audio(sample, load, tmp_path):
    """The hidden states of the whole corpus were computed, and then there was nowhere to write them."""
    (tmp_path / "cca").write_text("a file")
    for output in (tmp_path / "cca", tmp_path / "cca" / "words"):
        with pytest.raises(OSError, match="cca"):
            analyze_models([("A", "1.nemo")], sample, output, load=load)
    assert load.calls == 0


def test_too_few_instances_are_noticed_before_any_audio(chords, load, tmp_path):
    aligned = read_alignments([chords.alignments], "word")
    few = sample_instances([chords.manifest], aligned, WORDS, 5)
    with pytest.raises(ValueError, match="1.nemo: 150 samples of 30 units for 24 features.*15 in a held-out split"):
        analyze_models([("A", "1.nemo")], few, tmp_path, load=load)
    assert load.calls == 0


# --- .nemo files and the script --------------------------------------------------------------------------------------


def test_pretrained_and_ctc_files_give_the_same_encoder(ssl_path, letters_path, sample):
    ssl, ctc = load_hidden_states(ssl_path), load_hidden_states(letters_path)
    assert ssl.fingerprint == ctc.fingerprint and ssl.num_states == 5
    np.testing.assert_array_equal(pool_instances(sample, ssl), pool_instances(sample, ctc))


def test_hidden_states_are_of_audio_at_the_scale_of_the_model(ssl_path):
    """The tiny model was trained on audio scaled to unit variance: without, another curve, and no word of it."""
    assert load_hidden_states(ssl_path).normalized


def test_files_that_are_no_such_model(tmp_path, tiny_encoder, monkeypatch):
    with pytest.raises(FileNotFoundError, match="gone.nemo: no such file"):
        load_hidden_states(tmp_path / "gone.nemo")
    from nemo_mshubert.models import loading

    monkeypatch.setattr(loading, "restore_model", lambda path: SimpleNamespace(encoder=torch.nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="other.nemo: its encoder is Linear, expected MSHuBERTEncoder"):
        load_hidden_states("other.nemo")
    layers = [[16, 10, 5], [16, 3, 2], [16, 3, 2], [16, 3, 2], [16, 3, 2], [16, 2, 2]]
    model = SimpleNamespace(encoder=tiny_encoder(conv_layers=layers), preprocessor=None)
    monkeypatch.setattr(loading, "restore_model", lambda path: model)
    with pytest.raises(ValueError, match=r"fast.nemo: The encoder makes a frame of 160 samples \(100 Hz\)"):
        load_hidden_states("fast.nemo")


@pytest.fixture
def script():
    return load_script("analyze_cca")


def test_script(script, chords, ssl_path, tmp_path, capsys):
    script.main(
        f"--model MS-HuBERT={ssl_path} same={ssl_path} --manifest {chords.manifest} --alignments {chords.alignments} "
        f"--train_alignments {chords.alignments} --top {NUM_WORDS} --instances {INSTANCES} --device cpu "
        f"--output {tmp_path}".split()
    )
    assert capsys.readouterr().out.startswith("MS-HuBERT (")
    first, second = json.loads((tmp_path / "cca.json").read_text())["models"]
    assert first["layers"] == second["layers"] and (first["name"], second["name"]) == ("MS-HuBERT", "same")


def test_options_of_the_script_arrive(script, chords, tmp_path, monkeypatch):
    """Words counted in dev instead of train, or one seed for all: another figure than the one that was asked for."""
    handed = []

    def analyze(models, sample, output, settings, load):
        handed.append((sample, settings))
        return [fake_run("A", 0.1, 0.2)]

    monkeypatch.setattr(cca_report, "analyze_models", analyze)
    counts = {"w21": 3, "w03": 2, "w00": 1}
    rows = [{"word": word, "start": 0.0, "end": 0.2} for word, count in counts.items() for _ in range(count)]
    (tmp_path / "train.jsonl").write_text(json.dumps({"utt_id": "other", "words": rows}) + "\n")
    options = f"--model A=a.nemo --manifest {chords.manifest} --alignments {chords.alignments} --device cpu --output o"
    options += " --top 2 --instances 5"
    script.main(options.split())
    options += f" --train_alignments {tmp_path}/train.jsonl --seed 7 --weights layerwise-analysis"
    script.main(options.split())
    aligned = read_alignments([chords.alignments], "word")
    ((default, default_settings), (sample, settings)) = handed
    assert default.id == sample_instances([chords.manifest], aligned, ["w00", "w01"], 5, seed=0).id
    assert default_settings == CcaSettings(weights="published", seed=0)
    assert sample.id == sample_instances([chords.manifest], aligned, ["w21", "w03"], 5, seed=7).id
    assert sample.id != sample_instances([chords.manifest], aligned, ["w21", "w03"], 5, seed=0).id
    assert settings == CcaSettings(weights="layerwise-analysis", seed=7)


def test_script_defaults_are_the_published_ones(script, capsys):
    required = "--model A=a.nemo --manifest m --alignments a --output o".split()
    words = script.parse_args(required)
    assert (words.top, words.instances, words.model) == (500, 15, [("A", "a.nemo")])
    swapless = script.parse_args([*required, "--model", "- Swap=b.nemo"])
    assert swapless.model == [("A", "a.nemo"), ("- Swap", "b.nemo")]
    phones = script.parse_args([*required, "--units", "phones"])
    assert (phones.top, phones.instances) == (None, 200)
    with pytest.raises(SystemExit):
        script.parse_args([*required, "--model", "a.nemo"])
    assert "expected NAME=FILE.nemo, found 'a.nemo'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["top", "instances"])
@pytest.mark.parametrize("number", ["-1", "0"])
def test_numbers_below_one_are_refused(script, option, number, capsys):
    """-1, meant as "all", left out the rarest unit or an instance of each; 0 was taken for the default."""
    required = "--model A=a.nemo --manifest m --alignments a --output o".split()
    with pytest.raises(SystemExit):
        script.parse_args([*required, f"--{option}", number])
    assert f"--{option} {number}: at least 1" in capsys.readouterr().err
