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

"""Table 1 from pre-trained files to printed numbers, with minuscule models on synthetic speech."""

import csv
import json
import os
import runpy
import signal
import sys
from pathlib import Path

import pytest
import torch
from nemo.collections.asr.models import ASRModel

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.callbacks.preemption import SaveWhenPreempted
from nemo_mshubert.data.manifest import read_manifest
from nemo_mshubert.decoding.config import read_config
from nemo_mshubert.decoding.lexicon import write_lexicon
from nemo_mshubert.decoding.lexicon_beam import LexiconBeamSearchDecoder
from nemo_mshubert.decoding.log_probs import read_log_probs
from nemo_mshubert.decoding.table1 import step as step_module
from nemo_mshubert.decoding.table1.cells import Cells
from nemo_mshubert.decoding.table1.report import write_tables
from nemo_mshubert.decoding.table1.run import run_table1
from nemo_mshubert.decoding.table1.spec import read_spec
from nemo_mshubert.decoding.table1.step import is_finished, run_step

pytest.importorskip("ax", reason="tuning needs Ax")
pytestmark = pytest.mark.integration
REPOSITORY = Path(__file__).parents[3]
TINY = [
    *("max_updates=4", "validate_every_updates=2", "freeze_encoder_updates=1", "seconds_per_update=12"),
    *("model.train_ds.batch_duration=12", "model.train_ds.num_buckets=2", "model.encoder.mask_length=4"),
    *("trainer.devices=1", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"),
]


@pytest.fixture
def spec_path(write_spec, write_arpa, tmp_path, ssl_path, synthetic_corpus):
    words = sorted({word for entry in read_manifest(synthetic_corpus.dev) for word in entry["text"].split()})[:20]
    write_lexicon(tmp_path / "words.lexicon", words, ENGLISH_LABELS)
    return write_spec(
        lm=write_arpa({word: -1.0 for word in words}),
        lexicon=str(tmp_path / "words.lexicon"),
        trials=2,
        dev_sets={"dev-other": str(synthetic_corpus.dev)},
        test_sets={"test-clean": str(synthetic_corpus.test)},
        overrides=TINY,
        models=[
            {"name": "MS-HuBERT", "ssl": str(ssl_path)},
            {"name": "from scratch", "ssl": str(ssl_path), "from_scratch": True},
        ],
        splits={"1h": {"config": "tiny", "train_manifest": str(synthetic_corpus.train)}},
    )


class CtrlC:
    """Stands before the runner of steps and interrupts the ``nth`` run of ``script``, counted from now."""

    def __init__(self, runner, script, nth):
        self.runner, self.script, self.left = runner, script, nth

    def __call__(self, command):
        self.left -= command[1].endswith(self.script)
        if self.left == 0:
            raise KeyboardInterrupt
        return self.runner(command)


@pytest.fixture(params=["SIGTERM", "time limit"])
def ended_early(request, monkeypatch):
    """The first fine-tuning is ended behind its second update: by the scheduler, or by max_time_per_run."""
    left = [request.param]

    def end(callback, trainer, *_):
        if trainer.global_step == 1 and left:
            if left.pop() == "SIGTERM":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                trainer.should_stop = True

    monkeypatch.setattr(SaveWhenPreempted, "on_train_batch_start", end)
    return request.param


def test_a_fine_tuning_that_was_ended_early_goes_on(spec_path, scripts_in_this_process, ended_early):
    """Its status is 0, and after a time limit it has a ``.nemo``: half trained, and the table would hold it."""
    spec = read_spec(spec_path)
    spec.overrides.append("exp_manager.checkpoint_callback_params.mode=max")  # the best is not the last
    model = spec.models[0]
    folder = Path(spec.output) / "MS_HuBERT" / "1h" / "finetune" / "checkpoints"
    with pytest.raises(RuntimeError, match="finetune_ctc.py was ended before it had done all"):
        run_table1(spec, REPOSITORY, [model.name])
    assert not is_finished(folder) and (folder / "finetune.nemo").is_file() == (ended_early == "time limit")
    assert scripts_in_this_process == ["ssl_to_ctc.py", "finetune_ctc.py"]
    other = read_spec(spec_path)
    other.overrides.append("model.optim.lr=1")
    with pytest.raises(ValueError, match="checkpoints: made by"):  # NeMo has not moved the record away
        run_table1(other, REPOSITORY, [model.name])
    run_step(Cells(spec, model, "1h", REPOSITORY / "conf").steps()[1], REPOSITORY / "scripts")
    assert is_finished(folder) and scripts_in_this_process[2:] == ["finetune_ctc.py"]
    (last,) = folder.glob("*last.ckpt")
    assert torch.load(last, map_location="cpu", weights_only=False)["global_step"] == 4
    for name in ("finished", "step.json"):  # as of a run that was killed between its last update and these
        (folder / name).unlink()
    run_step(Cells(spec, model, "1h", REPOSITORY / "conf").steps()[1], REPOSITORY / "scripts")
    assert is_finished(folder)


def test_table_of_two_models(spec_path, scripts_in_this_process, monkeypatch, capsys, synthetic_corpus):
    """Interrupted and run again: every step once, and numbers that are those of the log-probabilities and the tuned
    YAML."""
    spec = read_spec(spec_path)
    with monkeypatch.context() as context:
        interrupted = CtrlC(step_module.run_to_its_end, "evaluate.py", nth=2)
        context.setattr(step_module, "run_to_its_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_table1(spec, REPOSITORY)
    output = Path(spec.output)
    assert [path.parent.name for path in output.rglob("results.json")] == ["dev"]  # no cell yet
    first = ["ssl_to_ctc.py", "finetune_ctc.py", "evaluate.py", "tune_decoding.py"]
    assert scripts_in_this_process == first
    table = (output / "table1.md").read_text()
    assert "| 1h | MS-HuBERT | 5.6 | - | 10.9 | - | 5.9 | - | 11.3 | - |" in table  # nothing of ours yet

    monkeypatch.setattr(sys, "argv", ["table1.py", "--spec", str(spec_path)])
    monkeypatch.setattr("nemo_mshubert.decoding.evaluation.available_cores", lambda: 1)
    runpy.run_path(str(REPOSITORY / "scripts" / "table1.py"), run_name="__main__")
    assert scripts_in_this_process[4:] == ["evaluate.py"] * 2 + first + ["evaluate.py"] * 2
    printed = capsys.readouterr().out
    assert "== MS-HuBERT, 1h: fine-tune: done" in printed and "== from scratch, 1h: fine-tune\n   python " in printed
    assert printed.rstrip().endswith((output / "table1.md").read_text().rstrip())

    cells = {(row["split"], row["model"], row["set"]): row for row in csv.DictReader(open(output / "table1.csv"))}
    for model, folder in (("MS-HuBERT", "MS_HuBERT"), ("from scratch", "from_scratch")):
        tuned = read_config(output / folder / "1h" / "decoding" / "tuned.yaml", beam_size=7)
        name = synthetic_corpus.test.stem
        cache = read_log_probs(output / folder / "1h" / "sets" / "test_clean" / f"{name}.log_probs.safetensors")
        decoder = LexiconBeamSearchDecoder(ENGLISH_LABELS, tuned)
        texts = [best.text for best in decoder.decode_all(zip(cache.utterances, cache.log_probs))]
        lines = (output / folder / "1h" / "sets" / "test_clean" / f"{name}.lexicon_beam.json").read_text()
        assert [json.loads(line)["pred_text"] for line in lines.splitlines()] == texts
        cell = cells["1h", model, "test-clean"]
        errors = sum(int(cell[kind]) for kind in ("substitutions", "insertions", "deletions"))
        assert float(cell["wer"]) == pytest.approx(100 * errors / int(cell["words"]), abs=0.001)
        assert int(cell["utterances"]) == len(read_manifest(synthetic_corpus.test)) == len(texts)
    assert cells["1h", "MS-HuBERT", "test-clean"]["reported_wer"] == "5.9"
    assert cells["1h", "from scratch", "test-clean"]["reported_wer"] == ""

    encoders = [
        ASRModel.restore_from(str(output / folder / "ctc" / "ctc.nemo"), map_location="cpu").encoder.state_dict()
        for folder in ("MS_HuBERT", "from_scratch")
    ]
    assert any(not encoders[0][key].equal(encoders[1][key]) for key in encoders[0])
    assert write_tables(spec, REPOSITORY / "conf") == (output / "table1.md").read_text()
