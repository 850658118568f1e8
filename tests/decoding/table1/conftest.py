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

"""A Table 1 of two minuscule models, and what it takes to run a step of it in this process."""

import runpy
import sys

import pytest
from omegaconf import OmegaConf


@pytest.fixture
def write_spec(tmp_path):
    """``write_spec(trials=2, ...)``: a spec of one model, split, dev and test set, with changes; returns its path.

    The files it names are those of the caller; by default they do not exist.
    """

    def write(**changes):
        spec = {
            "output": str(tmp_path / "out"),
            "lm": str(tmp_path / "lm.arpa"),
            "lexicon": str(tmp_path / "lm.lexicon"),
            "validation_set": "dev-other",
            "tune_on": ["dev-other"],
            "trials": 1,
            "dev_beam": 5,
            "test_beam": 7,
            "dev_sets": {"dev-other": str(tmp_path / "dev.json")},
            "test_sets": {"test-clean": str(tmp_path / "test.json")},
            "overrides": [],
            "models": [{"name": "MS-HuBERT", "ssl": str(tmp_path / "ssl.nemo")}],
            "splits": {"1h": {"config": "1h", "train_manifest": str(tmp_path / "train.json")}},
        }
        OmegaConf.save(OmegaConf.create({**spec, **changes}), tmp_path / "spec.yaml")
        return tmp_path / "spec.yaml"

    return write


@pytest.fixture
def scripts_in_this_process(monkeypatch):
    """Steps run here instead of in a process of their own, which would import NeMo again; returns the names of the
    run."""
    ran = []

    def run(command):
        ran.append(command[1].rpartition("/")[2])
        with monkeypatch.context() as context:
            context.setattr(sys, "argv", command[1:])
            try:
                runpy.run_path(command[1], run_name="__main__")
            except SystemExit as end:
                return end.code
        return 0

    monkeypatch.setattr("nemo_mshubert.decoding.table1.step.run_to_its_end", run)
    return ran
