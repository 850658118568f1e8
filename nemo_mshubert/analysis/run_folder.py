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

"""Reads a run folder, finished or not: stages, labels, error rates, experiments and findings of analyses."""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple, Union

from nemo_mshubert.analysis.experiments import Experiment, read_experiments
from nemo_mshubert.analysis.findings import ABSENT, Findings, read_findings
from nemo_mshubert.decoding.results import read_results
from nemo_mshubert.whole_files import PathLike

MODELS = {"pretrained": "pre-trained", "scratch": "from scratch"}  # folders of results/, in the order of the columns


class Stage(NamedTuple):
    """A line of stages.tsv; ``start`` in seconds since 1970."""

    name: str
    start: float
    seconds: float
    command: str


class Score(NamedTuple):
    """Error rates (as shares) of a model on a test set, and the number of reference words."""

    wer: float
    cer: float
    words: int


class LabelSetMetrics(NamedTuple):
    """Metrics of one label set of a manifest, as scripts/label.py writes them."""

    iteration: str
    manifest: str
    features: str
    unit: str
    clusters: str
    values: Dict[str, float]


Scores = Dict[Tuple[str, str], Score]  # by manifest and decoder


@dataclass
class Run:
    """The contents of a run folder; a part whose stage has not run is empty."""

    name: str
    stages: List[Stage] = field(default_factory=list)
    labels: List[LabelSetMetrics] = field(default_factory=list)
    scores: Dict[str, Scores] = field(default_factory=dict)  # by model
    experiments: List[Experiment] = field(default_factory=list)
    findings: Findings = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.stages or self.labels or self.scores or self.experiments or self.findings)

    @property
    def pretrainings(self) -> List[Experiment]:
        return [experiment for experiment in self.experiments if experiment.label_sets]

    @property
    def finetunings(self) -> List[Experiment]:
        return [experiment for experiment in self.experiments if not experiment.label_sets]


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_run(folder: PathLike) -> Run:
    """Read everything that a run folder holds so far.

    Raises:
        FileNotFoundError: no such folder, or it holds nothing of a run.
        ValueError: a file is damaged; the message names it and says what to repeat.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such run folder. Give the output folder of a run with --run.")
    run = Run(
        name=folder.resolve().name,
        stages=read_stages(folder / "stages.tsv"),
        labels=read_label_metrics(folder / "labels"),
        scores=read_scores(folder / "results"),
        experiments=read_experiments(folder),
        findings=read_findings(folder),
    )
    if not run:
        raise FileNotFoundError(
            f"{folder}: holds neither stages.tsv, labels/<iteration>/*.metrics.json, "
            "<experiment>/version_*/events.out.tfevents.*, results/<model>/results.json nor results of an analysis. "
            "Give the output folder of quickstart.sh with --run, or wait for its first stage."
        )
    return run


def read_runs(folders: Sequence[PathLike]) -> Run:
    """Read one run, or several as one. The parts of several runs are named after their run: by the last part of its
    path, or by the whole path if two last parts are the same.

    Raises:
        FileNotFoundError, ValueError: as `read_run`, or a folder was given twice.
    """
    runs = [read_run(folder) for folder in folders]
    if len(runs) == 1:
        return runs[0]
    if len({run.name for run in runs}) < len(runs):
        for run, folder in zip(runs, folders):
            run.name = str(Path(folder).resolve())
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f"--run: {', '.join(map(str, folders))}: name each run folder once.")
    together = Run(name=", ".join(run.name for run in runs))
    for run in runs:
        together.stages += [stage._replace(name=f"{run.name}: {stage.name}") for stage in run.stages]
        together.labels += [label._replace(iteration=f"{run.name}: {label.iteration}") for label in run.labels]
        together.scores.update({f"{run.name}: {MODELS.get(key, key)}": value for key, value in run.scores.items()})
        together.experiments += [replace(one, name=f"{run.name}/{one.name}") for one in run.experiments]
        for kind, files in run.findings.items():
            named = [(f"{run.name}/{folder}", content) for folder, content in files]
            together.findings.setdefault(kind, []).extend(named)
    return together


def read_stages(path: Path) -> List[Stage]:
    """Stages in the order in which they first ran. Of a stage that ran again, the newest line counts. Raises
    ``ValueError`` for a line of another form."""
    stages: Dict[str, Stage] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], start=1):
        if not line.strip():
            continue
        try:
            name, start, seconds, command = line.split("\t", 3)
            stages[name] = Stage(name, float(start), float(seconds), command)
        except ValueError as error:
            raise ValueError(
                f"{path}:{number}: expected name, start, seconds and command line between tabs, found {line[:80]!r}. "
                "Repair or remove this line."
            ) from error
    return list(stages.values())


def read_label_metrics(folder: Path) -> List[LabelSetMetrics]:
    """Metrics of all iterations, manifests and sets below ``labels/``, in this order. Raises ``ValueError`` with the
    name of a damaged file."""
    rows = []
    for path in sorted(folder.glob("*/*.metrics.json"), key=_natural_order):
        name, remedy = path.name.removesuffix(".metrics.json"), "Repeat scripts/label.py make --metrics_output."
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            for clusters, values in report["sets"].items():
                values["entropy_bits"], values["dead_clusters"]  # all files have these; alignments add the others
                unit = report.get("unit", ABSENT)
                rows.append(LabelSetMetrics(path.parent.name, name, report["features"], unit, clusters, values))
        except KeyError as error:
            raise ValueError(f"{path}: lacks {error}. {remedy}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not the expected JSON ({error}). {remedy}") from error
    return rows


def read_scores(folder: Path) -> Dict[str, Scores]:
    """Scores of each model below ``results/``: first those of `MODELS`, then the others by name."""
    paths = {path.parent.name: path for path in sorted(folder.glob("*/results.json"), key=_natural_order)}
    scores = {}
    for model in sorted(paths, key=lambda model: list(MODELS).index(model) if model in MODELS else len(MODELS)):
        scores[model] = {
            (manifest, decoder): Score(summary["wer"], summary["cer"], summary["words"]["reference_length"])
            for manifest, by_decoder in read_results(paths[model]).results.items()
            for decoder, summary in by_decoder.items()
        }
    return scores


def _natural_order(path: Path) -> List[Union[int, str]]:
    """Sort key by which iter10 comes after iter9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.as_posix())]
