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

"""The first things that a newcomer asks of a script: --help, and what a wrong option is."""

import fcntl
import importlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from nemo_mshubert.convert.conversion import READERS, TARGETS
from tests.conftest import load_script

pytestmark = pytest.mark.unit
SCRIPTS = Path(__file__).parents[1] / "scripts"
WITH_ARGPARSE = [path for path in sorted(SCRIPTS.glob("*.py")) if "argparse" in path.read_text(encoding="utf-8")]
HELP_OF_ALL = """
import contextlib, io, json, runpy, sys
loaded = {}
for path in sys.argv[1:]:
    sys.argv = [path, "--help"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
        runpy.run_path(path, run_name="__main__")
    assert "usage: " in text.getvalue(), path
    loaded[path] = [name for name in ("torch", "lightning", "transformers", "nemo") if name in sys.modules]
print(json.dumps(loaded))
"""
NEED_TORCH = ["benchmark.py", "fit_kmeans.py", "label.py"]  # for defaults, and for the work itself; two seconds more


def test_help_does_not_wait_for_nemo():
    """Ten seconds for each --help and each mistyped option, where all others would take one."""
    scripts = sorted(WITH_ARGPARSE, key=lambda path: path.name in NEED_TORCH)
    process = subprocess.run([sys.executable, "-c", HELP_OF_ALL, *map(str, scripts)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    loaded = {Path(path).name: names for path, names in json.loads(process.stdout).items()}
    assert len(loaded) > 15
    for name, names in loaded.items():
        assert set(names) <= ({"torch"} if name in NEED_TORCH else set()), name


def test_layouts_offered_are_those_that_can_be_read_and_written(monkeypatch, capsys):
    """convert_checkpoint.py spells them itself, so as not to import NeMo: one left out could not be chosen."""
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPTS / "convert_checkpoint.py"), run_name="__main__")
    sources, targets = re.findall(r"--(?:from|to) \{([\w,]+)\}", capsys.readouterr().out)[:2]
    assert set(sources.split(",")) == {"auto", *READERS, "nemo"} and set(targets.split(",")) == set(TARGETS)


@pytest.mark.parametrize(
    "command, message",
    [
        ("ssl_to_ctc.py --ssl a.nemo --output ./a.nemo", "--ssl and --output are both ./a.nemo"),
        ("ssl_to_ctc.py --ssl a.nemo --output b.pt", "--output b.pt: expected a name that ends in .nemo"),
        ("convert_checkpoint.py --input a.nemo --output a.nemo", "--input and --output are both a.nemo"),
        (
            "convert_checkpoint.py --input a.nemo --output b.bin",
            "nothing is written as .bin. Take .nemo, .pt or a new",
        ),
        ("tune_decoding.py --log_probs a --output b --trials 0", "--trials 0: at least 1"),
        ("tune_decoding.py --log_probs a --config b --output ./b", "--config and --output are both ./b"),
        ("benchmark.py pretrain --repeats 0", "--repeats 0: expected more than 0"),
        ("benchmark.py decoding --log_probs a --decode b --beams 5 0", "--beams 5 0: expected more than 0"),
        ("train_ngram.py --arpa a.arpa --output b --order 0", "--order and --prune are for --text"),
    ],
)
def test_what_would_destroy_the_input_or_do_nothing_is_refused(monkeypatch, capsys, command, message):
    script, *options = command.split()
    monkeypatch.setattr(sys, "argv", [script, *options])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    assert message in capsys.readouterr().err


def test_benchmark_looks_at_its_output_before_it_measures(monkeypatch, tmp_path):
    """Minutes of a rented GPU were spent before the JSON file could not be written."""
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "host", "--output", str(tmp_path)])
    monkeypatch.setattr("importlib.import_module", None)  # may not be called
    with pytest.raises(IsADirectoryError, match="a folder. Name a file in it"):
        runpy.run_path(str(SCRIPTS / "benchmark.py"), run_name="__main__")


@pytest.mark.parametrize(
    "command",
    [
        "pretrain --sizes tiny",
        "traffic",
        "host",
        "loader --manifest m --workers 0 1",
        "labelling --manifest m",
        "inference --manifest m",
        "decoding --log_probs a --decode b",
    ],
)
def test_every_benchmark_takes_the_options_of_its_subcommand(monkeypatch, command):
    """A TypeError would be noticed on the rented GPU; and threads that were not set are those of another row."""
    name = command.split()[0]
    if name == "decoding":
        pytest.importorskip("flashlight.lib.text", reason="the beam search needs flashlight-text")
    script = load_script("benchmark")
    module = importlib.import_module(f"nemo_mshubert.benchmarks.{'pretraining_step' if name == 'pretrain' else name}")
    published, threads = [], []
    monkeypatch.setattr(module, "benchmark", create_autospec(module.benchmark, return_value=["a row"]))
    monkeypatch.setattr(script, "publish", lambda *arguments: published.append(arguments))
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *command.split(), "--threads", "3", "--output", "out.json"])
    monkeypatch.setattr(script, "make_place", lambda path: None)
    script.main()
    ((kind, _, rows, columns, _, output),) = published
    assert (kind, rows, columns, output) == (name, ["a row"], module.COLUMNS, "out.json") and threads == [3]


# --- Options of Python scripts ---------------------------------------------------------------------------------------


class Handed(BaseException):
    """Ends a script at the call of a library function; its arguments."""


@pytest.fixture
def handed_to(monkeypatch):
    """``handed_to("module.function", "script.py --option 3", **others)``: what the script calls the function with.

    ``others``: functions of the same module that are called before, and what they return instead.
    """

    def run(function, command_line, **others):
        def stand_in(*arguments):
            raise Handed(*arguments)

        script, *arguments = command_line.split()
        module = function.rpartition(".")[0]
        with monkeypatch.context() as context:
            context.setattr(function, stand_in)
            for name, value in others.items():
                context.setattr(f"{module}.{name}", lambda *_, value=value: value)
            context.setattr(sys, "argv", [script, *arguments])
            with pytest.raises(Handed) as call:
                runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        return call.value.args

    return run


def test_options_of_fit_kmeans_arrive(handed_to, monkeypatch, tmp_path):
    """An option that is read and then forgotten is an experiment that was not made."""
    common = (
        f"fit_kmeans.py --manifest a.json b.json --features mfcc --output {tmp_path}/km.npz --seed 5 --max_frames 77"
    )
    manifests, features, frames, seed, skips = handed_to(
        "nemo_mshubert.clustering.frame_sample.sample_corpus_frames", f"{common} --skip_unusable"
    )
    assert (manifests, features.description.kind, frames, seed, skips) == (["a.json", "b.json"], "mfcc", 77, 5, True)
    monkeypatch.setattr("nemo_mshubert.clustering.frame_sample.sample_corpus_frames", lambda *_: [[0.0]])
    options = f"{common} --clusters 8 4 --assignment nearest --backend sklearn"
    _, clusters, description, *rest = handed_to("nemo_mshubert.clustering.label_maker.fit_label_maker", options)
    assert (clusters, description, rest) == ([8, 4], features.description, ["nearest", "sklearn", 5])


def test_defaults_are_the_papers(handed_to, tmp_path):
    """Labels of layer 6, six sets, each but the first by look-up; 32 trials: who follows the README names none of
    them."""
    function = "nemo_mshubert.models.hidden_features.load_hidden_features"
    hidden = ["--manifest", "a.json", "--features", "hidden", "--encoder", "x.nemo", "--output", f"{tmp_path}/km.npz"]
    assert handed_to(function, f"fit_kmeans.py {' '.join(hidden)}") == ("x.nemo", 6, "auto")
    args = load_script("fit_kmeans").parse_args(hidden)
    assert args.clusters == [1000, 500, 250, 125, 50, 25] and args.assignment == "nested"
    options = "--log_probs a --lm x.bin --lexicon x.lexicon --output t.yaml"
    config, *rest = handed_to("nemo_mshubert.decoding.tuning.tune", f"tune_decoding.py {options}")
    assert config.beam_size == 500 and rest[2] == 32


def test_options_of_extract_features_arrive(handed_to, capsys):
    written = handed_to(
        "nemo_mshubert.clustering.feature_files.write_features",
        "extract_features.py --mfcc --manifest a.json --output out",
    )
    assert written[:2] == ("a.json", "out") and written[2].description.kind == "mfcc"
    options = "extract_features.py --encoder x.nemo --layer 9 --manifest a.json --output out --device cpu"
    found = handed_to("nemo_mshubert.models.hidden_features.load_hidden_features", options)
    assert found == ("x.nemo", 9, "cpu")
    for options in ("--encoder x.nemo", "--mfcc --layer 3"):
        with pytest.raises(SystemExit):
            load_script("extract_features").main([*options.split(), "--manifest", "a.json", "--output", "out"])
        assert "--layer and --encoder go together" in capsys.readouterr().err


def test_options_of_ssl_to_ctc_arrive(handed_to):
    options = "--ssl a.nemo --output b.nemo --tokenizer_dir tok --letters abc --from_scratch --seed 7"
    handed = handed_to("nemo_mshubert.models.ctc.ssl_to_ctc", f"ssl_to_ctc.py {options}")
    assert handed == ("a.nemo", "tok", True, "abc")
    assert torch.initial_seed() == 7


def test_options_of_train_ngram_arrive(handed_to, tmp_path):
    (tmp_path / "text.txt").write_text("a b\n")
    options = f"--text {tmp_path}/text.txt --output lm --order 3 --prune 0 1 --kenlm bin"
    sentences, *rest = handed_to("nemo_mshubert.decoding.ngram.train_arpa", f"train_ngram.py {options}")
    assert list(sentences) == ["a b"] and rest == ["lm.arpa", 3, [0, 1], "bin"]
    options = f"--text {tmp_path}/text.txt --output lm --letters AB"
    sentences, *rest = handed_to("nemo_mshubert.decoding.ngram.train_arpa", f"train_ngram.py {options}")
    assert list(sentences) == ["A B"] and rest == ["lm.arpa", 4, [], None]
    options = f"--arpa a.arpa --output {tmp_path}/lm --letters xyz --kenlm bin"
    function, words = "nemo_mshubert.decoding.ngram.binarize", ["zyx", "yz", "sea"]
    handed = handed_to(function, f"train_ngram.py {options}", arpa_words=words)
    assert handed == ("a.arpa", f"{tmp_path}/lm.bin", "bin")
    assert (tmp_path / "lm.lexicon").read_text() == "zyx\tz y x |\nyz\ty z |\n"


def test_options_of_table1_arrive(handed_to, monkeypatch):
    """Two machines that share a table would both run all of it."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    function = "nemo_mshubert.decoding.table1.run.run_table1"
    spec, root, *chosen = handed_to(function, "table1.py --models HuBERT MS-HuBERT --splits 1h 10h")
    assert spec.output == "exp/table1" and root == SCRIPTS.parent
    assert chosen == [["HuBERT", "MS-HuBERT"], ["1h", "10h"]]
    assert handed_to(function, "table1.py")[2:] == (None, None)


def test_options_of_prepare_librispeech_arrive(handed_to, monkeypatch):
    """62 GB are fetched when they are asked for, and only of the subsets that are."""
    monkeypatch.setattr("nemo_mshubert.data.librispeech_download.download_corpora", None)  # may not be called
    required = "prepare_librispeech.py --data d --output o"
    function = "nemo_mshubert.data.librispeech.prepare_librispeech"
    assert handed_to(function, required) == ("d", "o", None, 8, False)
    options = f"{required} --subsets dev-clean 10h --workers 3 --skip_broken"
    assert handed_to(function, options) == ("d", "o", ["dev-clean", "10h"], 3, True)
    function = "nemo_mshubert.data.librispeech_download.download_corpora"
    assert handed_to(function, f"{options} --download") == ("d", ["dev-clean", "10h"])
    assert handed_to(function, f"{required} --download") == ("d", None)


def test_options_of_diagnose_arrive(handed_to, monkeypatch):
    """The PNMI is of phones, and depends on the clusters and frames that it is measured with."""
    monkeypatch.setattr("nemo_mshubert.data.alignments.read_alignments", lambda *arguments: arguments)
    function = "nemo_mshubert.analysis.diagnostics.diagnose_models"
    required = "diagnose.py --model A=a.nemo --manifest m --output o"
    options = "--alignments x y --clusters 7 --max_frames 99 --device cuda:3"
    models, *rest = handed_to(function, f"{required} {options}")
    assert models == [("A", "a.nemo")] and rest == ["m", "o", (["x", "y"], "phone"), 7, 99, "cuda:3"]
    assert handed_to(function, f"{required} --device cpu")[3:] == (None, 100, 20_000, "cpu")


def test_options_of_tune_decoding_arrive(handed_to):
    options = "--log_probs a b --lm x.bin --lexicon x.lexicon --output t.yaml --trials 5 --seed 9 --workers 2"
    config, *rest = handed_to("nemo_mshubert.decoding.tuning.tune", f"tune_decoding.py {options}")
    assert (config.lm, config.lexicon) == ("x.bin", "x.lexicon") and rest == [["a", "b"], "t.yaml", 5, 9, 2]


def test_options_of_evaluate_arrive(handed_to, tmp_path):
    pytest.importorskip("nemo")
    manifest = tmp_path / "test.json"
    manifest.write_text(json.dumps({"audio_filepath": __file__, "duration": 1.0, "text": "a"}) + "\n")
    yaml = SCRIPTS.parent / "conf" / "decode" / "lexicon_beam.yaml"
    options = f"evaluate.py --model m.nemo --manifest {manifest} --output {tmp_path}/out --device cpu --precision bf16"
    options += f" --decode {yaml} --lm x.bin --lexicon x.lexicon --beam_size 7 --workers 3 --batch_seconds 9"
    module = "nemo_mshubert.decoding.evaluation"
    assert handed_to(f"{module}.load_ctc_model", options) == ("m.nemo", "cpu", "bf16")
    stand_ins = dict(load_ctc_model="model", greedy_decoder="greedy")
    model, config, workers = handed_to(f"{module}.lexicon_decoder", options, **stand_ins)
    assert (model, config.lm, config.lexicon, config.beam_size, workers) == ("model", "x.bin", "x.lexicon", 7, 3)
    *_, decoders, batch_seconds, _ = handed_to(
        f"{module}.evaluate_manifests", options, **stand_ins, lexicon_decoder="beam"
    )
    assert decoders == {"greedy": "greedy", "lexicon_beam": "beam"} and batch_seconds == 9


# --- Shell scripts ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path):
    """``shell("quickstart.sh", "--help")``: exit status, what it printed, and whether anything was made."""

    def run(name, *arguments):
        environment = {**os.environ, "VENV": str(tmp_path / "venv"), "HOME": str(tmp_path)}
        command = ["bash", str(SCRIPTS / name), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr, list(tmp_path.iterdir())

    return run


SHELL_SCRIPTS = ["quickstart.sh", "compare_pretraining.sh", "benchmark_gpu.sh", "build_kenlm.sh", "test.sh"]


@pytest.mark.parametrize("name", SHELL_SCRIPTS)
def test_shell_scripts_explain_themselves(shell, name):
    """build_kenlm.sh once took --help for the folder to build in, and quickstart.sh called it an unknown option."""
    status, text, made = shell(name, "--help")
    assert status == 0 and not made
    assert f"scripts/{name}" in text and "limitations under" not in text and "set -" not in text
    if name != "test.sh":  # whose options are those of pytest
        status, text, made = shell(name, "--halp", "1")
        assert status == 2 and not made
        assert f"scripts/{name}" in text and text.endswith("unknown option, or without its value: --halp\n")


def test_quickstart_looks_at_its_folders_before_it_installs(shell, tmp_path):
    """Several GB of PyTorch were downloaded before it said that the data are not there."""
    status, text, made = shell("quickstart.sh", "--data", "nowhere")
    assert (status, text) == (2, "quickstart.sh: --data nowhere: no such file or folder.\n") and not made
    status, text, made = shell("quickstart.sh", "--exp", "a (1)")
    assert status == 2 and text.endswith("a (1): NeMo reads brackets in paths as patterns. Give another folder.\n")
    assert not made
    status, text, made = shell("quickstart.sh", "--updates", "1k")
    assert (status, text) == (2, "quickstart.sh: --updates 1k: expected a whole number above 0.\n") and not made
    status, text, made = shell("compare_pretraining.sh", "--top", "0")
    assert (status, text) == (2, "compare_pretraining.sh: --top 0: expected a whole number above 0.\n") and not made
    (tmp_path / "train.json").touch()
    status, text, made = shell("quickstart.sh", "--exp", "train.json")
    assert status == 2 and text.endswith("train.json: a file. Give another folder.\n") and len(made) == 1
    status, text, made = shell("quickstart.sh", "--manifests", ".")
    assert status == 1 and "no dev*.json" in text and len(made) == 1


@pytest.mark.parametrize("name", ["quickstart.sh", "compare_pretraining.sh"])
def test_a_folder_at_work_is_refused_before_anything_is_installed(shell, tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "exp").mkdir()
    files = "--kmeans file --train file --dev file --test file --words file" if name.startswith("compare") else ""
    with open(tmp_path / "exp" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, text, made = shell(name, "--exp", str(tmp_path / "exp"), *files.split())
    assert status == 1 and "exp: another script is at work there." in text and len(made) == 2


def test_no_environment_is_made_with_a_python_in_which_nemo_restores_no_model(tmp_path):
    """Debian 12's Python 3.11.2 was taken, and the quickstart ended minutes later with an error inside NeMo."""
    fake = tmp_path / "old"
    without = "import sys, tarfile; del tarfile.data_filter; exec(sys.argv.pop(2))"
    fake.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(without)} "$@"\n')
    fake.chmod(0o755)
    for name in ["python3.10", "python3.11", "python3.12", "python3"]:
        (tmp_path / name).symlink_to(fake)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VENV": str(tmp_path / "venv"), "EXTRAS": "test"}
    command = ["bash", "-euc", f"source {shlex.quote(str(SCRIPTS / 'environment.sh'))}"]

    def find(**more):
        return subprocess.run(command, cwd=SCRIPTS.parent, env=environment | more, capture_output=True, text=True)

    found = find()
    assert found.returncode == 1 and "3.11.2 of Debian 12 is too old" in found.stderr
    assert not (tmp_path / "venv").exists()
    installed = "installed-$(cat setup.py nemo_mshubert/package_info.py | sha256sum | cut -c1-16)-test"
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").touch()
    subprocess.run(["bash", "-c", f'touch "{tmp_path}/venv/{installed}"'], cwd=SCRIPTS.parent, check=True)
    assert find(PYTHON=sys.executable).returncode == 0


@pytest.fixture
def stages(tmp_path):
    """``stages("stage a ...")``: a script with the functions of stages.sh; the process, its output and the folder."""

    def start(script, exp="exp", **options):
        head = f"set -euo pipefail\nexp={tmp_path}/{exp}\nsource {SCRIPTS}/stages.sh\n"
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return subprocess.Popen(["bash", "-c", head + script], cwd=tmp_path, **pipes, **options)

    return start


def test_commands_of_stages_can_be_typed(stages, tmp_path):
    """They are what the report shows as the way by hand; without quotes they ended in other commands."""
    process = stages("""stage 'a b' made bash -c 'touch "$0"' made 'two  words' plain=1 "it's" ''""")
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    *_, command = (tmp_path / "exp" / "stages.tsv").read_text().rstrip("\n").split("\t")
    expected = ["bash", "-c", 'touch "$0"', "made", "two  words", "plain=1", "it's", ""]
    assert shlex.split(command) == expected and f"== a b\n   {command}\n" in output and " plain=1 " in command


CHAIN = """
    make() { mkdir -p "${1%%/*}" && touch "$1"; }
    stage label "$exp/labels/iter1/a.json" make "$exp/labels/iter1/a.json"
    stage train "$exp/run/checkpoints/run.nemo" make "$exp/run/checkpoints/run.nemo" "name=a b" updates=%s
    stage evaluate "$exp/results/a.json" make "$exp/results/a.json" --model "$exp/run/checkpoints/run.nemo"
"""


@pytest.fixture
def chain(stages):
    """``chain(updates)``: three stages of a folder, each of the one before; exit status, output and stages that
    ran."""

    def run(updates, **others):
        process = stages(CHAIN % updates, **others)
        output, _ = process.communicate(timeout=20)
        return process.returncode, output, re.findall(r"^== (\w+)$", output, re.MULTILINE)

    return run


def test_finished_stages_with_other_options_are_not_passed_off_as_new(chain, tmp_path):
    """A trial of 100 updates was shown as the result of the 800 asked for later; what to remove must be all that
    depends on it, or the rest is still that of the trial."""
    exp = tmp_path / "exp"
    assert chain(100)[::2] == (0, ["label", "train", "evaluate"])
    status, output, ran = chain(100)
    assert (status, ran) == (0, []) and output.count(": done, ") == 3
    status, output, ran = chain(800)
    assert (status, ran) == (1, []) and "evaluate" not in output
    assert (
        'the stage "train" is done, but was given other options:\n    then  updates=100\n    now   updates=800'
        in output
    )
    remove = output.splitlines()[-1].strip()
    assert remove == f"rm -r {exp}/run {exp}/results"
    assert chain(100)[::2] == (0, [])
    subprocess.run(shlex.split(remove), check=True)
    assert chain(800)[::2] == (0, ["train", "evaluate"])
    assert chain(800)[::2] == (0, [])
    assert chain(100)[0] == 1


def test_a_folder_of_stages_may_be_moved(chain, tmp_path):
    """The same options in a path written otherwise are no other options."""
    chain(100)
    (tmp_path / "exp").rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to("moved")
    assert [chain(100, exp=name)[::2] for name in ("moved", "link")] == [(0, [])] * 2
    status, output, _ = chain(800, exp="link")
    assert status == 1 and output.endswith(f"rm -r {tmp_path}/link/run {tmp_path}/link/results\n")


def test_outputs_that_no_stage_has_made_are_gone_on_with(chain, tmp_path):
    """With which options they were made is not known."""
    chain(100)
    (tmp_path / "exp" / "begun.tsv").unlink()
    (tmp_path / "exp" / "results" / "a.json").unlink()
    assert chain(800)[::2] == (0, ["evaluate"])
    assert chain(800)[::2] == (0, [])


def test_an_interrupted_stage_goes_on(stages, tmp_path):
    """It has made no result yet, so also with other options; what it ended with is what it is held to."""
    script = 'train() { [ "$1" != killed ] && touch "$exp/model"; }\nstage train "$exp/model" train %s'
    statuses = []
    for option in ("killed", "800", "800", "killed"):
        process = stages(script % option)
        process.communicate(timeout=20)
        statuses.append(process.returncode)
    assert statuses == [1, 0, 0, 1] and (tmp_path / "exp" / "model").exists()


def test_two_scripts_are_not_at_work_in_one_folder(stages, tmp_path):
    """The second, with other updates, ended at the first's lock; but then the model of the first passed for one of
    these updates."""
    first = stages(
        'alone_in "$exp"\nstage train "$exp/model" bash -c "touch begun; read; touch exp/model"', stdin=subprocess.PIPE
    )
    while not (tmp_path / "begun").exists():
        assert first.poll() is None
        time.sleep(0.05)
    script = 'alone_in "$exp"\nstage train "$exp/model" touch "$exp/model" updates=2000'
    second = stages(script)
    output, _ = second.communicate(timeout=20)
    assert second.returncode == 1 and f"--exp {tmp_path}/exp: another script is at work there. Wait for it" in output
    first.communicate("\n", timeout=20)
    assert first.returncode == 0
    output, _ = stages(script).communicate(timeout=20)
    assert 'the stage "train" is done, but was given other options' in output


def test_a_script_that_skips_by_itself_is_called_anyway(stages, tmp_path):
    """One more model is one more curve; the time in the report stays that of the work."""
    script = 'add() { touch "$exp/cca"; echo "$@" >>"$exp/models"; }\nresuming cca "$exp/cca" add %s'
    for models in ("a", "a", "a b"):
        process = stages(script % models)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 0, output
    assert (tmp_path / "exp" / "models").read_text() == "a\na\na b\n"
    notes = [line.split("\t") for line in (tmp_path / "exp" / "stages.tsv").read_text().splitlines()]
    assert [note[3] for note in notes] == ["add a", "add a b"]


@pytest.mark.parametrize(
    "value", ["a/b-c_1.json", "my data/a=b, (c).json", "it's.json", "x__OP_0..3_CL_.tar", "müller/[b] & ~"]
)
def test_any_path_passes_through_hydra(stages, value):
    """A folder "speech (clean)" was labelled, and ended the quickstart at its fine-tuning."""
    process = stages(f"override train_manifest {shlex.quote(value)}")
    text, _ = process.communicate()
    (override,) = OverridesParser.create().parse_overrides([text.rstrip("\n")])
    assert override.value() == value and not override.is_sweep_override()


def test_stages_beside_each_other(stages, tmp_path):
    """Each waits for what the other makes, so they run at the same time; only one of them may fill the terminal."""
    script = """
        first=(first a bash -c "echo quiet; until [ -e b ]; do sleep 0.05; done; echo >>runs; touch a")
        beside "${first[@]}"
        stage second b bash -c "echo loud; touch b"
        wait_beside
        [ -e a ]
        beside "${first[@]}"
        wait_beside
    """
    process = stages(script)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and "loud" in output and "\nquiet" not in output
    assert "== first\n" in output and "first: done, a is there" in output
    assert (tmp_path / "runs").read_text() == "\n"
    assert (tmp_path / "exp" / "logs" / "first.log").read_text() == "quiet\n"
    notes = [line.split("\t") for line in (tmp_path / "exp" / "stages.tsv").read_text().splitlines()]
    assert sorted(note[0] for note in notes) == ["first", "second"]


@pytest.mark.parametrize(
    "command, message", [("bash -c 'touch a; exit 3'", "first failed; see"), ("true", "first ended without a; see")]
)
def test_a_stage_that_fails_in_the_background_ends_the_script(stages, command, message):
    """Where its output is not seen, its name must be; a fine-tuning that died would have been evaluated."""
    process = stages(f"beside first a {command}\nwait_beside\necho evaluated")
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 1 and message in output and "evaluated" not in output


def test_what_runs_in_the_background_ends_with_the_script(stages, tmp_path):
    """A training that went on after Ctrl-C would be in the way of the next call."""
    training = 'trap "touch ended; exit" TERM; touch started; while :; do sleep 0.05; done'
    process = stages(f"beside first a bash -c '{training}'\nuntil [ -e started ]; do sleep 0.05; done\nexit 4")
    process.communicate(timeout=20)
    assert process.returncode == 4
    waited = time.monotonic() + 20
    while not (tmp_path / "ended").is_file():
        assert time.monotonic() < waited, "it still runs"
        time.sleep(0.05)
