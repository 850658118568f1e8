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

"""Results of a run's analyses: reads their JSON files below a folder, and makes tables and plots for the report."""

import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

from nemo_mshubert.analysis.cca_report import plot_curves, summary_rows
from nemo_mshubert.analysis.curves import Plot, png_of
from nemo_mshubert.analysis.diagnostics import plot_diagnoses, prediction_table
from nemo_mshubert.analysis.superb.plots import plot_layer_weights
from nemo_mshubert.markdown import Table

ABSENT = "–"
Findings = Dict[str, List[Tuple[str, Dict[str, Any]]]]  # kind (key of `FILES`) -> folder and content of each file


class Section(NamedTuple):
    """A section of the report."""

    title: str
    tables: List[Table]
    plots: List[Plot]


FILES = {  # kind: pattern of its file names, and a key that each file has
    "cca": ("cca.json", "areas"),
    "superb": ("superb.json", "sweep"),
    "diagnostics": ("diagnostics.json", "models"),
    "benchmarks": ("benchmark*.json", "benchmark"),
}


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_findings(folder: Path) -> Findings:
    """Read results of analyze_cca.py, superb.py, diagnose.py, and of benchmark.py if named benchmark*.json.

    Raises:
        ValueError: a file of such a name is damaged; the message names it.
    """
    findings: Findings = {}
    for kind, (pattern, key) in FILES.items():
        for path in sorted(folder.rglob(pattern)):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                is_ours = content.get(key) is not None
            except (ValueError, AttributeError) as error:
                raise ValueError(
                    f"{path}: not the expected JSON ({error}). Repeat the command that made it."
                ) from error
            if is_ours:
                findings.setdefault(kind, []).append((path.parent.relative_to(folder).as_posix(), content))
    return findings


# --- Sections --------------------------------------------------------------------------------------------------------


def sections(findings: Findings) -> List[Section]:
    """One section per kind of analysis that was found."""
    makers = {
        "cca": _cca_section,
        "superb": _superb_section,
        "diagnostics": _diagnostics_section,
        "benchmarks": _benchmark_section,
    }
    return [make(findings[kind]) for kind, make in makers.items() if kind in findings]


def _cca_section(found) -> Section:
    tables, plots = [], []
    for folder, results in found:
        units = results["sample"]["units"]
        header, *rows = summary_rows(results["models"])
        note = (
            f"Held-out PWCCA of pooled {units} and their identity: {results['sample']['instances']} instances of "
            f"{len(results['sample']['instances_per_unit'])} {units}. Of several runs, mean ± standard deviation. "
            f"AUC: {results['areas']['auc']}."
        )
        tables.append(Table(f"CCA with {units} ({folder})", header, rows, (0,), note))
        figure = plot_curves(results["models"], f"PWCCA with {units}")
        plots.append(Plot(f"CCA with {units} by layer ({folder}); bands are the range of the runs.", png_of(figure)))
    return Section("What the layers know", tables, plots)


def _superb_section(found) -> Section:
    rows = []
    for _, results in found:
        best = results["best"]
        for name, test in results["tests"].items():
            sweep = ", ".join(_sweep_entry(line) for line in results["sweep"])
            row = [results["name"], results["task"].upper(), name, f"{100 * test['rate']:.2f}"]
            rows.append([*row, f"{best['learning_rate']:g}", f"{100 * best['dev_error']:.2f}", sweep])
    header = ["model", "task", "test set", "error %", "learning rate", "dev %", "sweep: dev % by learning rate"]
    note = "Frozen encoder, softmax-weighted sum of all layers. ASR: word errors; PR: phone errors; greedy decoding."
    table = Table("SUPERB probes", header, rows, (0, 1, 2, 6), note)
    plots = []
    for task in dict.fromkeys(results["task"] for _, results in found):
        figure = plot_layer_weights([results for _, results in found if results["task"] == task])
        plots.append(Plot(f"Learned weights of the layers, {task.upper()}.", png_of(figure)))
    return Section("SUPERB", [table], plots)


def _sweep_entry(line: Dict[str, Any]) -> str:
    error = "diverged" if line["dev_error"] is None else f"{100 * line['dev_error']:.2f}"
    return f"{line['learning_rate']:g}: {error}"


def _diagnostics_section(found) -> Section:
    tables, plots = [], []
    for folder, results in found:
        tables.append(prediction_table(results["models"], f"Predictions ({folder})"))
        caption = "Above: cosine of the masked and the clean view of a frame; exchanged: with Swap, as trained."
        if any("pnmi" in model for model in results["models"]):
            caption += " Below: agreement of k-means clusters of each layer with phones, on held-out frames."
            caption += " Dotted there: what clusters that know nothing of phones reach on as many frames."
        plots.append(Plot(f"{folder}. {caption}", png_of(plot_diagnoses(results["models"]))))
    return Section("Diagnostics", tables, plots)


def _benchmark_section(found) -> Section:
    tables = []
    for folder, results in found:
        keys = list(dict.fromkeys(key for row in results["rows"] for key in row))
        rows = [[_value(row.get(key)) for key in keys] for row in results["rows"]]
        texts = tuple(n for n, key in enumerate(keys) if any(isinstance(row.get(key), str) for row in results["rows"]))
        machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
        tables.append(Table(f"Speed: {results['benchmark']} ({folder})", keys, rows, texts, machine))
    return Section("Benchmarks", tables, [])


def _value(value: Any) -> str:
    if value is None:
        return ABSENT
    return f"{value:.4g}" if isinstance(value, float) else str(value)
