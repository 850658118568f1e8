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
import runpy
import sys
from pathlib import Path

import pytest
from nemo.collections.asr.models import ASRModel

from nemo_mshubert.data.manifest import read_manifest
from nemo_mshubert.decoding.config import read_config
from nemo_mshubert.decoding.lexicon import ENGLISH_LABELS, write_lexicon
from nemo_mshubert.decoding.lexicon_beam import LexiconBeamSearchDecoder
from nemo_mshubert.decoding.log_probs import LogProbs
from nemo_mshubert.decoding.table1 import step as step_module
from nemo_mshubert.decoding.table1.report import write_tables
from nemo_mshubert.decoding.table1.run import run_table1
from nemo_mshubert.decoding.table1.spec import read_spec

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

    def run(self, command):
        self.left -= command[1].endswith(self.script)
        if self.left == 0:
            raise KeyboardInterrupt
        return self.runner.run(command)


def test_table_of_two_models(spec_path, scripts_in_this_process, monkeypatch, capsys, synthetic_corpus):
    """Interrupted and run again: every step once, and numbers that are those of the log-probabilities and the tuned
    YAML."""
    spec = read_spec(spec_path)
    with monkeypatch.context() as context:
        context.setattr(step_module, "subprocess", CtrlC(step_module.subprocess, "evaluate.py", nth=2))
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
        cache = LogProbs(output / folder / "1h" / "sets" / "test_clean" / f"{name}.log_probs.safetensors")
        decoder = LexiconBeamSearchDecoder(ENGLISH_LABELS, tuned)
        texts = [decoder.decode(log_probs, utterance)[0].text for utterance, log_probs in cache]
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
    assert write_tables(spec) == (output / "table1.md").read_text()
