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

"""The report of a quickstart run, finished or not: tables as Markdown, and all of it as one HTML file."""

import base64
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from nemo_mshubert.analysis.curves import (
    Experiment,
    Plot,
    learning_rate_plot,
    pretraining_plots,
    read_experiments,
    wer_plot,
)
from nemo_mshubert.data.manifest import PathLike

MODELS = {"pretrained": "pre-trained", "scratch": "from scratch"}  # folders of results/, in the order of the columns
ABSENT = "–"


class Stage(NamedTuple):
    """A line of stages.tsv."""

    name: str
    seconds: float
    command: str


class Score(NamedTuple):
    """Error rates (shares) of a model on a test set, and the words of its references."""

    wer: float
    cer: float
    words: int


class LabelMetrics(NamedTuple):
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
    """What a run folder holds; a part whose stage has not run is empty."""

    name: str
    stages: List[Stage] = field(default_factory=list)
    labels: List[LabelMetrics] = field(default_factory=list)
    scores: Dict[str, Scores] = field(default_factory=dict)  # by model
    experiments: List[Experiment] = field(default_factory=list)

    @property
    def pretrainings(self) -> List[Experiment]:
        return [experiment for experiment in self.experiments if experiment.label_sets]

    @property
    def finetunings(self) -> List[Experiment]:
        return [experiment for experiment in self.experiments if not experiment.label_sets]


@dataclass
class Table:
    """Cells as text; the columns ``text_columns`` (from 0) are set left, the others, of numbers, right."""

    title: str
    header: List[str]
    rows: List[List[str]]
    text_columns: Tuple[int, ...]
    note: str = ""


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_run(folder: PathLike) -> Run:
    """Read all that a run folder holds so far.

    Raises:
        FileNotFoundError: no such folder, or nothing of a run in it.
        ValueError: a file is damaged; names it and says what to repeat.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such run folder. Give the output folder of quickstart.sh with --run.")
    run = Run(
        name=folder.resolve().name,
        stages=read_stages(folder / "stages.tsv"),
        labels=read_label_metrics(folder / "labels"),
        scores=read_scores(folder / "results"),
        experiments=read_experiments(folder),
    )
    if not (run.stages or run.labels or run.scores or run.experiments):
        raise FileNotFoundError(
            f"{folder}: holds neither stages.tsv, labels/<iteration>/*.metrics.json, "
            "<experiment>/version_*/events.out.tfevents.* nor results/<model>/results.json. "
            "Give the output folder of quickstart.sh with --run, or wait for its first stage."
        )
    return run


def read_stages(path: Path) -> List[Stage]:
    """Stages in the order in which they first ran; of a name that ran again, the newest line."""
    stages: Dict[str, Stage] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], start=1):
        if not line.strip():
            continue
        try:
            name, seconds, command = line.split("\t", 2)
            stages[name] = Stage(name, float(seconds), command)
        except ValueError as error:
            raise ValueError(
                f"{path}:{number}: expected name, seconds and command line between tabs, found {line[:80]!r}. "
                "Repair or remove this line."
            ) from error
    return list(stages.values())


def read_label_metrics(folder: Path) -> List[LabelMetrics]:
    """Metrics of all iterations, manifests and sets below ``labels/``, in this order."""
    rows = []
    for path in sorted(folder.glob("*/*.metrics.json"), key=_natural_order):
        with _read_json(path, "Repeat scripts/label.py make --metrics_output.") as report:
            name = path.name.removesuffix(".metrics.json")
            for clusters, values in report["sets"].items():
                values["entropy_bits"], values["dead_clusters"]  # all files have these; alignments add the others
                unit = report.get("unit", ABSENT)
                rows.append(LabelMetrics(path.parent.name, name, report["features"], unit, clusters, values))
    return rows


def read_scores(folder: Path) -> Dict[str, Scores]:
    """Scores of each model below ``results/``: those of `MODELS` first, others by name."""
    paths = {path.parent.name: path for path in sorted(folder.glob("*/results.json"), key=_natural_order)}
    scores = {}
    for model in sorted(paths, key=lambda model: list(MODELS).index(model) if model in MODELS else len(MODELS)):
        with _read_json(paths[model], "Repeat scripts/evaluate.py.") as report:
            scores[model] = {
                (manifest, decoder): Score(summary["wer"], summary["cer"], summary["words"]["reference_length"])
                for manifest, by_decoder in report["results"].items()
                for decoder, summary in by_decoder.items()
            }
    return scores


@contextmanager
def _read_json(path: Path, remedy: str):
    try:
        yield json.loads(path.read_text(encoding="utf-8"))
    except KeyError as error:
        raise ValueError(f"{path}: lacks {error}. {remedy}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not the expected JSON ({error}). {remedy}") from error


def _natural_order(path: Path):
    return [
        int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.as_posix())
    ]  # iter10 after iter9


# --- Tables ----------------------------------------------------------------------------------------------------------


def tables(run: Run) -> List[Table]:
    """Error rates, label metrics and times: those that the run has."""
    made = (run.scores and _score_table(run), run.labels and _label_table(run), run.stages and _stage_table(run))
    return [table for table in made if table]


def _score_table(run: Run) -> Table:
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
    return Table("Error rates", header, rows, (0, 1), note if any("/" in row[2] for row in rows) else "")


def _label_table(run: Run) -> Table:
    rows = []
    for label in run.labels:
        values = label.values
        row = [label.iteration, label.manifest, label.clusters]
        row += [_decimals(values.get(key), 3) for key in ("pnmi", "unit_purity", "cluster_purity")]
        row += [_decimals(values["entropy_bits"], 2), str(values["dead_clusters"]), label.unit, label.features]
        rows.append(row)
    header = ["labels", "manifest", "clusters", "PNMI", "unit purity", "cluster purity", "entropy, bits"]
    note = "PNMI and purity are against the unit of the alignments, where the labelling was given some."
    return Table("Labels", [*header, "dead clusters", "unit", "features"], rows, (0, 1, 8, 9), note)


def _stage_table(run: Run) -> Table:
    rows = [[stage.name, f"{stage.seconds:.0f}", _clock(stage.seconds)] for stage in run.stages]
    total = sum(stage.seconds for stage in run.stages)
    return Table("Time", ["stage", "seconds", "h:mm:ss"], [*rows, ["total", f"{total:.0f}", _clock(total)]], (0,))


def _percent(share: Optional[float]) -> str:
    return ABSENT if share is None else f"{100 * share:.2f}"


def _decimals(value: Optional[float], digits: int) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"


def _clock(seconds: float) -> str:
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
        parts[sentence] = model in run.scores
    parts["No stage of quickstart.sh has finished: no stages.tsv, so no times and no command lines."] = run.stages
    return [sentence for sentence, part in parts.items() if not part]


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown_report(run: Run) -> str:
    """The tables for a terminal, and what is missing."""
    parts = [_markdown_table(table) for table in tables(run)]
    return "\n\n".join([*parts, *(f"*{sentence}*" for sentence in missing_parts(run))])


def _markdown_table(table: Table) -> str:
    rule = ["---" if column in table.text_columns else "---:" for column in range(len(table.header))]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (table.header, rule, *table.rows)]
    lines = [f"**{table.title}**", "", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines + (["", table.note] if table.note else []))


# --- HTML ------------------------------------------------------------------------------------------------------------

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff }
body { max-width: 66rem; margin: auto; padding: 1rem }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid #e5e5e5 }
th { background: #f6f6f6; vertical-align: bottom }
td.number, th.number { text-align: right }
.missing { background: #fff6e0; padding: .5rem .8rem; border-left: 4px solid #e0a000 }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)) }
.plots { gap: 1rem; margin: 1rem 0 }
figure { margin: 0 }
img { width: 100%; height: auto }
figcaption, .note { font-size: .85rem; color: #555 }
pre { background: #f6f6f6; padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
"""


def html_report(run: Run) -> str:
    """One HTML page without references to other files or hosts."""
    title = f"Report of {escape(run.name)}"
    head = '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = [f"<h1>{title}</h1>", *(f'<p class="missing">{escape(sentence)}</p>' for sentence in missing_parts(run))]
    body += [_html_table(table) for table in tables(run)]
    body += [_pretraining_html(run), _finetuning_html(run), _stages_html(run)]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n'
        "<body>\n" + "\n".join(part for part in body if part) + "\n</body>\n</html>\n"
    )


def _html_table(table: Table) -> str:
    def row(cells: List[str], tag: str) -> str:
        numbers = ["" if column in table.text_columns else ' class="number"' for column in range(len(cells))]
        made = (f"<{tag}{number}>{escape(cell)}</{tag}>" for number, cell in zip(numbers, cells))
        return f"<tr>{''.join(made)}</tr>"

    rows = "\n".join(row(cells, "td") for cells in table.rows)
    note = f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="scroll">\n<table>\n<thead>{row(table.header, "th")}</thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>{note}"
    )


def _pretraining_html(run: Run) -> str:
    if not run.pretrainings:
        return ""
    parts = [
        "<h2>Pre-training</h2>",
        '<p class="note">Thin lines: single batches of training. Markers: validation.</p>',
    ]
    for experiment in run.pretrainings:
        parts.append(f"<h3>{escape(experiment.name)}</h3>")
        skipped = list(experiment.curve("nonfinite_steps").values())[-1:]
        if skipped and skipped[0]:
            parts.append(f"<p>{skipped[0]:.0f} updates were skipped for gradients that were not finite.</p>")
        parts.append(_plots_html(pretraining_plots(experiment)))
    return "\n".join([*parts, _plots_html([learning_rate_plot(run.pretrainings, "pre-training")])])


def _finetuning_html(run: Run) -> str:
    plots = [wer_plot(run.finetunings), learning_rate_plot(run.finetunings, "fine-tuning")]
    return "\n".join(["<h2>Fine-tuning</h2>", _plots_html(plots)]) if run.finetunings else ""


def _plots_html(plots: List[Optional[Plot]]) -> str:
    figures = []
    for plot in filter(None, plots):
        source = f"data:image/png;base64,{base64.b64encode(plot.png).decode('ascii')}"
        caption = escape(plot.caption)
        image = f'<img alt="{caption}" src="{source}">'
        figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return '<div class="plots">\n' + "\n".join(figures) + "\n</div>" if figures else ""


def _stages_html(run: Run) -> str:
    if not run.stages:
        return ""
    parts = ["<h2>The stages by hand</h2>", "<p>These commands, in this order, made this run.</p>"]
    for number, stage in enumerate(run.stages, start=1):
        parts.append(f"<h3>{number}. {escape(stage.name)} ({_clock(stage.seconds)})</h3>")
        parts.append(f"<pre><code>{escape(stage.command)}</code></pre>")
    return "\n".join(parts)
