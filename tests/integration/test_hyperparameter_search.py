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

"""The multirun of conf/finetune/search_*.yaml: four runs of the script in one process, each in its own folder."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from nemo.collections.asr.models import ASRModel

pytestmark = pytest.mark.integration
REPOSITORY = Path(__file__).parents[2]


def test_four_runs_that_share_nothing(letters_path, synthetic_corpus, tmp_path, monkeypatch):
    """Names, checkpoints and hyper-parameters of one run must not leak into the next; paths are those of the
    caller."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ctc.nemo").symlink_to(letters_path)
    arguments = [
        *("init_model=ctc.nemo", f"train_manifest={synthetic_corpus.train}"),
        *(f"validation_manifest={synthetic_corpus.dev}", "max_updates=2", "validate_every_updates=1"),
        *("freeze_encoder_updates=0", "seconds_per_update=12", "model.train_ds.batch_duration=12"),
        *("model.train_ds.num_buckets=2", "model.train_ds.num_workers=0", "model.validation_ds.num_workers=0"),
        *("model.encoder.mask_length=4", "model.encoder.mask_channel_length=4", "trainer.precision=32"),
        *("trainer.devices=1", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"),
    ]
    monkeypatch.setattr(sys, "argv", ["finetune_ctc.py", "--config-name", "search_1h", *arguments])
    runpy.run_path(str(REPOSITORY / "scripts" / "finetune_ctc.py"), run_name="__main__")

    folder = tmp_path / "exp" / "search_1h"
    names = [f"lr{lr}_mask{mask}" for lr in ("2e-05", "5e-05") for mask in (0.65, 0.75)]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "multirun.yaml"]
    weights = []
    for name in names:
        checkpoints = folder / name / "checkpoints"
        files = sorted(set(checkpoints.iterdir()) - {checkpoints / "run.lock", checkpoints / "finished"})
        assert f"{name}.nemo" in [file.name for file in files] and all(file.name.startswith(name) for file in files)
        assert any("val_wer=" in file.name for file in files)  # by which the user chooses
        (last,) = (file for file in files if file.name.endswith("last.ckpt"))
        state = torch.load(last, map_location="cpu", weights_only=False)
        assert state["global_step"] == 2
        assert state["optimizer_states"][0]["param_groups"][0]["initial_lr"] == float(name[2:7])
        model = ASRModel.restore_from(str(folder / name / "checkpoints" / f"{name}.nemo"), map_location="cpu")
        assert model.encoder.mask_prob == float(name[-4:])
        weights.append(state["state_dict"]["decoder.decoder_layers.0.weight"])
    assert not any(torch.equal(one, other) for i, one in enumerate(weights) for other in weights[:i])
