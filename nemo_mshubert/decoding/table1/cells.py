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

"""The steps that make the cells of Table 1; each step runs one of the public scripts.

    <output>/<model>/ctc/ctc.nemo                                  ssl_to_ctc.py
    <output>/<model>/<split>/finetune/checkpoints/finetune.nemo    finetune_ctc.py, which resumes by itself
    <output>/<model>/<split>/dev/*.log_probs.safetensors           evaluate.py, without LM
    <output>/<model>/<split>/decoding/tuned.yaml                   tune_decoding.py, which resumes by itself
    <output>/<model>/<split>/sets/<set>/results.json               evaluate.py, a cell: greedy and with LM

A step depends on the files that the spec names, on the files in ``conf/`` that its script reads, and on the record of
the previous step (`step.STEP_FILE`), and so on all previous steps.
"""

import re
from pathlib import Path
from typing import List

from omegaconf import OmegaConf

from nemo_mshubert.decoding.table1.spec import ModelSpec, Table1Spec
from nemo_mshubert.decoding.table1.step import STEP_FILE, Step

FINETUNED = "finished"  # scripts/finetune_ctc.py writes it beside the checkpoints after the last update


def hydra_value(value: str) -> str:
    """``value`` as the right side of an override, quoted if Hydra's grammar would not read it as plain text."""
    if re.fullmatch(r"[\w./-]+", value, re.ASCII):  # unquoted, Hydra accepts only English letters
        return value
    return "'" + value.replace("'", "\\'") + "'"


def recipe_files(path: Path) -> List[Path]:
    """A YAML, and the YAMLs beside it on which it is based, according to its list of defaults."""
    defaults = OmegaConf.load(path).get("defaults", [])
    names = [name for name in defaults if isinstance(name, str) and name != "_self_"]  # the other entries are groups
    return [path, *(file for name in names for file in recipe_files(path.with_name(f"{name}.yaml")))]


class Cells:
    """One model on one split: its files, and its steps in order. ``conf`` is the folder with the recipes."""

    def __init__(self, spec: Table1Spec, model: ModelSpec, split: str, conf: Path):
        self.spec, self.model, self.split, self.conf = spec, model, split, conf
        self.folder = spec.split_folder(model, split)
        self.start = self.folder.parent / "ctc" / "ctc.nemo"
        # The record is also here: NeMo moves files out of the folder above when training starts.
        self.checkpoints = self.folder / "finetune" / "checkpoints"
        self.tuned_model = self.checkpoints / "finetune.nemo"
        self.dev = [Path(spec.dev_sets[name]) for name in spec.tune_on]
        self.decoding = self.folder / "decoding" / "tuned.yaml"
        self.title = f"{model.name}, {split}"

    def steps(self) -> List[Step]:
        return [*self._before_sets(), *(self._evaluate(name) for name in self.spec.sets)]

    def steps_of(self, set_name: str) -> List[Step]:
        """The steps that one cell of the table depends on."""
        return [*self._before_sets(), self._evaluate(set_name)]

    def _before_sets(self) -> List[Step]:
        return [self._make(), self._finetune(), self._log_probs(), self._tune()]

    def _make(self) -> Step:
        arguments = ["--ssl", self.model.ssl, "--output", str(self.start)]
        arguments += ["--from_scratch"] if self.model.from_scratch else []
        name, folder = f"{self.model.name}: CTC model", self.start.parent
        return Step(name, folder, "ssl_to_ctc.py", tuple(arguments), (Path(self.model.ssl),), folder.parent)

    def _finetune(self) -> Step:
        spec, recipe = self.spec, self.spec.splits[self.split]
        validation = spec.dev_sets[spec.validation_set]
        values = {
            "name": "finetune",
            "init_model": str(self.start),
            "train_manifest": recipe.train_manifest,
            "validation_manifest": validation,
            "exp_manager.exp_dir": str(self.folder),
            **({"train_tars": recipe.train_tars} if recipe.train_tars else {}),
        }
        overrides = [f"{key}={hydra_value(value)}" for key, value in values.items()]
        overrides += [*spec.overrides, *recipe.overrides, *self.model.overrides]  # a later one wins
        manifests = [] if recipe.train_tars else [recipe.train_manifest]  # with tars it is a pattern
        inputs = (self.start.parent / STEP_FILE, *map(Path, [*manifests, validation]))
        arguments = ("--config-name", recipe.config, *overrides)
        name, proof = f"{self.title}: fine-tune", self.checkpoints / FINETUNED
        recipes = tuple(recipe_files(self.conf / "finetune" / f"{recipe.config}.yaml"))
        return Step(name, self.checkpoints, "finetune_ctc.py", arguments, inputs, self.folder, recipes, proof)

    def _log_probs(self) -> Step:
        folder = self.folder / "dev"
        arguments = ("--model", str(self.tuned_model), "--manifest", *map(str, self.dev), "--output", str(folder))
        inputs = (self.checkpoints / STEP_FILE, *self.dev)
        name = f"{self.title}: log-probabilities of the dev sets"
        return Step(name, folder, "evaluate.py", arguments, inputs, self.folder)

    def _tune(self) -> Step:
        spec = self.spec
        caches = [str(self.folder / "dev" / f"{manifest.stem}.log_probs.safetensors") for manifest in self.dev]
        arguments = ("--log_probs", *caches, "--lm", spec.lm, "--lexicon", spec.lexicon)
        arguments += ("--trials", str(spec.trials), "--output", str(self.decoding))
        inputs = (self.folder / "dev" / STEP_FILE, Path(spec.lm), Path(spec.lexicon))
        name, recipes = f"{self.title}: tune decoding", (self.conf / "decode" / "lexicon_beam.yaml",)
        return Step(name, self.decoding.parent, "tune_decoding.py", arguments, inputs, self.folder, recipes)

    def _evaluate(self, set_name: str) -> Step:
        manifest = self.spec.sets[set_name]
        folder = self.spec.set_folder(self.model, self.split, set_name)
        beam = self.spec.dev_beam if set_name in self.spec.dev_sets else self.spec.test_beam
        arguments = ("--model", str(self.tuned_model), "--manifest", manifest, "--output", str(folder))
        arguments += ("--decode", str(self.decoding), "--beam_size", str(beam))
        inputs = (self.decoding.parent / STEP_FILE, Path(manifest))
        name = f"{self.title}: {set_name}, beam {beam}"
        return Step(name, folder, "evaluate.py", arguments, inputs, folder)
