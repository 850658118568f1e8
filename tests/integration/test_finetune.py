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

"""scripts/finetune_ctc.py and scripts/evaluate.py as a user runs them: a fine-tuned ``.nemo``, then its table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nemo.collections.asr.models import ASRModel

pytestmark = pytest.mark.integration
REPOSITORY = Path(__file__).parents[2]
UPDATES, FROZEN_UPDATES = 6, 3


def run(folder, script, *arguments):
    process = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / script), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process


def test_finetune_and_evaluate(letters_path, synthetic_corpus, tmp_path):
    """Two commands of the README, with minuscule numbers: the files they promise, and weights that were trained."""
    run(
        tmp_path,
        "finetune_ctc.py",
        "--config-name=tiny",
        f"init_model={letters_path}",
        f"train_manifest={synthetic_corpus.train}",
        f"validation_manifest={synthetic_corpus.dev}",
        f"max_updates={UPDATES}",
        "validate_every_updates=3",
        f"freeze_encoder_updates={FROZEN_UPDATES}",
        "seconds_per_update=12",
        "model.train_ds.batch_duration=12",
        "model.train_ds.num_buckets=2",
        "model.encoder.mask_length=4",
        "trainer.devices=1",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
    )
    folder = tmp_path / "exp" / "finetune_tiny"
    model_path = folder / "checkpoints" / "finetune_tiny.nemo"
    assert model_path.is_file() and list(folder.rglob("events.out.tfevents*"))
    (last,) = folder.glob("checkpoints/*last.ckpt")
    assert torch.load(last, map_location="cpu", weights_only=False)["global_step"] == UPDATES

    before = ASRModel.restore_from(str(letters_path), map_location="cpu").state_dict()
    after = torch.load(last, map_location="cpu", weights_only=False)["state_dict"]
    same = {name for name, value in before.items() if torch.equal(after[name], value)}
    assert same == {name for name in before if name.startswith("encoder.feature_extractor.")}
    assert type(ASRModel.restore_from(str(model_path), map_location="cpu")).__name__ == "EncDecCTCModel"

    process = run(
        tmp_path,
        "evaluate.py",
        *("--model", model_path, "--output", "results", "--device", "cpu"),
        *("--manifest", synthetic_corpus.dev, synthetic_corpus.test),
    )
    table = process.stdout[process.stdout.index("| manifest |") :].splitlines()
    assert [row.split("|")[1].strip() for row in table] == [
        "manifest",
        "---",
        synthetic_corpus.dev.stem,
        synthetic_corpus.test.stem,
    ]
    results = json.loads((tmp_path / "results" / "results.json").read_text())["results"]
    rates = [float(row.split("|")[5]) for row in table[2:]]
    assert rates == pytest.approx([100 * result["greedy"]["wer"] for result in results.values()], abs=0.005)
    predictions = (tmp_path / "results" / f"{synthetic_corpus.test.stem}.greedy.json").read_text().splitlines()
    assert len(predictions) == len(synthetic_corpus.test.read_text().splitlines())
