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

"""Steps of Table 1: run once, in order, never mixed with those of another experiment."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from nemo_mshubert.decoding.table1 import run as table1_run
from nemo_mshubert.decoding.table1.cells import Cells, hydra_value, recipe_files
from nemo_mshubert.decoding.table1.run import chosen, run_table1
from nemo_mshubert.decoding.table1.spec import read_spec
from nemo_mshubert.decoding.table1.step import Step, is_current, is_finished, run_step, run_to_its_end

pytestmark = pytest.mark.unit
SCRIPTS = Path("scripts")
CONF = Path(__file__).parents[3] / "conf"


@pytest.fixture
def spec(write_spec, tmp_path):
    splits = {
        "1h": {"config": "1h", "train_manifest": str(tmp_path / "train.json"), "overrides": ["model.optim.lr=2e-5"]},
        "960h": {"config": "960h", "train_manifest": "m__OP_0..3_CL_.json", "train_tars": "a__OP_0..3_CL_.tar"},
    }
    models = [
        {"name": "MS-HuBERT", "ssl": str(tmp_path / "ssl.nemo")},
        {"name": "from scratch", "ssl": str(tmp_path / "ssl.nemo"), "from_scratch": True, "overrides": ["a=1"]},
    ]
    return read_spec(write_spec(models=models, splits=splits, overrides=["trainer.devices=2"]))


@pytest.fixture
def run_with(monkeypatch):
    """``run_with(status)``: let every step end so; returns the list of the commands that were run."""

    def prepare(status=0):
        commands = []

        def run(command):
            commands.append(command[1:])
            return status

        monkeypatch.setattr("nemo_mshubert.decoding.table1.step.run_to_its_end", run)
        return commands

    return prepare


def test_commands_hold_what_the_spec_says(spec, tmp_path):
    """Each step reads what the one before wrote; dev sets with the dev beam, test sets with theirs."""
    make, finetune, dev, tune, dev_other, test_clean = Cells(spec, spec.models[1], "1h", CONF).steps()
    folder = tmp_path / "out" / "from_scratch"
    nemo = str(folder / "1h" / "finetune" / "checkpoints" / "finetune.nemo")
    assert make.arguments[-3:] == ("--output", str(folder / "ctc" / "ctc.nemo"), "--from_scratch")
    assert finetune.arguments[:2] == ("--config-name", "1h")
    assert f"init_model={folder / 'ctc' / 'ctc.nemo'}" in finetune.arguments
    assert f"train_manifest={tmp_path / 'train.json'}" in finetune.arguments
    assert f"validation_manifest={tmp_path / 'dev.json'}" in finetune.arguments
    assert finetune.arguments[-3:] == ("trainer.devices=2", "model.optim.lr=2e-5", "a=1")  # the later wins
    assert (
        dev.arguments[:4] == ("--model", nemo, "--manifest", str(tmp_path / "dev.json"))
        and "--decode" not in dev.arguments
    )
    assert tune.arguments[:2] == ("--log_probs", str(folder / "1h" / "dev" / "dev.log_probs.safetensors"))
    for step, manifest, beam in ((dev_other, "dev.json", "5"), (test_clean, "test.json", "7")):
        assert step.arguments[:4] == ("--model", nemo, "--manifest", str(tmp_path / manifest))
        assert step.arguments[-4:] == ("--decode", str(folder / "1h" / "decoding" / "tuned.yaml"), "--beam_size", beam)
    tarred = Cells(spec, spec.models[0], "960h", CONF).steps()[1]
    assert "train_tars=a__OP_0..3_CL_.tar" in tarred.arguments and "--from_scratch" not in tarred.arguments
    assert Path("m__OP_0..3_CL_.json") not in tarred.inputs  # a pattern, no file


def test_tuning_has_the_trials_and_files_of_the_spec(spec, tmp_path):
    """Weights of fewer trials, or for another lexicon, would be compared with those of the paper."""
    spec.trials = 32
    tune = Cells(spec, spec.models[0], "1h", CONF).steps()[3]
    options = dict(zip(tune.arguments[::2], tune.arguments[1::2]))
    files = (str(tmp_path / "lm.arpa"), str(tmp_path / "lm.lexicon"))
    assert (options["--trials"], options["--lm"], options["--lexicon"]) == ("32", *files)
    assert options["--output"] == str(tmp_path / "out" / "MS_HuBERT" / "1h" / "decoding" / "tuned.yaml")


def test_all_sets_of_tune_on_are_tuned_on(spec, tmp_path):
    """And no other: the weights would be those of the first set alone, and the table would not say so."""
    names = {name: str(tmp_path / f"{name}.json") for name in ("dev-clean", "dev-other", "dev-noisy")}
    spec = replace(spec, dev_sets=names, tune_on=["dev-other", "dev-clean"])
    cells = Cells(spec, spec.models[0], "1h", CONF)
    _, _, log_probs, tune, *_ = cells.steps()
    manifests = [str(tmp_path / "dev-other.json"), str(tmp_path / "dev-clean.json")]
    assert log_probs.arguments[2:] == ("--manifest", *manifests, "--output", str(cells.folder / "dev"))
    assert [str(path) for path in log_probs.inputs[1:]] == manifests
    caches = [str(cells.folder / "dev" / f"{stem}.log_probs.safetensors") for stem in ("dev-other", "dev-clean")]
    assert tune.arguments[:4] == ("--log_probs", *caches, "--lm")


@pytest.mark.parametrize("file", ["finetune/1h.yaml", "finetune/_common.yaml", "decode/lexicon_beam.yaml"])
def test_an_edited_recipe_is_refused(spec, run_with, tmp_path, file):
    """Half of a table with the old learning rate or beam; a checkout elsewhere with the same recipes is the same."""

    def steps(conf):
        model, split = spec.models[0], "1h"
        _, finetune, _, tune, *_ = Cells(spec, model, split, conf).steps()
        return [step._replace(inputs=(), proof=None) for step in (finetune, tune)]

    confs = [tmp_path / "here" / "conf", tmp_path / "elsewhere" / "conf"]
    for conf in confs:
        for name in ("finetune/1h.yaml", "finetune/_common.yaml", "decode/lexicon_beam.yaml"):
            (conf / name).parent.mkdir(parents=True, exist_ok=True)
            (conf / name).write_bytes((CONF / name).read_bytes())
    commands = run_with()
    for conf in confs:
        for step in steps(conf):
            run_step(step, SCRIPTS)
    assert len(commands) == 2
    (confs[0] / file).write_text((confs[0] / file).read_text() + "trials: 3\n")
    with pytest.raises(ValueError, match=f"made when conf/{file} held something else. Remove .*1h to make it anew"):
        for step in steps(confs[0]):
            run_step(step, SCRIPTS)


def test_a_recipe_is_all_files_that_it_is_made_of():
    found = [path.stem for path in recipe_files(CONF / "finetune" / "search_1h.yaml")]
    assert found == ["search_1h", "1h", "_common", "_search"]


def test_models_and_splits_are_chosen_by_name(spec):
    assert [model.name for model in chosen(spec, ["from scratch"], None)[0]] == ["from scratch"]
    assert chosen(spec, None, ["960h"])[1] == ["960h"] and chosen(spec, None, None) == (spec.models, ["1h", "960h"])
    with pytest.raises(ValueError, match="no model 'HuBERT'. There are: 'MS-HuBERT', 'from scratch'"):
        chosen(spec, ["HuBERT"], None)
    with pytest.raises(ValueError, match="no split '2h'"):
        chosen(spec, None, ["2h"])


def test_what_is_chosen_is_checked_and_run(spec, monkeypatch):
    """A model that is still being pre-trained is left out with ``--models``; the tables are those of the last step."""
    done = []

    def check(spec, models, splits, conf):
        done.append(([model.name for model in models], splits))

    monkeypatch.setattr(table1_run, "check_inputs", check)
    monkeypatch.setattr(table1_run, "run_step", lambda step, scripts: done.append((step.name, scripts)))
    monkeypatch.setattr(table1_run, "write_tables", lambda *_: done.append("tables"))
    run_table1(spec, CONF.parent, ["from scratch"], ["960h"])
    steps = Cells(spec, spec.models[1], "960h", CONF).steps()
    assert done[0] == (["from scratch"], ["960h"])
    assert done[1::2] == [(step.name, CONF.parent / "scripts") for step in steps]
    assert done[2::2] == ["tables"] * len(steps)


@pytest.mark.parametrize(
    "value", ["a/b-c_1.json", "my data/a=b, (c).json", "it's.json", "x__OP_0..3_CL_.tar", "a:b", "müller/北京.json"]
)
def test_any_path_passes_through_hydra(value):
    (override,) = OverridesParser.create().parse_overrides([f"train_manifest={hydra_value(value)}"])
    assert override.value() == value and not override.is_sweep_override()


@pytest.fixture
def step(tmp_path):
    """A step with one input, which holds "one"."""
    (tmp_path / "input").write_text("one")
    arguments = ("--output", "x y")
    return Step("MS-HuBERT, 1h: tune", tmp_path / "tune", "tune.py", arguments, (tmp_path / "input",), tmp_path / "1h")


def test_a_finished_step_is_not_run_again(step, run_with, capsys):
    commands = run_with()
    run_step(step, SCRIPTS)
    assert "== MS-HuBERT, 1h: tune\n   python scripts/tune.py --output 'x y'\n" in capsys.readouterr().out
    run_step(step, SCRIPTS)
    assert commands == [["scripts/tune.py", "--output", "x y"]]
    assert capsys.readouterr().out == "== MS-HuBERT, 1h: tune: done\n"


def test_a_failed_step_is_run_again(step, run_with):
    run_with(status=3)
    with pytest.raises(RuntimeError, match="MS-HuBERT, 1h: tune: tune.py failed with status 3"):
        run_step(step, SCRIPTS)
    assert not is_finished(step.folder) and not is_current(step)
    with pytest.raises(ValueError, match="not by"):  # it would resume what another command has begun
        run_step(step._replace(arguments=("--output", "z")), SCRIPTS)
    commands = run_with()
    run_step(step, SCRIPTS)
    assert len(commands) == 1 and is_finished(step.folder)
    assert json.loads((step.folder / "step.json").read_text())["command"][0] == "tune.py"


def test_another_command_or_input_is_refused(step, run_with, tmp_path):
    """A table of two experiments: half of a row with the old learning rate, or of an encoder trained since."""
    commands = run_with()
    run_step(step, SCRIPTS)
    with pytest.raises(ValueError, match="(?s)--output 'x y'\nnot by\n.*--output z\nRemove .*1h to make it anew"):
        run_step(step._replace(arguments=("--output", "z")), SCRIPTS)
    (tmp_path / "input").write_text("two")
    with pytest.raises(ValueError, match="tune: made when .*input held something else. Remove .*1h"):
        run_step(step, SCRIPTS)
    assert len(commands) == 1


def test_what_follows_a_step_that_is_made_anew_is_refused(step, run_with, tmp_path):
    """A fine-tuning that had gone badly was removed and run again; the table kept the numbers of the bad one."""
    run_with()
    run_step(step, SCRIPTS)
    after = step._replace(folder=tmp_path / "sets", inputs=(step.folder / "step.json",))
    run_step(after, SCRIPTS)
    assert is_current(step) and is_current(after)
    (step.folder / "step.json").unlink()
    assert not is_current(step) and not is_current(after)
    run_step(step, SCRIPTS)
    assert is_current(step) and not is_current(after)
    with pytest.raises(ValueError, match="sets: made when .*step.json held something else"):
        run_step(after, SCRIPTS)


def test_two_processes_make_a_step_once(step, tmp_path, monkeypatch):
    """Two machines with other splits of one model share its first step; made twice, it outdated the fine-tuning that
    the first machine had begun behind it."""
    (tmp_path / "tune.py").write_text("import time\ntime.sleep(1)\nopen('made', 'a').write('x')\n")
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=run_step, args=(step, tmp_path)) for _ in range(2)]
    monkeypatch.chdir(tmp_path)
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0] and is_finished(step.folder)
    assert (tmp_path / "made").read_text() == "x"


def test_steps_do_not_take_the_tasks_of_a_slurm_job_for_their_ranks(monkeypatch, tmp_path):
    """Lightning would start no ranks, and fine-tune on one of the GPUs."""
    monkeypatch.setenv("SLURM_NTASKS", "1")
    (tmp_path / "look.py").write_text("import os, sys\nsys.exit('SLURM_NTASKS' in os.environ)\n")
    assert run_to_its_end([sys.executable, str(tmp_path / "look.py")]) == 0


def test_a_status_of_zero_is_not_the_end_of_a_training(step, run_with, tmp_path):
    """A preempted fine-tuning ends with 0; noted as finished, it would never be run to its end."""
    training = step._replace(proof=tmp_path / "finished")
    run_with()
    with pytest.raises(RuntimeError, match="tune.py was ended before .*finished.*Run the same command again"):
        run_step(training, SCRIPTS)
    assert not is_finished(training.folder)
    (tmp_path / "finished").touch()
    run_step(training, SCRIPTS)
    assert is_finished(training.folder)


# --- Ctrl-C and SIGTERM ----------------------------------------------------------------------------------------------

TABLE = """
import signal, sys
from pathlib import Path
from nemo_mshubert.decoding.table1.step import Step, run_step

signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in the background have not
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as scripts/table1.py
folder = Path(sys.argv[1])
run_step(Step("slow", folder / "slow", "slow.py", (str(folder),), (), folder), folder)
"""
SLOW = """
import signal, sys, time
from pathlib import Path

def save(*_):
    (folder / "asked").touch()
    time.sleep(1.5)
    (folder / "saved").touch()
    sys.exit(0)

folder = Path(sys.argv[1])
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
(folder / "began").touch()
time.sleep(60)
"""


@pytest.fixture
def table(tmp_path):
    """A process that runs a slow step, which takes its time to save its work when it is told to end."""
    (tmp_path / "table.py").write_text(TABLE)
    (tmp_path / "slow.py").write_text(SLOW)
    process = subprocess.Popen([sys.executable, tmp_path / "table.py", tmp_path], start_new_session=True)
    try:
        wait_for(tmp_path / "began")
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


@pytest.mark.integration
def test_a_step_may_save_its_work_after_ctrl_c(table, tmp_path):
    """Killed a quarter of a second later, a step leaves its workers behind, and what it has not written is lost."""
    os.killpg(table.pid, signal.SIGINT)  # as a terminal does: the step gets it, too
    assert table.wait(timeout=30) == -signal.SIGINT
    assert (tmp_path / "saved").exists() and not is_finished(tmp_path / "slow")


@pytest.mark.unit
def test_a_second_signal_while_a_step_is_told_does_not_leave_it(monkeypatch):
    """It would go on alone, or be killed with the job before it has saved its work."""
    calls, signals = [], {1: SystemExit(143), 2: SystemExit(143)}  # at which calls they come

    def call(name):
        calls.append(name)
        if len(calls) in signals:
            raise signals[len(calls)]
        return 0

    process = SimpleNamespace(wait=lambda: call("wait"), terminate=lambda: call("terminate"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: process)
    with pytest.raises(SystemExit):
        run_to_its_end(["step"])
    assert calls == ["wait", "terminate", "terminate", "wait"]


@pytest.mark.integration
def test_a_step_is_told_of_sigterm_and_may_save_its_work(table, tmp_path):
    """A fine-tuning writes its checkpoint on SIGTERM; schedulers signal the first process alone, or twice."""
    for _ in range(2):
        table.send_signal(signal.SIGTERM)
        wait_for(tmp_path / "asked")
    assert table.wait(timeout=30) == 143
    assert (tmp_path / "saved").exists() and not is_finished(tmp_path / "slow")
