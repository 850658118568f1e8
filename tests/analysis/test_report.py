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


"""The report of a fake run folder must show what was written to it, and name what is missing."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from nemo_mshubert.analysis import findings
from nemo_mshubert.analysis.experiments import join_sessions, read_experiments
from nemo_mshubert.analysis.report import html_report, markdown_report
from nemo_mshubert.analysis.report_tables import missing_parts, setup_tables
from nemo_mshubert.analysis.run_folder import read_run, read_runs
from nemo_mshubert.decoding import results
from tests.conftest import load_script

pytestmark = pytest.mark.unit
COMMAND = "python scripts/pretrain.py name=\"<b>a & b</b>\" 2>&1 | tee </log> # 'https'"


def write_events(folder, scalars):
    """Write ``{tag: {step: value}}`` as one TensorBoard file."""
    with SummaryWriter(str(folder)) as writer:
        for tag, curve in scalars.items():
            for step, value in curve.items():
                writer.add_scalar(tag, value, step)


def write_results(run, model, wer, cer, words=220, manifest="test_clean"):
    errors = {"reference_length": words, "substitutions": 1, "insertions": 2, "deletions": 3}
    summary = {"utterances": 16, "wer": wer, "cer": cer, "words": errors, "characters": {}}
    manifests = {manifest: results.Source("m.json", "1")}
    stored = results.Stored(f"{model}.nemo", "0", manifests, {manifest: {"greedy": summary}})
    results.write_results(run / "results" / model / "results.json", stored)


def write_label_metrics(run, iteration, sets, **fields):
    path = run / "labels" / iteration / "train.metrics.json"
    path.parent.mkdir(parents=True)
    report = {"manifest": "train.json", "maker": "m", "features": "39 MFCC features", "utterances": 9, **fields}
    path.write_text(json.dumps({**report, "sets": sets}))


@pytest.fixture
def run(tmp_path):
    """A finished run: two iterations of labels, a resumed pre-training, two fine-tunings, two evaluations."""
    run = tmp_path / "quickstart"
    aligned = dict(unit_purity=0.2473, cluster_purity=0.3081, pnmi=0.23992, pnmi_chance=0.1234, aligned_frames=5678)
    write_label_metrics(run, "iter10", {"100": dict(entropy_bits=6.493, used_clusters=97, dead_clusters=3)})
    write_label_metrics(run, "iter11", {"25": dict(entropy_bits=4.5, dead_clusters=0, **aligned)}, unit="word")
    write_label_metrics(run, "iter9", {"50": dict(entropy_bits=5.51, dead_clusters=0, **aligned)}, unit="phone")
    write_events(
        run / "mshubert" / "version_0",
        {
            "hp_metric": {0: -1.0},
            "train_100/masked_accuracy": {9: 0.1, 19: 0.2, 29: 0.3},
            "val_100/masked_accuracy": {20: 0.25},
            "learning_rate": {9: 1e-3, 19: 2e-3, 29: 3e-3},
            "validation_step_timing in s": {0: 1.0, 1: 1.0},
        },
    )
    write_events(
        run / "mshubert" / "version_1",
        {
            "hp_metric": {0: -1.0},
            "train_100/masked_accuracy": {29: 0.31, 39: 0.4},
            "train_100/loss": {29: 4.0},
            "val_100/masked_accuracy": {40: 0.4567},
            "val_100/unmasked_accuracy": {40: 0.125},
            "val_100/loss": {40: 3.25},
            "nonfinite_steps": {29: 0, 39: 2},
        },
    )
    for name, wer in (("finetune_pretrained", 0.3519), ("finetune_scratch", 0.805)):
        write_events(run / name / "version_0", {"val_wer": {9: 2.95, 19: wer}, "learning_rate": {9: 1e-3}})
    write_results(run, "scratch", 0.8888, 0.4444)
    write_results(run, "pretrained", 0.33333, 0.1111)
    lines = ["labels\t0\t1\told", f"pretrain\t50\t3723.6\t{COMMAND}", "labels\t40\t12.4\tnew --sets 100"]
    (run / "stages.tsv").write_text("\n".join(lines) + "\n")
    return run


class Page(HTMLParser):
    """Text of a page, its attributes, and whether its elements close in order."""

    VOID = {"meta", "img"}

    def __init__(self, html):
        super().__init__()
        self.open, self.cells, self.attributes, self.code = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag == "code":
            self.code.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data
        if self.open and self.open[-1] == "code":
            self.code[-1] += data


def captions(html):
    return [unescape(text) for text in re.findall("<figcaption>(.*?)</figcaption>", html)]


def main(*args):
    load_script("report").main([str(arg) for arg in args])


# --- Tables ----------------------------------------------------------------------------------------------------------

EXPECTED_ROWS = [
    ["test set", "decoding", "words", "WER %, pre-trained", "WER %, from scratch"]
    + ["CER %, pre-trained", "CER %, from scratch"],
    ["test_clean", "greedy", "220", "33.33", "88.88", "11.11", "44.44"],
    ["labels", "manifest", "clusters", "PNMI", "PNMI by chance", "unit purity", "cluster purity", "aligned frames"]
    + ["entropy, bits", "dead clusters", "unit", "features"],
    ["iter9", "train", "50", "0.240", "0.123", "0.247", "0.308", "5678", "5.51", "0", "phone", "39 MFCC features"],
    ["iter10", "train", "100", "–", "–", "–", "–", "–", "6.49", "3", "–", "39 MFCC features"],
    ["iter11", "train", "25", "0.240", "0.123", "0.247", "0.308", "5678", "4.50", "0", "word", "39 MFCC features"],
    ["labels", "12", "0:00:12"],
    ["pretrain", "3724", "1:02:04"],
    ["total", "3734", "1:02:14"],  # of two stages that ran beside each other for 2.4 s
]


def test_tables_show_what_was_written(run):
    found = read_run(run)
    cells, markdown = Page(html_report(found)).cells, markdown_report(found).splitlines()
    for row in EXPECTED_ROWS:
        assert row in cells
        assert f"| {' | '.join(row)} |" in markdown
    assert [row[0] for row in setup_tables(found)[0].rows] == ["iter9", "iter10", "iter11"]
    assert missing_parts(found) == []


def test_models_tested_on_different_sets_are_marked(run):
    write_results(run, "scratch", 0.5, 0.5, words=300)
    assert "| test_clean | greedy | 220 / 300 | 33.33 |" in markdown_report(read_run(run))
    assert "do not compare" in markdown_report(read_run(run))
    write_results(run, "scratch", 0.5, 0.25, manifest="dev")
    markdown = markdown_report(read_run(run))
    assert "| test_clean | greedy | 220 | 33.33 | – | 11.11 | – |" in markdown
    assert "| dev | greedy | 220 | – | 50.00 | – | 25.00 |" in markdown and "do not compare" not in markdown


def test_the_newest_line_of_a_stage_wins_in_its_first_place(run):
    assert [(stage.name, stage.seconds) for stage in read_run(run).stages] == [("labels", 12.4), ("pretrain", 3723.6)]


def test_time_of_all_stages_counts_no_second_twice(run):
    """Of stages that run beside others, in whatever order they are noted, and without the pauses between them."""
    times = [("late", 100, 10), ("long", 0, 50), ("within", 10, 5), ("across", 40, 20)]
    lines = [f"{name}\t{start}\t{seconds}\tcommand" for name, start, seconds in times]
    (run / "stages.tsv").write_text("\n\n".join(lines) + "\n")  # empty lines do no harm
    assert "| total | 70 | 0:01:10 |" in markdown_report(read_run(run))  # 0 to 60, and 100 to 110


def test_zero_is_a_result(run):
    """No error, or labels that tell nothing: a dash would say that nobody looked."""
    write_results(run, "pretrained", 0.0, 0.0)
    sets = {"25": dict(entropy_bits=0.0, dead_clusters=24, unit_purity=0.5, cluster_purity=1.0, pnmi=0.0)}
    write_label_metrics(run, "iter12", sets, unit="word")
    markdown = markdown_report(read_run(run))
    assert "| test_clean | greedy | 220 | 0.00 | 88.88 | 0.00 | 44.44 |" in markdown
    assert "| iter12 | train | 25 | 0.000 | – | 0.500 | 1.000 | – | 0.00 | 24 | word |" in markdown


def test_other_models_stand_behind_those_of_the_quickstart(run):
    write_results(run, "ablation", 0.5, 0.5)
    assert list(read_run(run).scores) == ["pretrained", "scratch", "ablation"]


def test_a_run_in_this_folder_has_its_name(run, monkeypatch):
    """``--run .``: a report of nothing."""
    monkeypatch.chdir(run)
    assert read_run(".").name == "quickstart"


def test_a_command_line_may_hold_tabs(run):
    """Else one stage with a tab in an argument would end the report of the whole run."""
    (run / "stages.tsv").write_text("labels\t0\t1\tprintf 'a\tb\tc'\n")
    assert [stage.command for stage in read_run(run).stages] == ["printf 'a\tb\tc'"]


def write_settings(run, name, **model):
    (run / name / "version_0" / "hparams.yaml").write_text(json.dumps({"cfg": {"model": model}}))


def test_settings_in_which_experiments_differ(run):
    """The first question to two curves is what was different; repeats, names and paths are not the answer."""
    common = {"optim": {"lr": 1e-3}, "label_maker": "/a/km.npz"}
    write_events(run / "noswap" / "version_0", {"val_100/loss": {3: 1.0}})
    write_settings(run, "mshubert", swap=True, label_sets=[100, 50], heads={"label_sets": [100, 50]}, **common)
    different = {**common, "label_maker": "/b/km.npz"}
    write_settings(run, "noswap", swap=False, label_sets=[100], heads={"label_sets": [100]}, seed=7, **different)
    markdown = markdown_report(read_run(run))
    assert "**Configurations: pre-training**" in markdown and "| experiment | swap | label_sets |" in markdown
    assert "| mshubert | True | 100, 50 |" in markdown and "| noswap | False | 100 |" in markdown
    write_events(run / "noswap" / "version_1", {"val_100/loss": {5: 1.0}})
    (run / "noswap" / "version_1" / "hparams.yaml").write_text(json.dumps({"cfg": {"model": {"swap": "later"}}}))
    assert "| noswap | later |" in markdown_report(read_run(run))  # of the session that trained last
    (run / "noswap" / "version_1" / "hparams.yaml").unlink()
    (run / "noswap" / "version_0" / "hparams.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="hparams.yaml: not YAML"):
        read_run(run)


def test_speed_is_the_median_over_all_sessions(run):
    write_events(run / "mshubert" / "version_2", {"micro_batch_seconds": {41: 0.5, 42: 9.0, 43: 0.7}})
    assert "| mshubert | 41 | 0.700 |" in markdown_report(read_run(run))


def test_several_runs_side_by_side(run, tmp_path):
    other = tmp_path / "other"
    write_results(other, "pretrained", 0.25, 0.125)
    write_events(other / "mshubert" / "version_0", {"val_100/loss": {3: 1.0}})
    (other / "stages.tsv").write_text("labels\t9000\t5\tcommand\n")
    together = read_runs([run, other])
    markdown = markdown_report(together)
    assert "| test_clean | greedy | 220 | 33.33 | 88.88 | 25.00 | 11.11 | 44.44 | 12.50 |" in markdown
    assert "WER %, quickstart: pre-trained" in markdown and "WER %, other: pre-trained" in markdown
    assert [experiment.name for experiment in together.pretrainings] == ["quickstart/mshubert", "other/mshubert"]
    assert "| other: labels | 5 | 0:00:05 |" in markdown and read_runs([run]) == read_run(run)
    assert "has not run" not in markdown
    Page(html_report(together))


def test_runs_of_one_name_are_told_apart(run, tmp_path):
    """The numbers of the second took the place of those of the first."""
    other = tmp_path / "other" / run.name
    write_results(other, "pretrained", 0.25, 0.125)
    markdown = markdown_report(read_runs([run, other]))
    assert f"WER %, {run}: pre-trained" in markdown and f"WER %, {other}: pre-trained" in markdown
    with pytest.raises(ValueError, match="name each run folder once"):
        read_runs([run, run / ".." / run.name])


# --- Findings of analyses --------------------------------------------------------------------------------------------


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def analysed(run):
    """The run with results of all analyses, as their scripts write them."""
    layers = lambda *scores: [{"layer": n, "score": score} for n, score in enumerate(scores)]  # noqa: E731
    models = [{"name": "ours", "auc": 0.5 + seed, "layers": layers(0.1 + seed, 0.3)} for seed in (0.0, 0.2)]
    sample = {"units": "words", "instances": 300, "instances_per_unit": {"a": 150, "b": 150}}
    write_json(run / "cca" / "cca.json", {"sample": sample, "areas": {"auc": "area"}, "models": models})
    best = {"learning_rate": 1e-3, "dev_error": 0.25, "update": 5}
    superb = {"task": "pr", "name": "ours", "best": best, "layer_weights": [0.25, 0.75]}
    sweep = [best, {"learning_rate": 1.0, "dev_error": None, "diverged": "..."}]
    write_json(run / "superb" / "superb.json", {**superb, "sweep": sweep, "tests": {"test-clean": {"rate": 0.1234}}})
    values = dict(masked_accuracy=0.5, unmasked_accuracy=0.25, loss=2.0, predicted_codes=9)
    values.update(label_entropy_bits=3.0, predicted_entropy_bits=2.0)
    views = {"apart": {"masked": [0.1, 0.2], "unmasked": [0.3, 0.4]}}
    model = {"name": "ours", "sets": {"10": values}, "views": views, "pnmi": [0.2, 0.3], "pnmi_chance": [0.1, 0.1]}
    write_json(run / "diagnostics" / "diagnostics.json", {"models": [model]})
    rows = [{"row": "step", "seconds": 0.123456}, {"row": "other"}]
    write_json(run / "benchmark_tiny.json", {"benchmark": "pretrain", "machine": {"cores": 2}, "rows": rows})
    return run


def test_findings_of_all_analyses_are_shown(analysed):
    """One page holds what is known of a model; a row per result, a plot per analysis."""
    html = html_report(read_run(analysed))
    cells = Page(html).cells
    for row in (
        ["ours", "2", "0.200 ± 0.141", "0.300 ± 0.000", "0.600 ± 0.141"],
        ["ours", "PR", "test-clean", "12.34", "0.001", "25.00", "0.001: 25.00, 1: diverged"],
        ["ours", "10", "50.00", "25.00", "2.000", "9", "3.00", "2.00"],
        ["step", "0.1235"],
        ["other", "–"],
    ):
        assert row in cells, row
    headings = re.findall("<h2>(.*?)</h2>", html)
    assert headings[:5] == ["Error rates", "What the layers know", "SUPERB", "Diagnostics", "Benchmarks"]
    of_analyses = ("CCA with words", "Learned weights", "diagnostics.")
    assert sum(caption.startswith(of_analyses) for caption in captions(html)) == 3
    assert "| ours | PR | test-clean | 12.34 |" in markdown_report(read_run(analysed))
    assert "Dotted there: what clusters that know nothing of phones reach" in html
    (folder, diagnoses) = read_run(analysed).findings["diagnostics"][0]
    unaligned = {key: value for key, value in diagnoses["models"][0].items() if not key.startswith("pnmi")}
    write_json(analysed / folder / "diagnostics.json", {**diagnoses, "models": [unaligned]})
    assert "Dotted there" not in html_report(read_run(analysed))


def test_analyses_may_lie_among_the_results(analysed):
    """Such a folder ended the report, with the advice to repeat scripts/evaluate.py."""
    (analysed / "cca").rename(analysed / "results" / "cca")
    moved = read_run(analysed)
    assert set(moved.scores) == {"pretrained", "scratch"} and len(moved.findings["cca"]) == 1


def test_findings_are_in_the_order_of_their_names(tmp_path):
    """The order in a folder is the file system's: the same results would be another report on another machine."""
    for name in "dbeac":
        write_json(tmp_path / f"benchmark_{name}.json", {"benchmark": name, "machine": {}, "rows": []})
    assert [content["benchmark"] for _, content in read_run(tmp_path).findings["benchmarks"]] == list("abcde")


def test_files_of_others_under_these_names_are_left_out(analysed):
    """A diagnostics.json of another program is none of ours, and ours without a model has nothing to show."""
    write_json(analysed / "other" / "diagnostics.json", {"disk": "full"})
    assert len(read_run(analysed).findings["diagnostics"]) == 1
    write_json(analysed / "other" / "diagnostics.json", ["disk"])
    with pytest.raises(ValueError, match="other/diagnostics.json: not the expected JSON"):
        read_run(analysed)


def test_tasks_of_superb_have_plots_of_their_own(analysed, monkeypatch):
    """Weights for phones and for words, drawn into one plot, could not be told apart."""
    drawn = []
    monkeypatch.setattr(findings, "png_of", lambda figure: b"")
    monkeypatch.setattr(findings, "plot_layer_weights", drawn.append)
    content = json.loads((analysed / "superb" / "superb.json").read_text())
    write_json(analysed / "superb" / "asr" / "superb.json", {**content, "task": "asr"})
    markdown_report(read_run(analysed))
    assert sorted([result["task"] for result in results] for results in drawn) == [["asr"], ["pr"]]


def test_a_folder_of_analyses_alone_is_a_run(analysed):
    assert len(markdown_report(read_run(analysed / "superb")).splitlines()) > 3
    (analysed / "superb" / "superb.json").write_text('{"sweep": ')
    with pytest.raises(ValueError, match="superb/superb.json: not the expected JSON .*Repeat the command"):
        read_run(analysed)


# --- Curves ----------------------------------------------------------------------------------------------------------


def test_resumed_versions_are_joined_by_step(run):
    experiment = next(found for found in read_experiments(run) if found.name == "mshubert")
    assert experiment.curve("train_100/masked_accuracy") == pytest.approx({9: 0.1, 19: 0.2, 29: 0.31, 39: 0.4})
    assert experiment.curve("val_100/masked_accuracy") == pytest.approx({20: 0.25, 40: 0.4567})
    assert experiment.curve("learning_rate") == pytest.approx({9: 1e-3, 19: 2e-3})  # 29 was done again
    assert experiment.label_sets == [100]
    assert not {"hp_metric", "validation_step_timing in s"} & set(experiment.scalars)


def test_join_sessions_lets_the_newest_win():
    older, newer = {"a": {1: 1.0, 2: 2.0, 5: 5.0}, "b": {4: 4.0}}, {"a": {3: 33.0, 6: 66.0}}
    assert join_sessions([older, {}, newer]) == {"a": {1: 1.0, 2: 2.0, 3: 33.0, 6: 66.0}}
    assert join_sessions([newer, older]) == older  # begun again from the first update


def test_version_10_is_newer_than_version_9(tmp_path):
    for number, value in ((10, 0.1), (9, 0.9)):
        write_events(tmp_path / "finetune" / f"version_{number}", {"val_wer": {5: value}})
    (experiment,) = read_experiments(tmp_path)
    assert experiment.curve("val_wer") == pytest.approx({5: 0.1})


def test_names_of_experiments_are_their_paths_below_the_run(tmp_path):
    """Else two of one name in different folders share a curve, and a report of one experiment alone calls it "."."""
    for folder in ("large/finetune", "small/finetune"):
        write_events(tmp_path / folder / "version_0", {"val_wer": {5: 0.5}})
    names = {experiment.name for experiment in read_experiments(tmp_path)}
    assert names == {"large/finetune", "small/finetune"}
    assert [experiment.name for experiment in read_experiments(tmp_path / "small" / "finetune")] == ["finetune"]


def test_experiments_are_in_the_order_in_which_they_started(tmp_path):
    """By the first of their sessions: the pre-training comes before the fine-tuning, whatever their names."""
    started = {"a/version_0": 300, "b/version_0": 100, "b/version_1": 900, "c/version_0": 200}
    for version, seconds in started.items():
        write_events(tmp_path / version, {"val_wer": {5: 0.5}})
        (file,) = (tmp_path / version).iterdir()
        file.rename(file.with_name(f"events.out.tfevents.{1_700_000_000 + seconds}.host.1.0"))
    assert [experiment.name for experiment in read_experiments(tmp_path)] == ["b", "c", "a"]


def test_captions_tell_the_last_validation(run):
    html = html_report(read_run(run))
    found = captions(html)
    accuracy = (
        "mshubert, 100 clusters: accuracy. Last validation: masked 45.67 % at step 40, unmasked 12.50 % at step 40."
    )
    assert accuracy in found
    assert "mshubert, 100 clusters: loss. Last validation: 3.250 at step 40." in found
    (wer,) = (caption for caption in found if caption.startswith("Word error rate"))
    assert "finetune_pretrained 35.19 % at step 19, finetune_scratch 80.50 % at step 19." in wer
    assert "the highest value is 295 %" in wer
    assert "Learning rate of pre-training." in found and "Learning rate of fine-tuning." in found
    assert "2 updates were skipped" in html
    assert html.count("data:image/png;base64,iVBOR") == len(found) == 5


def test_many_pretrainings_share_plots(tmp_path):
    """Nine seeds with twelve plots each are no report: a plot per label set, a colour per configuration."""
    for seed, loss in ((1, 3.0), (2, 5.0)):
        write_events(tmp_path / f"ours_seed{seed}" / "version_0", {"val_100/loss": {5: 9.0, 9: loss}})
    write_events(tmp_path / "plain" / "version_0", {"val_100/loss": {9: 6.0}, "val_50/loss": {9: 2.0}})
    found = captions(html_report(read_run(tmp_path)))
    assert "100 clusters: loss. Last validations, mean: ours 4 (2 runs), plain 6 (1 runs)." in found
    assert "50 clusters: loss. Last validations, mean: plain 2 (1 runs)." in found and len(found) == 2


def test_two_pretrainings_have_plots_of_their_own(tmp_path):
    """HuBERT and MS-HuBERT, as the quickstart makes them: they would be in neither kind of plot, or in both."""
    for name, loss in (("ours", 3.0), ("plain", 5.0)):
        write_events(tmp_path / name / "version_0", {"val_100/loss": {9: loss}})
    assert sorted(captions(html_report(read_run(tmp_path)))) == [
        "ours, 100 clusters: loss. Last validation: 3.000 at step 9.",
        "plain, 100 clusters: loss. Last validation: 5.000 at step 9.",
    ]


def test_views_and_codes_have_plots_of_their_own(tmp_path):
    values = {"val_50/predicted_codes": {9: 25.0}, "val_views/masked_cosine_4": {9: 0.75}, "val_50/loss": {9: 1.0}}
    write_events(tmp_path / "ours" / "version_0", values)
    found = captions(html_report(read_run(tmp_path)))
    assert "ours: cosine of the two views at masked frames. Last validation: block 4 0.75 at step 9." in found
    assert "ours: clusters predicted at masked frames. Last validation: 50 50 at step 9." in found
    (experiment,) = read_experiments(tmp_path)
    assert experiment.label_sets == [50]


def test_values_that_are_not_finite_are_left_out(tmp_path):
    values = {9: float("nan"), 19: float("inf"), 29: 0.5}
    write_events(tmp_path / "pretrain" / "version_0", {"val_10/loss": values, "train_10/loss": {9: float("nan")}})
    assert "Last validation: 0.500 at step 29." in html_report(read_run(tmp_path))
    write_events(tmp_path / "only_nan" / "version_0", {"val_10/loss": {9: float("nan")}})
    Page(html_report(read_run(tmp_path)))


# --- HTML ------------------------------------------------------------------------------------------------------------


def test_html_is_well_formed_and_refers_to_nothing_outside(run):
    html = html_report(read_run(run))
    page = Page(html)
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    assert sources and all(value.startswith("data:image/png;base64,") for value in sources)
    assert "://" not in html and "url(" not in html and "@import" not in html and "<script" not in html


def test_command_lines_are_escaped(run):
    html = html_report(read_run(run))
    assert "<b>" not in html and "&lt;b&gt;a &amp; b&lt;/b&gt;" in html
    assert Page(html).code == ["new --sets 100", COMMAND]


# --- Unfinished and damaged runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts, stage, heading",
    [
        (["stages.tsv"], "No stage of quickstart.sh has finished", "Time"),
        (["labels"], "Labelling (scripts/label.py make) has not run", "Labels"),
        (["results/pretrained"], "Evaluation pre-trained (scripts/evaluate.py) has not run", ""),
        (["results/scratch"], "Evaluation from scratch (scripts/evaluate.py) has not run", ""),
        (["mshubert"], "Pre-training (scripts/pretrain.py) has not run", "Pre-training"),
        (
            ["finetune_pretrained", "finetune_scratch"],
            "Fine-tuning (scripts/finetune_ctc.py) has not run",
            "Fine-tuning",
        ),
    ],
)
def test_a_missing_part_is_named_and_left_out(run, parts, stage, heading):
    for part in parts:
        (run / part).rename(run.parent / Path(part).name)
    found = read_run(run)
    html = html_report(found)
    Page(html)
    (sentence,) = missing_parts(found)
    assert sentence.startswith(stage) and sentence in markdown_report(found) and sentence in unescape(html)
    assert not heading or f"<h2>{heading}</h2>" not in html


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run folder.*--run"):
        read_run(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="holds neither stages.tsv"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "name, text, message",
    [
        (
            "stages.tsv",
            "labels\t0\t1\tcommand\npretrain 12\n",
            "stages.tsv:2: expected name, start, seconds and command",
        ),
        ("stages.tsv", "labels\tsoon\t1\tcommand\n", "stages.tsv:1: expected"),
        ("results/scratch/results.json", '{"results": {"dev', "scratch/results.json: not a results.json"),
        ("results/scratch/results.json", "{}", "scratch/results.json: not a results.json of scripts/evaluate.py"),
        (
            "results/scratch/results.json",
            '{"model": "m", "weights": "w", "manifests": {}, "results": [1]}',
            "scratch/results.json: not a results.json",
        ),
        (
            "results/scratch/results.json",
            '{"manifests": {}}',
            "('model')). If it was one, remove it or choose another --output, and",
        ),
        ("labels/iter9/train.metrics.json", '{"sets": {"5": {}}}', "train.metrics.json: lacks 'entropy_bits'. Repeat"),
        ("labels/iter9/train.metrics.json", "[1]", "train.metrics.json: not the expected JSON"),
        ("labels/iter9/train.metrics.json", '{"sets": [1]}', "train.metrics.json: not the expected JSON"),
        ("labels/iter9/train.metrics.json", "", "train.metrics.json: not the expected JSON"),
    ],
)
def test_damaged_files_are_named_with_a_remedy(run, name, text, message):
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_run(run)


def test_an_event_file_cut_short_gives_what_is_whole(run):
    (path,) = (run / "finetune_scratch" / "version_0").glob("events*")
    path.write_bytes(path.read_bytes()[:-7])
    experiment = next(found for found in read_experiments(run) if found.name == "finetune_scratch")
    assert experiment.curve("val_wer") == pytest.approx({9: 2.95, 19: 0.805})
    assert experiment.curve("learning_rate") == {}  # the last record


# --- script ----------------------------------------------------------------------------------------------------------


def test_script_prints_the_tables_and_writes_the_page(run, capsys):
    output = run / "report.html"
    main("--run", run, "--output", output)
    printed = capsys.readouterr().out
    assert "| test_clean | greedy | 220 | 33.33 | 88.88 | 11.11 | 44.44 |" in printed and str(output) in printed
    Page(output.read_text(encoding="utf-8"))
    main("--run", run, "--output", output)  # again, over the old one
    assert not list(run.glob(".*.tmp"))


def test_script_names_what_is_wrong_and_keeps_the_old_page(run, tmp_path):
    output = tmp_path / "report.html"
    output.write_text("old")
    (run / "stages.tsv").write_text("broken\n")
    with pytest.raises(SystemExit, match="stages.tsv:1"):
        main("--run", run, "--output", output)
    assert output.read_text() == "old"
