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

"""Our ``.nemo`` files in a process that never imports nemo_mshubert, as stock NeMo scripts are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from nemo.collections.asr.models import ASRModel
from nemo.core.classes import ModelPT, common

from nemo_mshubert.target_registration import OPT_OUT_VARIABLE

pytestmark = pytest.mark.integration
REPOSITORY = Path(__file__).parents[2]

STOCK = """
import json, sys
import torch
torch.set_num_threads(1)
from nemo.collections.asr.models import ASRModel
from nemo.core.classes import ModelPT

ssl, ctc, wave, output = sys.argv[1:]
pretrained = ModelPT.restore_from(ssl, map_location="cpu")
found = {"checksum": float(sum(p.double().abs().sum() for p in pretrained.parameters()))}
model = ASRModel.restore_from(ctc, map_location="cpu")
found["class"] = f"{type(model).__module__}.{type(model).__qualname__}"
found["text"] = model.transcribe([wave], verbose=False)[0].text
with open(output, "w") as stream:
    json.dump(found, stream)
"""


def run_stock(ssl, ctc, folder, **environment):
    """Run `STOCK` with the models, in a folder and an environment of its own."""
    wave = np.random.default_rng(0).normal(0, 0.1, 20000).astype(np.float32)
    soundfile.write(folder / "wave.wav", wave, 16000, subtype="FLOAT")
    clean = {name: value for name, value in os.environ.items() if name != OPT_OUT_VARIABLE}
    return subprocess.run(
        [sys.executable, "-c", STOCK, str(ssl), str(ctc), str(folder / "wave.wav"), str(folder / "found.json")],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_stock_process_restores_and_transcribes(ssl_path, letters_path, tmp_path):
    """What a user of NeMo does with a file of ours after `pip install nemo_mshubert`: nothing but restore it."""
    process = run_stock(ssl_path, letters_path, tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    pretrained = ModelPT.restore_from(str(ssl_path), map_location="cpu")
    checksum = float(sum(parameter.double().abs().sum() for parameter in pretrained.parameters()))
    assert found["checksum"] == pytest.approx(checksum, rel=1e-12)
    assert found["class"] == "nemo.collections.asr.models.ctc_models.EncDecCTCModel"
    model = ASRModel.restore_from(str(letters_path), map_location="cpu")
    expected = model.transcribe([str(tmp_path / "wave.wav")], verbose=False)[0].text
    assert found["text"] == expected and len(expected) > 5


def test_opting_out_leaves_nemo_as_it_is(ssl_path, letters_path, tmp_path):
    """Shows that it is the plugin that made the process above work, and that it can be switched off."""
    process = run_stock(ssl_path, letters_path, tmp_path, **{OPT_OUT_VARIABLE: "1"})
    assert process.returncode != 0 and not (tmp_path / "found.json").exists()
    if hasattr(common, "UnsafeTargetError"):
        assert "UnsafeTargetError" in process.stderr and "nemo_mshubert." in process.stderr
    else:  # NeMo 2.7 makes its base class of what it does not allow
        assert "abstract class ModelPT" in process.stderr
