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

"""scripts/compare_pretraining.sh with scripts that only note how they were called: what is compared, and what is
skipped."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUB = """
import json, sys
from pathlib import Path
arguments = sys.argv[1:]
with open("{log}", "a") as stream:
    stream.write(json.dumps(arguments) + "\\n")
options = dict(argument.split("=", 1) for argument in arguments if "=" in argument and not argument.startswith("-"))
after = lambda option: arguments[arguments.index(option) + 1]
script = Path(arguments[0]).name
if script == "pretrain.py":
    made = Path(options["exp_manager.exp_dir"]) / options["name"] / "checkpoints" / (options["name"] + ".nemo")
else:
    name = {{"label.py": "--metrics_output"}}.get(script, "--output")
    made = Path(after(name)) / {{"analyze_cca.py": "summary.md", "diagnose.py": "diagnostics.png"}}.get(script, "")
made.parent.mkdir(parents=True, exist_ok=True)
made.touch()
"""


@pytest.fixture
def compare(tmp_path):
    """``compare("--seeds", "1 2", ...)``: run the script; gives its exit status, its output and the calls of this
    run."""
    venv, log = tmp_path / "venv", tmp_path / "calls.jsonl"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "activate").touch()
    content = (ROOT / "setup.py").read_bytes() + (ROOT / "nemo_mshubert" / "package_info.py").read_bytes()
    (venv / f"installed-{hashlib.sha256(content).hexdigest()[:16]}-test").touch()  # see environment.sh
    (tmp_path / "stub.py").write_text(STUB.format(log=log))
    for name in ("km.npz", "train.json", "dev.json", "a.json", "b.json", "phones.jsonl", "words.jsonl"):
        (tmp_path / name).touch()
    function = f'() {{ "{sys.executable}" "{tmp_path}/stub.py" "$@"\n}}'
    environment = {**os.environ, "VENV": str(venv), "PYTHON": sys.executable, "BASH_FUNC_python%%": function}

    def run(*arguments):
        log.unlink(missing_ok=True)
        command = ["bash", str(ROOT / "scripts" / "compare_pretraining.sh"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        calls = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return done.returncode, done.stdout + done.stderr, calls

    return run


ARGUMENTS = (
    "--kmeans km.npz --train train.json --dev dev.json --test a.json --test b.json --phones phones.jsonl".split()
)


def test_models_differ_in_their_config_and_seeds_in_their_seed(compare, tmp_path):
    """What the curves are blamed on must be all that differs: the same data, labels and updates for every model."""
    status, output, calls = compare(
        *ARGUMENTS, "--words", "words.jsonl", "--seeds", "1 2", "--updates", "8", "--exp", str(tmp_path / "exp")
    )
    assert status == 0, output
    scripts = [Path(call[0]).name for call in calls]
    seed = ["pretrain.py"] * 3 + ["ssl_to_ctc.py"]
    assert scripts == ["label.py"] * 2 + seed * 2 + ["analyze_cca.py"] * 2 + ["diagnose.py", "report.py"]
    pretrainings = [call[1:] for call in calls if call[0].endswith("pretrain.py")]
    common = {
        tuple(a for a in call if not a.startswith(("name=", "model.seed=")) and a not in call[:2])
        for call in pretrainings
    }
    assert len(common) == 1 and {"max_updates=8", "validate_every_updates=2"} <= set(*common)
    configs = [call[1] for call in pretrainings]
    assert configs == ["hubert_iter2_tiny", "mshubert_tiny_noswap", "mshubert_tiny"] * 2
    assert [a for call in pretrainings for a in call if a.startswith("model.seed")] == ["model.seed=1"] * 3 + [
        "model.seed=2"
    ] * 3
    phones, words = (call for call in calls if call[0].endswith("analyze_cca.py"))
    for call in (phones, words):
        models = [argument.split("=")[0] for argument in call if argument.endswith(".nemo")]
        assert models == ["HuBERT", "- Swap", "MS-HuBERT", "random weights"] * 2
        assert [Path(argument).name for argument in call if argument.endswith(".json")] == ["a.json", "b.json"]
    assert "phones" in phones and "words" in words and "random weights" not in " ".join(calls[-2])


def test_a_second_call_trains_what_is_missing_only(compare, tmp_path):
    """The scripts that measure are called, since a model may be new; what is done they skip by themselves."""
    exp = tmp_path / "exp"
    compare(*ARGUMENTS, "--seeds", "1", "--exp", str(exp))
    again = ["analyze_cca.py", "diagnose.py", "report.py"]
    status, output, calls = compare(*ARGUMENTS, "--seeds", "1", "--exp", "exp")  # the same folder
    assert status == 0 and [Path(call[0]).name for call in calls] == again
    (exp / "noswap_seed1" / "checkpoints" / "noswap_seed1.nemo").unlink()
    status, output, calls = compare(*ARGUMENTS, "--seeds", "1", "--exp", str(exp))
    assert status == 0 and [Path(call[0]).name for call in calls] == ["pretrain.py", *again]
    assert "mshubert_tiny_noswap" in calls[0] and "pre-train HuBERT, seed 1: done" in output
    stages = [line.split("\t") for line in (exp / "stages.tsv").read_text().splitlines()]
    assert [len(stage) for stage in stages] == [4] * len(stages) and stages[-1][0] == "pre-train - Swap, seed 1"


def test_more_seeds_are_in_all_that_is_shown(compare, tmp_path):
    """CCA and diagnostics of two seeds were shown beside the training curves of three."""
    compare(*ARGUMENTS, "--words", "words.jsonl", "--seeds", "1 2", "--exp", "exp")
    status, output, calls = compare(*ARGUMENTS, "--words", "words.jsonl", "--seeds", "1 2 3", "--exp", "exp")
    assert status == 0, output
    new = ["pretrain.py"] * 3 + ["ssl_to_ctc.py"] + ["analyze_cca.py"] * 2 + ["diagnose.py", "report.py"]
    assert [Path(call[0]).name for call in calls] == new
    assert all("model.seed=3" in call for call in calls[:3])
    for call, curves in zip(calls[4:7], (4, 4, 3)):
        assert len([argument for argument in call if argument.endswith(".nemo")]) == 3 * curves


@pytest.mark.parametrize("option, value", [("--updates", "8"), ("--kmeans", "other.npz")])
def test_other_options_do_not_show_the_models_of_an_earlier_call(compare, tmp_path, option, value):
    """A trial of 100 updates was shown as the comparison of 800; what to remove is named, and is enough."""
    exp = tmp_path / "exp"
    (tmp_path / "other.npz").touch()
    compare(*ARGUMENTS, "--updates", "4", "--seeds", "1 2", "--exp", "exp")
    changed = [*ARGUMENTS, "--updates", "4", "--seeds", "1 2", "--exp", "exp", option, value]
    status, output, calls = compare(*changed)
    assert status == 1 and not calls and "is done, but was given other options" in output and value in output
    remove = shlex.split(output.splitlines()[-1])
    assert remove[:2] == ["rm", "-r"] and set(remove[2:]) == {
        str(path) for path in exp.iterdir() if path.name.endswith(("_seed1", "_seed2")) or path.name == "random"
    } | ({str(exp / "labels" / "iter2")} if option == "--kmeans" else set())
    subprocess.run(remove, check=True)
    status, output, calls = compare(*changed)
    names = [Path(call[0]).name for call in calls]
    assert status == 0 and names.count("pretrain.py") == 6 and names.count("label.py") == 2 * (option == "--kmeans")
    assert all(any(value in argument for argument in call) for call in calls if call[0].endswith("pretrain.py"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (ARGUMENTS[2:], "--kmeans is missing"),
        (ARGUMENTS[:6], "--test is missing"),
        (ARGUMENTS[:-2], "give --phones or --words"),
        ([*ARGUMENTS, "--seeds"], "without its value: --seeds"),
        ([*ARGUMENTS, "--words", "gone.jsonl"], "compare_pretraining.sh: --words gone.jsonl: no such file or folder."),
        ([*ARGUMENTS, "--seed", "1"], "unknown option, or without its value: --seed"),
    ],
)
def test_incomplete_command_lines(compare, arguments, message):
    status, output, calls = compare(*arguments)
    assert status == 2 and message in output and not calls
