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

"""The search for decoding weights: resumable trial by trial, and refused where it would waste hours."""

import builtins
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.decoding import search as search_module
from nemo_mshubert.decoding import tuning
from nemo_mshubert.decoding.config import read_config
from nemo_mshubert.decoding.log_probs import write_log_probs
from nemo_mshubert.decoding.parallel import ParallelDecoder
from nemo_mshubert.decoding.search import RANGES, Trial, plot_trials, read_trials, require_ax, search
from nemo_mshubert.decoding.tuning import tune

ROOT = Path(__file__).resolve().parents[2]
FIRST = {"lm_weight": 2.0, "word_score": -1.0, "sil_score": 0.0}
INITIAL_TRIALS = search_module.INITIAL_TRIALS  # before tests make it less


@pytest.fixture(autouse=True)
def needs_ax(request, monkeypatch):
    """Three initial trials instead of eight, so that a test soon reaches the Bayesian phase."""
    monkeypatch.setattr(search_module, "INITIAL_TRIALS", 3)
    if "without_ax" not in request.node.name:
        pytest.importorskip("ax", reason="Ax is an optional extra")


def bowl(weights):
    """Least at (3, 1, -2)."""
    return 0.05 + sum((weights[name] - best) ** 2 for name, best in zip(RANGES, (3.0, 1.0, -2.0))) / 1000


@pytest.mark.integration
@pytest.mark.parametrize("finished", [1, 2, 4])
def test_an_interrupted_search_resumes_with_the_same_trials(tmp_path, finished):
    """Interrupted in its first, Sobol and Bayesian phase: the trials must be those of the uninterrupted search."""
    calls = []

    def interrupted(weights):
        if len(calls) == finished:
            raise KeyboardInterrupt
        calls.append(weights)
        return bowl(weights)

    whole = search(bowl, tmp_path / "whole.jsonl", {"lm": "a"}, FIRST, num_trials=5, seed=3)
    with pytest.raises(KeyboardInterrupt):
        search(interrupted, tmp_path / "resumed.jsonl", {"lm": "a"}, FIRST, num_trials=5, seed=3)
    assert len(read_trials(tmp_path / "resumed.jsonl", {"lm": "a"})) == finished

    resumed_calls = []

    def counted(weights):
        resumed_calls.append(weights)
        return bowl(weights)

    resumed = search(counted, tmp_path / "resumed.jsonl", {"lm": "a"}, FIRST, num_trials=5, seed=3)
    assert resumed == whole and len(resumed_calls) == 5 - finished
    assert (tmp_path / "resumed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert whole[0].weights == FIRST
    assert len({tuple(trial.weights.values()) for trial in whole}) == 5  # no trial is spent twice
    assert search(None, tmp_path / "whole.jsonl", {"lm": "a"}, FIRST, num_trials=5, seed=3) == whole  # nothing to run
    assert search(None, tmp_path / "whole.jsonl", {"lm": "a"}, FIRST, num_trials=2, seed=3) == whole[:2]


@pytest.mark.unit
def test_another_seed_is_another_search(tmp_path):
    """A second search would find what the first has found, and seem to confirm it."""
    second = [search(bowl, tmp_path / str(seed), {}, FIRST, num_trials=2, seed=seed)[1].weights for seed in (0, 1)]
    assert second[0] != second[1]


@pytest.mark.unit
def test_proposals_do_not_depend_on_the_number_of_cores(tmp_path, monkeypatch):
    """A search that is resumed on another machine would go on with other trials; decoding has its threads again."""
    from ax.api.client import Client

    seen, get_next_trials = [], Client.get_next_trials

    def watched(*arguments):
        seen.append(torch.get_num_threads())
        return get_next_trials(*arguments)

    monkeypatch.setattr(Client, "get_next_trials", watched)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        search(bowl, tmp_path / "t.jsonl", {}, FIRST, num_trials=2, seed=0)
        assert seen == [1] and torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.integration
def test_the_gaussian_process_beats_the_random_points(tmp_path):
    trials = search(bowl, tmp_path / "t.jsonl", {}, FIRST, num_trials=8, seed=0)
    initial, proposed = trials[: search_module.INITIAL_TRIALS], trials[search_module.INITIAL_TRIALS :]
    assert min(trial.wer for trial in proposed) < min(trial.wer for trial in initial)
    for trial in trials:
        assert all(low <= trial.weights[name] <= high for name, (low, high) in RANGES.items())


@pytest.mark.unit
def test_trials_of_another_setup_are_refused(tmp_path):
    """Mixing trials of two LMs would choose the weights of neither."""
    search(bowl, tmp_path / "t.jsonl", {"lm": "a"}, FIRST, num_trials=1, seed=0)
    with pytest.raises(ValueError, match="t.jsonl:1: these trials are of lm 'a', this search is of 'b'"):
        search(bowl, tmp_path / "t.jsonl", {"lm": "b"}, FIRST, num_trials=1, seed=0)
    with pytest.raises(ValueError, match="these trials are of lm 'a', this search is of None"):
        search(bowl, tmp_path / "t.jsonl", {}, FIRST, num_trials=1, seed=0)
    with pytest.raises(ValueError, match="these trials are of beam None, this search is of 5"):
        search(bowl, tmp_path / "t.jsonl", {"lm": "a", "beam": 5}, FIRST, num_trials=1, seed=0)
    for content in (b"", b"\xff", b"hello\n", b"{}\n", b"[]\n", b'{"setup": {"lm": "a"}}\n{"wer": 0.1}\n'):
        (tmp_path / "t.jsonl").write_bytes(content)
        with pytest.raises(ValueError, match="t.jsonl: not a file of trials .*Remove it"):
            search(bowl, tmp_path / "t.jsonl", {"lm": "a"}, FIRST, num_trials=1, seed=0)


@pytest.mark.unit
def test_without_ax_the_command_to_install_it_is_named(monkeypatch):
    real_import = builtins.__import__

    def no_ax(name, *args, **kwargs):
        if name.startswith("ax"):
            raise ImportError("No module named 'ax'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_ax)
    with pytest.raises(ImportError, match="pip install"):
        require_ax()


@pytest.mark.unit
def test_plot_is_an_image(tmp_path):
    for suffix, beginning in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        plot_trials([Trial(1.0, 0.0, -1.0, 0.2), Trial(2.0, 0.0, -1.0, 0.1)], tmp_path / f"plot{suffix}")
        assert (tmp_path / f"plot{suffix}").read_bytes().startswith(beginning)


@pytest.mark.unit
def test_the_search_space_is_that_of_hubert_without_ax():
    """fairseq's decode/ax_sweep/ngram.yaml: of a narrower one the paper's weights may not be found in 32 trials."""
    assert RANGES == {"lm_weight": (0.0, 8.0), "word_score": (-5.0, 5.0), "sil_score": (-10.0, 0.0)}
    assert INITIAL_TRIALS == 8


@pytest.mark.unit
def test_plot_circles_the_best_trial(tmp_path, monkeypatch):
    """The eye takes the weights from there; the step is the best rate so far."""
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *_, **__: drawn.append(self))
    trials = [Trial(1.0, 0.5, -1.0, 0.3), Trial(2.0, -0.5, -2.0, 0.1), Trial(3.0, 1.5, -3.0, 0.2)]
    plot_trials(trials, tmp_path / "plot.png")
    axes = drawn[0].axes
    circled = {axis.get_xlabel(): axis.collections[1].get_offsets().tolist() for axis in axes}
    assert circled == {
        "trial": [[1, 10.0]],
        "lm_weight": [[2.0, 10.0]],
        "word_score": [[-0.5, 10.0]],
        "sil_score": [[-2.0, 10.0]],
    }
    assert axes[0].lines[0].get_ydata().tolist() == [30.0, 10.0, 10.0]


@pytest.fixture
def dev_set(tmp_path, write_arpa, write_lexicon_of, emit):
    """A model that hears "see" for "sea", and an LM that knows better."""
    lm = write_arpa({"the": -1.0, "sea": -1.0, "see": -1.0}, {("the", "sea"): -0.5, ("the", "see"): -3.0})
    log_probs = emit("the|se_e", ENGLISH_LABELS)
    log_probs[-1, ENGLISH_LABELS.index("a")] = log_probs[-1, ENGLISH_LABELS.index("e")] - 2.0
    write_log_probs(tmp_path / "dev.safetensors", ENGLISH_LABELS, [(f"u{n}", "the sea", log_probs) for n in range(3)])
    return {
        "--lm": lm,
        "--lexicon": write_lexicon_of(["the", "sea", "see"]),
        "--log_probs": tmp_path / "dev.safetensors",
    }


@pytest.mark.integration
def test_script_tunes_and_writes_what_evaluation_reads(tmp_path, dev_set):
    output = tmp_path / "tuned.yaml"
    command = [sys.executable, ROOT / "scripts" / "tune_decoding.py", "--trials", "2", "--workers", "1"]
    command += ["--output", output, *(part for option in dev_set.items() for part in option)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "3 utterances; WER without LM: 50.00 %" in run.stdout and "WER 0.00 %" in run.stdout
    tuned = read_config(output)
    setup, *trials = map(json.loads, (tmp_path / "tuned.trials.jsonl").read_text().splitlines())
    best = min(trials, key=lambda trial: trial["wer"])
    assert len(trials) == 2 and best["wer"] == 0.0 and setup["setup"]["beam_size"] == tuned.beam_size == 500
    assert {name: getattr(tuned, name) for name in RANGES} == {name: best[name] for name in RANGES}
    assert (tmp_path / "tuned.png").exists()


@pytest.mark.unit
def test_a_folder_for_the_yaml_is_refused_before_the_first_trial(tmp_path, dev_set, make_config):
    """All trials were made, and then there was no YAML; another --output found no trials, and made them all again."""
    (tmp_path / "tuned").mkdir()
    config = make_config(dev_set["--lm"], dev_set["--lexicon"])
    with pytest.raises(ValueError, match="tuned: a folder. Name a YAML in it as --output"):
        tune(config, [dev_set["--log_probs"]], tmp_path / "tuned", num_trials=1, seed=0, workers=1)
    assert not list(tmp_path.glob("tuned*.trials.jsonl"))


@pytest.mark.unit
def test_trials_are_made_by_one_process(tmp_path, dev_set, make_config, held_elsewhere):
    """Each of two wrote its own trials over those of the other, and the YAML was of the one, the picture of the
    other."""
    held_elsewhere(tmp_path / ".tuned.trials.jsonl.lock")
    config = make_config(dev_set["--lm"], dev_set["--lexicon"])
    with pytest.raises(RuntimeError, match="another process searches into this file. Wait for it, or give another"):
        tune(config, [dev_set["--log_probs"]], tmp_path / "tuned.yaml", num_trials=1, seed=0, workers=1)
    assert not list(tmp_path.glob("tuned*"))


@pytest.mark.integration
def test_outputs_that_differ_behind_a_dot_have_trials_of_their_own(tmp_path, dev_set, make_config):
    """lr0.2 found the trials of lr0.1, which it refused or went on from, and drew over their picture."""
    config = make_config(dev_set["--lm"], dev_set["--lexicon"])
    for seed, output in enumerate(("lr0.1", "lr0.2", "lr0.3.yml")):  # trials of another seed are refused
        tune(config, [dev_set["--log_probs"]], tmp_path / output, num_trials=1, seed=seed, workers=1)
    expected = {f"lr0.{number}{ending}" for number in (1, 2, 3) for ending in (".trials.jsonl", ".png")}
    assert {path.name for path in tmp_path.glob("lr*")} == {*expected, "lr0.1", "lr0.2", "lr0.3.yml"}


@pytest.mark.integration
def test_trials_of_another_model_are_not_resumed(tmp_path, dev_set, make_config, emit):
    """The model was trained on and evaluated anew, into the same file: the old trials would be those of the new
    one."""
    config = make_config(dev_set["--lm"], dev_set["--lexicon"])
    arguments = ([dev_set["--log_probs"]], tmp_path / "tuned.yaml")
    tune(config, *arguments, num_trials=1, seed=0, workers=1)
    tune(config, *arguments, num_trials=1, seed=0, workers=1)
    utterances = [(f"u{n}", "the sea", emit("the|se_a", ENGLISH_LABELS)) for n in range(3)]
    write_log_probs(dev_set["--log_probs"], ENGLISH_LABELS, utterances)
    with pytest.raises(ValueError, match="these trials are of SHA-256 of .*dev.safetensors.*Remove the file"):
        tune(config, *arguments, num_trials=1, seed=0, workers=1)


@pytest.mark.integration
@pytest.mark.parametrize("name", ["lm", "lexicon"])
def test_trials_of_another_lm_are_not_resumed(tmp_path, dev_set, make_config, name):
    """Built anew into the same file."""
    config = make_config(dev_set["--lm"], dev_set["--lexicon"])
    arguments = ([dev_set["--log_probs"]], tmp_path / "tuned.yaml")
    tune(config, *arguments, num_trials=1, seed=0, workers=1)
    path = Path(dev_set[f"--{name}"])
    path.write_text(path.read_text().replace("-3.0", "-2.0") if name == "lm" else path.read_text() + "he\th e |\n")
    with pytest.raises(ValueError, match=f"these trials are of SHA-256 of .*{path.name}.*Remove the file"):
        tune(config, *arguments, num_trials=1, seed=0, workers=1)


@pytest.mark.unit
def test_trials_are_of_all_that_they_depend_on(tmp_path, dev_set, make_config, monkeypatch):
    """Those of another beam, or of a second dev set that was made anew, would be taken for one search; and the same
    files, named from another folder, for two."""
    second = tmp_path / "second.safetensors"
    second.write_bytes(b"old")

    def setup(folder=tmp_path, **beams):
        config = make_config(str(folder / "tiny.arpa"), str(folder / "tiny.lexicon"), **beams)
        return tuning._setup(config, [folder / "dev.safetensors", folder / second.name], seed=0)

    before = setup()
    for beam in ({"beam_size": 7}, {"beam_threshold": 9.0}, {"beam_size_token": 3}):
        assert setup(**beam) != before
    monkeypatch.chdir(tmp_path)
    assert setup(Path(".")) == before
    second.write_bytes(b"new")
    assert setup() != before


@pytest.mark.unit
def test_dev_sets_without_words_or_of_two_models_are_refused(tmp_path, dev_set, make_config, emit):
    config = make_config(dev_set["--lm"], dev_set["--lexicon"])
    write_log_probs(tmp_path / "silent.safetensors", ENGLISH_LABELS, [("u", "", emit("_", ENGLISH_LABELS))])
    with pytest.raises(ValueError, match="references hold no words"):
        tune(config, [tmp_path / "silent.safetensors"], tmp_path / "t.yaml", num_trials=1, seed=0, workers=1)
    write_log_probs(tmp_path / "other.safetensors", [" ", "a"], [("u", "a", np.zeros((1, 3)))])
    with pytest.raises(ValueError, match="other.safetensors: labels differ"):
        paths = [dev_set["--log_probs"], tmp_path / "other.safetensors"]
        tune(config, paths, tmp_path / "t.yaml", num_trials=1, seed=0, workers=1)
    assert not (tmp_path / "t.yaml").exists()


@pytest.mark.unit
def test_all_dev_sets_count(tmp_path, dev_set, make_config, emit, capsys):
    """Weights tuned on dev-clean and dev-other would be those of the first alone, as would the rates beside them."""
    config = make_config(dev_set["--lm"], dev_set["--lexicon"])  # without weights it hears "see", too
    other = [("v0", "the see", emit("the|se_e", ENGLISH_LABELS)), ("v1", "the", emit("the", ENGLISH_LABELS))]
    write_log_probs(tmp_path / "other.safetensors", ENGLISH_LABELS, other)
    paths = [tmp_path / "other.safetensors", dev_set["--log_probs"]]
    found = tune(config, paths, tmp_path / "tuned.yaml", num_trials=1, seed=0, workers=1)
    assert (found.greedy.errors, found.greedy.reference_length) == (3, 2 + 1 + 3 * 2)
    assert found.best.wer == pytest.approx(3 / 9)
    assert "5 utterances; WER without LM: 33.33 %" in capsys.readouterr().out


@pytest.mark.unit
@pytest.mark.parametrize("change, named", [({"seed": 1}, "seed 0"), ({"lm_weight": 1.0}, "first lm_weight 0.0")])
def test_trials_of_another_start_are_not_resumed(tmp_path, dev_set, make_config, change, named):
    """The search would be one that no command repeats."""

    def run(seed=0, **weights):
        config = make_config(dev_set["--lm"], dev_set["--lexicon"], **weights)
        tune(config, [dev_set["--log_probs"]], tmp_path / "tuned.yaml", num_trials=1, seed=seed, workers=1)

    run()
    with pytest.raises(ValueError, match=f"these trials are of {named}, this search is of 1.*Remove the file"):
        run(**change)


@pytest.mark.unit
def test_the_weights_written_are_those_of_the_lowest_wer(tmp_path, dev_set, make_config, monkeypatch):
    """Neither of the first trial nor of the last: all test sets are decoded with them."""
    trials = [Trial(1.0, 0.5, -1.0, 0.3), Trial(2.0, -0.5, -2.0, 0.1), Trial(3.0, 1.5, -3.0, 0.2)]
    monkeypatch.setattr(tuning, "search", lambda *_: trials)
    given, one = [], ParallelDecoder
    monkeypatch.setattr(tuning, "ParallelDecoder", lambda decoder, workers: given.append(workers) or one(decoder, 1))
    config = make_config(dev_set["--lm"], dev_set["--lexicon"], beam_size=7)
    found = tune(config, [dev_set["--log_probs"]], tmp_path / "tuned.yaml", num_trials=3, seed=0, workers=5)
    assert given == [5]  # processes, without which tuning takes days
    tuned = read_config(tmp_path / "tuned.yaml")
    assert found.best == trials[1] and tuned.beam_size == 7
    assert (tuned.lm_weight, tuned.word_score, tuned.sil_score) == (2.0, -0.5, -2.0)
    assert "3 trials: WER 10.00 %, 50.00 % without LM" in (tmp_path / "tuned.yaml").read_text()


@pytest.mark.unit
def test_each_trial_is_decoded_with_its_own_weights(tmp_path, dev_set, make_config, monkeypatch):
    """With those of the first, all trials have one WER, and what is written is chosen by nothing."""
    silent, heeding = {name: 0.0 for name in RANGES}, {**FIRST, "lm_weight": 2.0}

    def two_trials(wer, path, setup, first, num_trials, seed):
        assert (first, num_trials, seed) == (silent, 2, 5)
        return [Trial(**weights, wer=wer(weights)) for weights in (silent, heeding)]

    monkeypatch.setattr(tuning, "search", two_trials)
    config = make_config(dev_set["--lm"], dev_set["--lexicon"])
    found = tune(config, [dev_set["--log_probs"]], tmp_path / "tuned.yaml", num_trials=2, seed=5, workers=1)
    assert [trial.wer for trial in found.trials] == [0.5, 0.0]  # "see", and with the LM "sea"
