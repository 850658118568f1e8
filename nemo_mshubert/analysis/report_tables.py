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

"""Tables of the report: error rates, labels, differences of configurations, speed and time."""

import itertools
from typing import Any, Dict, List, Optional, Sequence

from nemo_mshubert.analysis.experiments import Experiment
from nemo_mshubert.analysis.findings import ABSENT
from nemo_mshubert.analysis.run_folder import MODELS, Run
from nemo_mshubert.markdown import Table


def score_tables(run: Run) -> List[Table]:
    """Error rates, if there are any."""
    if not run.scores:
        return []
    rows = []
    for key in dict.fromkeys(key for scores in run.scores.values() for key in scores):
        of_models = [scores.get(key) for scores in run.scores.values()]
        words = " / ".join(dict.fromkeys(str(score.words) for score in of_models if score))
        rates = [_percent(score and score.wer) for score in of_models]
        rows.append([*key, words, *rates, *(_percent(score and score.cer) for score in of_models)])
    names = [MODELS.get(model, model) for model in run.scores]
    header = ["test set", "decoding", "words", *(f"WER %, {name}" for name in names)]
    note = (
        "Words of the references. Where two numbers stand, the models were tested on different sets: do not compare."
    )
    header += [f"CER %, {name}" for name in names]
    return [Table("Error rates", header, rows, (0, 1), note if any("/" in row[2] for row in rows) else "")]


def setup_tables(run: Run) -> List[Table]:
    """Label metrics, differences of the configurations, speed and times."""
    made = [run.labels and _label_table(run)]
    made += [_difference_table("pre-training", run.pretrainings), _difference_table("fine-tuning", run.finetunings)]
    made += [_speed_table(run), run.stages and _stage_table(run)]
    return [table for table in made if table]


def _difference_table(kind: str, experiments: Sequence[Experiment]) -> Optional[Table]:
    """Settings in which experiments of a kind differ, except paths and names, which always differ."""
    known = [experiment for experiment in experiments if experiment.settings]
    keys = dict.fromkeys(key for experiment in known for key in experiment.settings)
    differing = [
        key
        for key in keys
        if len({_setting(experiment, key) for experiment in known}) > 1
        and not any(_is_place(experiment.settings.get(key)) for experiment in known)
        and key.split(".")[-1] != "name"
        and not _follows(key, keys, known)
    ]
    if not differing:
        return None
    names = [key.removeprefix("cfg.").removeprefix("model.") for key in differing]
    rows = [[experiment.name, *(_setting(experiment, key) for key in differing)] for experiment in known]
    note = "Of settings that always have the same values as another one in the table, the first is shown."
    return Table(f"Configurations: {kind}", ["experiment", *names], rows, tuple(range(len(names) + 1)), note)


def _setting(experiment: Experiment, key: str) -> str:
    value = experiment.settings.get(key, ABSENT)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and "/" in value


def _follows(key: str, keys: Dict[str, None], experiments: Sequence[Experiment]) -> bool:
    """Whether an earlier setting has the same values: ``${...}`` repeats values throughout a configuration."""
    values = [_setting(experiment, key) for experiment in experiments]
    earlier = itertools.takewhile(lambda other: other != key, keys)
    return any([_setting(experiment, other) for experiment in experiments] == values for other in earlier)


def _speed_table(run: Run) -> Optional[Table]:
    timed = [experiment for experiment in run.experiments if experiment.step_seconds]
    rows = []
    for experiment in timed:
        last = max(max(curve) for curve in experiment.scalars.values())
        rows.append([experiment.name, str(last + 1), f"{experiment.step_seconds:.3f}"])
    note = "A step is a micro-batch; medians, on the machine and beside whatever else it did then."
    return Table("Training speed", ["experiment", "updates", "seconds per step"], rows, (0,), note) if rows else None


def _label_table(run: Run) -> Table:
    rows = []
    for label in run.labels:
        values = label.values
        row = [label.iteration, label.manifest, label.clusters]
        row += [_decimals(values.get(key), 3) for key in ("pnmi", "pnmi_chance", "unit_purity", "cluster_purity")]
        row.append(str(values.get("aligned_frames", ABSENT)))
        row += [_decimals(values["entropy_bits"], 2), str(values["dead_clusters"]), label.unit, label.features]
        rows.append(row)
    header = ["labels", "manifest", "clusters", "PNMI", "PNMI by chance", "unit purity", "cluster purity"]
    header += ["aligned frames", "entropy, bits", "dead clusters", "unit", "features"]
    note = (
        "PNMI and purity are against the unit of the alignments, where the labelling was given some. By chance: what "
        "labels that know nothing of the units reach on as many frames."
    )
    return Table("Labels", header, rows, (0, 1, 10, 11), note)


def _stage_table(run: Run) -> Table:
    rows = [[stage.name, f"{stage.seconds:.0f}", clock(stage.seconds)] for stage in run.stages]
    total, end = 0.0, 0.0
    for stage in sorted(run.stages, key=lambda stage: stage.start):  # some run at the same time
        total += max(0.0, stage.start + stage.seconds - max(end, stage.start))
        end = max(end, stage.start + stage.seconds)
    return Table("Time", ["stage", "seconds", "h:mm:ss"], [*rows, ["total", f"{total:.0f}", clock(total)]], (0,))


def _percent(share: Optional[float]) -> str:
    return ABSENT if share is None else f"{100 * share:.2f}"


def _decimals(value: Optional[float], digits: int) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def missing_parts(run: Run) -> List[str]:
    """A sentence for each part whose stage has not run."""
    parts: Dict[str, Any] = {
        "Labelling (scripts/label.py make) has not run: no labels/<iteration>/*.metrics.json.": run.labels,
        "Pre-training (scripts/pretrain.py) has not run: no TensorBoard files with label sets.": run.pretrainings,
        "Fine-tuning (scripts/finetune_ctc.py) has not run: no TensorBoard files without label sets.": run.finetunings,
    }
    for model, name in MODELS.items():
        sentence = f"Evaluation {name} (scripts/evaluate.py) has not run: no results/{model}/results.json."
        parts[sentence] = any(key == model or key.endswith(f": {name}") for key in run.scores)  # of several runs
    parts["No stage of quickstart.sh has finished: no stages.tsv, so no times and no command lines."] = run.stages
    return [sentence for sentence, part in parts.items() if not part]
