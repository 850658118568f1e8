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

"""The steps behind a cell of Table 1, each one of the public scripts, each run once.

    <output>/<model>/ctc/ctc.nemo                                  ssl_to_ctc.py
    <output>/<model>/<split>/finetune/checkpoints/finetune.nemo    finetune_ctc.py, which resumes by itself
    <output>/<model>/<split>/dev/*.log_probs.safetensors           evaluate.py, without LM
    <output>/<model>/<split>/decoding/tuned.yaml                   tune_decoding.py, which resumes by itself
    <output>/<model>/<split>/sets/<set>/results.json               evaluate.py, a cell: greedy and with LM

A step that ended well leaves ``step.json`` in its folder: its command, and what its input files held. Another command
or input is refused, so that a table never mixes two experiments.
"""

import hashlib
import json
import re
import shlex
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from nemo_mshubert.data.manifest import atomic_write
from nemo_mshubert.decoding.table1.report import write_tables
from nemo_mshubert.decoding.table1.spec import STEP_FILE, ModelSpec, Table1Spec, check_inputs

CHUNK_BYTES = 1 << 20


class Step(NamedTuple):
    """A command, the folder it writes to, and the files it depends on."""

    name: str
    folder: Path
    script: str
    arguments: Tuple[str, ...]
    inputs: Tuple[Path, ...]
    invalid_with: Path  # the folder to remove, should command or input have changed

    @property
    def record(self) -> Dict:
        """What ``step.json`` holds."""
        inputs = {str(path): _digest(path.resolve(), path.stat().st_mtime_ns) for path in self.inputs}
        return {"command": [self.script, *self.arguments], "inputs": inputs}


@lru_cache(maxsize=None)
def _digest(path: Path, modified: int) -> str:
    """SHA-256 of a file, once per process and modification; an LM takes seconds and is in every cell."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def hydra_value(value: str) -> str:
    """``value`` as the right side of an override; quoted where Hydra's grammar would read more than text in it."""
    if re.fullmatch(r"[\w./-]+", value):
        return value
    return "'" + value.replace("'", "\\'") + "'"


def cell_steps(spec: Table1Spec, model: ModelSpec, split: str) -> List[Step]:
    """All steps of one model on one split, in order."""
    folder = spec.split_folder(model, split)
    start = folder.parent / "ctc" / "ctc.nemo"
    tuned_model = folder / "finetune" / "checkpoints" / "finetune.nemo"
    decoding = folder / "decoding" / "tuned.yaml"
    title = f"{model.name}, {split}"
    recipe = spec.splits[split]

    make = Step(
        f"{model.name}: CTC model",
        start.parent,
        "ssl_to_ctc.py",
        ("--ssl", model.ssl, "--output", str(start), *(["--from_scratch"] if model.from_scratch else [])),
        (Path(model.ssl),),
        folder.parent,
    )
    values = {
        "name": "finetune",
        "init_model": str(start),
        "train_manifest": recipe.train_manifest,
        "validation_manifest": spec.dev_sets[spec.validation_set],
        "exp_manager.exp_dir": str(folder),
        **({"train_tars": recipe.train_tars} if recipe.train_tars else {}),
    }
    overrides = [f"{key}={hydra_value(value)}" for key, value in values.items()]
    overrides += [*spec.overrides, *recipe.overrides, *model.overrides]  # the later wins
    manifests = [] if recipe.train_tars else [Path(recipe.train_manifest)]
    finetune = Step(
        f"{title}: fine-tune",
        folder / "finetune",
        "finetune_ctc.py",
        ("--config-name", recipe.config, *overrides),
        (start.parent / STEP_FILE, *manifests, Path(spec.dev_sets[spec.validation_set])),
        folder,
    )
    dev = [Path(spec.dev_sets[name]) for name in spec.tune_on]
    log_probs = Step(
        f"{title}: log-probabilities of the dev sets",
        folder / "dev",
        "evaluate.py",
        ("--model", str(tuned_model), "--manifest", *map(str, dev), "--output", str(folder / "dev")),
        (finetune.folder / STEP_FILE, *dev),
        folder,
    )
    caches = [folder / "dev" / f"{manifest.stem}.log_probs.safetensors" for manifest in dev]
    options = ("--lm", spec.lm, "--lexicon", spec.lexicon, "--trials", str(spec.trials), "--output", str(decoding))
    tune = Step(
        f"{title}: tune decoding",
        decoding.parent,
        "tune_decoding.py",
        ("--log_probs", *map(str, caches), *options),
        (log_probs.folder / STEP_FILE, Path(spec.lm), Path(spec.lexicon)),
        folder,
    )
    return [make, finetune, log_probs, tune, *_set_steps(spec, model, split, tune, tuned_model, decoding)]


def _set_steps(
    spec: Table1Spec, model: ModelSpec, split: str, tune: Step, tuned_model: Path, decoding: Path
) -> List[Step]:
    steps = []
    for name, manifest in spec.sets.items():
        folder = spec.set_folder(model, split, name)
        beam = spec.dev_beam if name in spec.dev_sets else spec.test_beam
        where = ("--model", str(tuned_model), "--manifest", manifest, "--output", str(folder))
        how = ("--decode", str(decoding), "--beam_size", str(beam))
        title = f"{model.name}, {split}: {name}, beam {beam}"
        inputs = (tune.folder / STEP_FILE, Path(manifest))
        steps.append(Step(title, folder, "evaluate.py", where + how, inputs, folder))
    return steps


def run_step(step: Step, scripts: Path) -> None:
    """Run ``step`` unless it has ended well before; prints its command line.

    Raises:
        ValueError: it was run with another command or with other inputs; says which, and what to remove.
        RuntimeError: the script failed; it says why on the terminal.
    """
    marker = step.folder / STEP_FILE
    record = step.record
    if marker.is_file():
        _require_same(json.loads(marker.read_text(encoding="utf-8")), record, step)
        print(f"== {step.name}: done", flush=True)
        return
    command = [sys.executable, str(scripts / step.script), *step.arguments]
    print(f"\n== {step.name}\n   {shlex.join(['python', *command[1:]])}", flush=True)
    status = subprocess.run(command).returncode
    if status != 0:
        raise RuntimeError(f"{step.name}: {step.script} failed with status {status}. Its messages are above.")
    with atomic_write(marker) as stream:
        json.dump(record, stream, indent=2)


def _require_same(theirs: Dict, ours: Dict, step: Step) -> None:
    remedy = f"Remove {step.invalid_with} to make it anew, or choose another output."
    if theirs["command"] != ours["command"]:
        then, now = (shlex.join(record["command"]) for record in (theirs, ours))
        raise ValueError(f"{step.folder}: made by\n    {then}\nnot by\n    {now}\n{remedy}")
    differing = [path for path, digest in ours["inputs"].items() if theirs["inputs"].get(path) != digest]
    if differing:
        raise ValueError(f"{step.folder}: made when {differing[0]} held something else. {remedy}")


def chosen(spec: Table1Spec, models: Optional[Sequence[str]], splits: Optional[Sequence[str]]):
    """The models and splits of these names, all without names; raises ``ValueError`` for a name that is not there."""
    for kind, names, known in (
        ("model", models, [model.name for model in spec.models]),
        ("split", splits, list(spec.splits)),
    ):
        unknown = sorted(set(names or ()) - set(known))
        if unknown:
            raise ValueError(f"no {kind} {', '.join(map(repr, unknown))}. There are: {', '.join(map(repr, known))}.")
    return (
        [model for model in spec.models if models is None or model.name in models],
        [split for split in spec.splits if splits is None or split in splits],
    )


def run_table1(
    spec: Table1Spec,
    repository: Path,
    models: Optional[Sequence[str]] = None,
    splits: Optional[Sequence[str]] = None,
) -> None:
    """Run every step that has not been run, split by split, and write the tables again after each cell.

    Args:
        repository: folder of ``scripts/`` and ``conf/``.
        models, splits: the names to run; all by default. The tables hold whatever has been run.

    Raises:
        FileNotFoundError, ValueError, ImportError: see `check_inputs`, before anything is run, and `run_step`.
        RuntimeError: a script failed. Run again to go on from there.
    """
    chosen_models, chosen_splits = chosen(spec, models, splits)
    check_inputs(spec, chosen_models, chosen_splits, repository / "conf")
    for split in chosen_splits:
        for model in chosen_models:
            for step in cell_steps(spec, model, split):
                run_step(step, repository / "scripts")
                write_tables(spec)
