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

"""Word-CCA of several models, layer by layer, as in the paper's Figure 2 (section 4.2).

    <output>/features/<encoder>-<sample>.npz             pooled hidden states, one array per layer
    <output>/scores/<encoder>-<sample>-<settings>.json   scores of a model
    <output>/cca.json, cca.csv, cca.png                  all models of the call, rewritten after each
    <output>/summary.md                                  mean and spread of the runs of each name, written at the end

Existing files of ``features`` and ``scores`` are reused. So an interrupted call continues with the model that it was
working on, and a call with one more model computes only that one. ``features`` may be deleted when all is done.
"""

import csv
import json
import logging
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
from scipy.integrate import trapezoid

from nemo_mshubert.analysis.cca import CcaSettings, check_counts, score_views
from nemo_mshubert.analysis.hidden_states import AllHiddenStates, load_hidden_states
from nemo_mshubert.analysis.word_segments import Sample, pool_instances
from nemo_mshubert.data.digest import short_digest
from nemo_mshubert.markdown import markdown_table
from nemo_mshubert.whole_files import PathLike, atomic_write, make_folder, write_json

logger = logging.getLogger(__name__)

Run = Dict[str, Any]  # a model's part of cca.json
METHOD_VERSION = 1  # raise it when the same settings no longer give the same scores
AUC_MEANING = {
    "auc": "area under the scores of layers 0 (input of the transformer) to L, trapezoid rule, one unit per layer",
    "auc_blocks": "the same over layers 1 to L",
    "auc_normalized": "auc / L: the mean height of the curve",
}


def analyze_models(
    models: Sequence[Tuple[str, PathLike]],
    sample: Sample,
    output: PathLike,
    settings: CcaSettings = CcaSettings(),
    load: Callable[[PathLike], AllHiddenStates] = load_hidden_states,
) -> List[Run]:
    """Score every layer of every ``(name, .nemo)``; results and plot are rewritten after each model.

    Several files of one name are runs (seeds) of one model; the plot shows their mean and range.

    Raises:
        FileNotFoundError, ValueError: see `load_hidden_states`, `pool_instances`, `score_views`; or files of one name
            differ in depth.
    """
    output = Path(output)
    make_folder(output)  # first: if it cannot be made, no pass over the audio is wasted
    runs: List[Run] = []
    depths: Dict[str, int] = {}
    for name, path in models:
        logger.info("%s: %s", name, path)
        features = load(path)
        if depths.setdefault(name, features.num_states) != features.num_states:  # before hours of scoring
            raise ValueError(
                f"{path}: {features.num_states - 1} layers, where another file of {name} has {depths[name] - 1}. Give "
                "models of other depths other names."
            )
        runs.append({"name": name, "file": str(path), **score_model(features, sample, output, settings, str(path))})
        write_results(runs, sample, settings, output)
    with atomic_write(output / "summary.md") as stream:
        stream.write(summary_table(runs) + "\n")
    return runs


def score_model(features: AllHiddenStates, sample: Sample, output: Path, settings: CcaSettings, where: str) -> Run:
    """Layers and areas of one model, taken from the files of an earlier call if there are any."""
    key = f"{features.fingerprint}{features.scaling}-{sample.id}"
    method = short_digest({"version": METHOD_VERSION, **asdict(settings)})
    path = output / "scores" / f"{key}-{method}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    try:
        check_counts(len(sample.unit), features.width, len(np.unique(sample.unit)), settings)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    pooled = output / "features" / f"{key}.npz"
    if not pooled.is_file():
        write_pooled(pooled, pool_instances(sample, features))
    layers = []
    for layer in range(features.num_states):
        layers.append(_score_layer(read_pooled(pooled, layer), sample, settings, layer, where))
        logger.info("layer %2d: %.4f", layer, layers[-1]["score"])
    run = {"encoder": features.fingerprint, **areas([row["score"] for row in layers]), "layers": layers}
    write_json(path, run)
    return run


def _score_layer(pooled: np.ndarray, sample: Sample, settings: CcaSettings, layer: int, where: str) -> Dict[str, Any]:
    try:
        trials = score_views(pooled, sample.unit, settings)
    except ValueError as error:
        raise ValueError(f"{where}: layer {layer}: {error}") from error
    scores = [trial.score for trial in trials]
    return {
        "layer": layer,
        "score": float(np.mean(scores)),
        "std": float(np.std(scores)),
        "trials": [trial._asdict() for trial in trials],
    }


def write_pooled(path: Path, pooled: np.ndarray) -> None:
    """Write pooled hidden states, one float32 array ``[N, D]`` per layer, so that one layer can be read at a time."""
    with atomic_write(path, "wb") as stream:
        np.savez(stream, **{f"layer_{number}": states for number, states in enumerate(pooled)})


def read_pooled(path: Path, layer: int) -> np.ndarray:
    """One layer ``[N, D]`` of a file of `write_pooled`; raises ``ValueError`` if the file is damaged."""
    try:
        with np.load(path) as arrays:
            return arrays[f"layer_{layer}"]
    except (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged ({error}). Delete it; the next call makes it again.") from error


def areas(scores: Sequence[float]) -> Dict[str, float]:
    """Areas under the curve of layers 0 to L; see `AUC_MEANING`."""
    area = float(trapezoid(scores))
    return {
        "auc": area,
        "auc_blocks": float(trapezoid(scores[1:])),
        "auc_normalized": area / (len(scores) - 1),
    }


# --- Results ---------------------------------------------------------------------------------------------------------


def write_results(runs: Sequence[Run], sample: Sample, settings: CcaSettings, output: Path) -> None:
    """Write ``cca.json``, ``cca.csv`` and ``cca.png``."""
    report = {
        "sample": sample.summary(),
        "settings": asdict(settings),
        "score": "PWCCA on held-out samples, mean of the trials",
        "areas": AUC_MEANING,
        "models": list(runs),
    }
    write_json(output / "cca.json", report)
    with atomic_write(output / "cca.csv") as stream:
        write_csv(runs, stream)
    with atomic_write(output / "cca.png", "wb") as stream:
        plot_curves(runs, f"PWCCA with {sample.kind} identity").savefig(stream, format="png", dpi=200)


def write_csv(runs: Sequence[Run], stream) -> None:
    """Write one line per model and layer: score, its standard deviation over trials, and the score of each trial."""
    num_trials = max(len(run["layers"][0]["trials"]) for run in runs)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["name", "file", "layer", "score", "std", *(f"trial_{n}" for n in range(1, num_trials + 1))])
    for run in runs:
        for row in run["layers"]:
            scores = [row["score"], row["std"], *(trial["score"] for trial in row["trials"])]
            writer.writerow([run["name"], run["file"], row["layer"], *(f"{score:.6f}" for score in scores)])


def plot_curves(runs: Sequence[Run], ylabel: str):
    """The curves of all models over the layers, a `matplotlib.figure.Figure`, as in the paper's Figure 2."""
    from matplotlib.figure import Figure  # takes a second to import; without pyplot it needs no display

    from nemo_mshubert.analysis.layer_axis import draw_layer_axis

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for (name, group), marker in zip(group_runs(runs).items(), "osD^vPX*<>" * len(runs)):
        scores = np.array([[row["score"] for row in run["layers"]] for run in group])  # [runs, L + 1]
        label = f"{name} (AUC {np.mean([run['auc'] for run in group]):.2f})"
        (line,) = axes.plot(scores.mean(axis=0), marker=marker, markersize=4, label=label)
        if len(group) > 1:
            layers, lowest, highest = range(scores.shape[1]), scores.min(axis=0), scores.max(axis=0)
            axes.fill_between(layers, lowest, highest, color=line.get_color(), alpha=0.2)
    axes.set_ylabel(ylabel)
    draw_layer_axis(axes, from_zero=axes.dataLim.ymin > 0)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9)  # a legend inside would hide curves
    return figure


def group_runs(runs: Sequence[Run]) -> Dict[str, List[Run]]:
    """Runs by name, in order of appearance."""
    groups: Dict[str, List[Run]] = {}
    for run in runs:
        groups.setdefault(run["name"], []).append(run)
    return groups


def summary_rows(runs: Sequence[Run]) -> List[List[str]]:
    """A header and one row per name: the mean over its runs of every layer's score and of the AUC, ± the standard
    deviation.

    The deviation is over the runs (seeds), with n - 1; a single run has none.
    """
    groups = group_runs(runs)
    depth = max(len(group[0]["layers"]) for group in groups.values())
    rows = [["model", "runs", *(f"layer {layer}" for layer in range(depth)), "AUC"]]
    for name, group in groups.items():
        scores = np.array([[row["score"] for row in run["layers"]] + [run["auc"]] for run in group])  # [runs, L + 2]
        cells = [f"{mean:.3f}" for mean in scores.mean(axis=0)]
        if len(group) > 1:
            cells = [f"{cell} ± {spread:.3f}" for cell, spread in zip(cells, scores.std(axis=0, ddof=1))]
        rows.append([name, str(len(group)), *cells[:-1], *[""] * (depth + 1 - len(cells)), cells[-1]])
    return rows


def summary_table(runs: Sequence[Run]) -> str:
    """`summary_rows` as Markdown."""
    header, *rows = summary_rows(runs)
    return markdown_table(header, rows, text_columns=[0])


def results_table(runs: Sequence[Run]) -> str:
    """Lines of text: for every model, the score of every layer, the best layer and the areas."""
    lines = []
    for run in runs:
        scores = [row["score"] for row in run["layers"]]
        lines.append(f"{run['name']} ({run['file']})")
        lines.append("  " + " ".join(f"{score:.3f}" for score in scores))
        last = len(scores) - 1
        lines.append(
            f"  best layer {int(np.argmax(scores))}; AUC over layers 0-{last}: {run['auc']:.3f}, over 1-{last}: "
            f"{run['auc_blocks']:.3f}, mean height {run['auc_normalized']:.3f}"
        )
    return "\n".join(lines)
