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

"""Learning curves of experiments, drawn as PNG images."""

import io
from dataclasses import dataclass
from functools import partial
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from nemo_mshubert.analysis.experiments import Curve, Experiment

MASKED, UNMASKED = "#0072b2", "#d55e00"  # Okabe and Ito: distinct for colour-blind readers and in grey
MAX_WER_PERCENT = 110  # with insertions, the first validations reach 300 % and would flatten the rest
VALIDATED = {"marker": "o", "markersize": 4}


@dataclass
class Plot:
    """A drawn figure with the caption to set below it."""

    caption: str
    png: bytes


def pretraining_plots(experiment: Experiment) -> List[Plot]:
    """Accuracy and loss of each label set: thin lines for training batches, markers for validations."""
    plots = []
    for clusters in experiment.label_sets:
        title = f"{experiment.name}, {clusters} clusters"
        plots.append(_accuracy_plot(experiment, clusters, title))
        plots.append(_loss_plot(experiment, clusters, title))
    plots += [_views_plot(experiment), _codes_plot(experiment)]
    return [plot for plot in plots if plot]


def comparison_plots(experiments: Sequence[Experiment]) -> List[Plot]:
    """Validations of several pre-trainings: one plot per label set and metric, one colour per group of seeds."""
    plots, groups = [], list(dict.fromkeys(experiment.group for experiment in experiments))
    for clusters in sorted({clusters for e in experiments for clusters in e.label_sets}, reverse=True):
        for metric, scale, unit in (("masked_accuracy", 100, "masked accuracy, %"), ("loss", 1, "loss")):
            curves = [(e.group, e.curve(f"val_{clusters}/{metric}", scale)) for e in experiments]
            curves = [(group, curve) for group, curve in curves if curve]
            if curves:
                plots.append(
                    _plot(partial(_draw_groups, curves, groups), _groups_caption(clusters, unit, curves), unit)
                )
    return plots


def _draw_groups(curves: Sequence[Tuple[str, Curve]], groups: Sequence[str], axes: Axes) -> None:
    for number, (group, curve) in enumerate(curves):
        first = group not in [earlier for earlier, _ in curves[:number]]
        style = {"color": f"C{groups.index(group)}", "marker": "o", "markersize": 3, "linewidth": 1}
        _draw_curve(axes, curve, group if first else None, **style)


def _groups_caption(clusters: int, unit: str, curves: Sequence[Tuple[str, Curve]]) -> str:
    last: Dict[str, List[float]] = {}
    for group, curve in curves:
        last.setdefault(group, []).append(curve[max(curve)])
    values = (f"{group} {np.mean(of_group):.3g} ({len(of_group)} runs)" for group, of_group in last.items())
    return f"{clusters} clusters: {unit}. Last validations, mean: {', '.join(values)}."


def _views_plot(experiment: Experiment) -> Optional[Plot]:
    """Do the two views of Swap become more similar during training?"""
    tags = [tag for tag in experiment.scalars if tag.startswith("val_views/masked_cosine_")]
    layers = sorted(int(tag.rsplit("_", 1)[1]) for tag in tags)
    curves = {f"block {layer}": experiment.curve(f"val_views/masked_cosine_{layer}") for layer in layers}
    return _validation_plot(curves, f"{experiment.name}: cosine of the two views at masked frames", "cosine")


def _codes_plot(experiment: Experiment) -> Optional[Plot]:
    """Clusters that are predicted at least once, as a share of the set: a collapse shows here first."""
    curves = {f"{k}": experiment.curve(f"val_{k}/predicted_codes", 100 / k) for k in experiment.label_sets}
    return _validation_plot(curves, f"{experiment.name}: clusters predicted at masked frames", "% of the set")


def _validation_plot(curves: Dict[str, Curve], title: str, ylabel: str) -> Optional[Plot]:
    """Validations, one curve per name."""
    curves = {name: curve for name, curve in curves.items() if curve}

    def draw(axes: Axes) -> None:
        for name, curve in curves.items():
            _draw_curve(axes, curve, name, **VALIDATED)

    values = [f"{name} {_last(curve, '{:.3g}')}" for name, curve in curves.items()]
    return _plot(draw, f"{title}. {_last_validation(values)}", ylabel) if curves else None


def _accuracy_plot(experiment: Experiment, clusters: int, title: str) -> Optional[Plot]:
    curves = {
        f"{split} {kind}": experiment.curve(f"{split}_{clusters}/{kind}_accuracy", 100)
        for split in ("train", "val")
        for kind in ("masked", "unmasked")
    }

    def draw(axes: Axes) -> None:
        for name, curve in curves.items():
            _draw_split(axes, curve, name, UNMASKED if "unmasked" in name else MASKED)
        axes.set_ylim(bottom=0)

    last = [_last(curves[f"val {kind}"], f"{kind} {{:.2f}} %") for kind in ("masked", "unmasked")]
    caption = f"{title}: accuracy. {_last_validation(last)}"
    return _plot(draw, caption, "accuracy, %") if any(curves.values()) else None


def _loss_plot(experiment: Experiment, clusters: int, title: str) -> Optional[Plot]:
    curves = {split: experiment.curve(f"{split}_{clusters}/loss") for split in ("train", "val")}

    def draw(axes: Axes) -> None:
        for split, curve in curves.items():
            _draw_split(axes, curve, split, MASKED)

    caption = f"{title}: loss. {_last_validation([_last(curves['val'], '{:.3f}')])}"
    return _plot(draw, caption, "loss") if any(curves.values()) else None


def _draw_split(axes: Axes, curve: Curve, name: str, color: str) -> None:
    thin = {"linewidth": 0.8, "alpha": 0.55, "marker": ".", "markersize": 2}
    _draw_curve(axes, curve, name, color=color, **(thin if name.startswith("train") else VALIDATED))


def _draw_curve(axes: Axes, curve: Curve, label: Optional[str], **style) -> None:
    if curve:
        axes.plot(list(curve), list(curve.values()), label=label, **style)


def wer_plot(experiments: Iterable[Experiment]) -> Optional[Plot]:
    """Validation WER of all fine-tunings in one plot, or CER if ``model.use_cer`` was set."""
    curves = {}
    for experiment in experiments:
        name = f"{experiment.name} (CER)" if experiment.settings.get("cfg.use_cer") else experiment.name
        curves[name] = experiment.curve("val_wer", 100)
    curves = {name: curve for name, curve in curves.items() if curve}
    if not curves:
        return None
    last = max(list(curve.values())[-1] for curve in curves.values())
    highest = max(max(curve.values()) for curve in curves.values())
    top = max(MAX_WER_PERCENT, 1.1 * last)

    def draw(axes: Axes) -> None:
        for name, curve in curves.items():
            _draw_curve(axes, curve, name, **VALIDATED)
        axes.set_ylim(0, min(top, 1.05 * highest) or 1)

    beyond = f" The axis ends at {top:.0f} %; the highest value is {highest:.0f} %." if highest > top else ""
    last_values = [f"{name} {_last(curve, '{:.2f} %')}" for name, curve in curves.items()]
    return _plot(draw, f"Word error rate. {_last_validation(last_values)}{beyond}", "error rate, %")


def learning_rate_plot(experiments: Iterable[Experiment], kind: str) -> Optional[Plot]:
    """Learning rates of all experiments of a kind ("pre-training", "fine-tuning")."""
    curves = {experiment.name: experiment.curve("learning_rate") for experiment in experiments}

    def draw(axes: Axes) -> None:
        for name, curve in curves.items():
            _draw_curve(axes, curve, name)
        axes.set_ylim(bottom=0)

    return _plot(draw, f"Learning rate of {kind}.", "learning rate") if any(curves.values()) else None


def _last(curve: Curve, template: str) -> str:
    return f"{template.format(curve[max(curve)])} at step {max(curve)}" if curve else ""


def _last_validation(values: Iterable[str]) -> str:
    values = ", ".join(value for value in values if value)
    return f"Last validation: {values}." if values else "Not validated yet."


def _plot(draw: Callable[[Axes], None], caption: str, ylabel: str) -> Plot:
    figure = Figure(figsize=(5, 3), layout="constrained")  # inches; the 10 point letters stay readable on a phone
    axes = figure.add_subplot()
    draw(axes)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return Plot(caption, png_of(figure))


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG with 64 colours. It has a third of the bytes, which matters on a page of fifty plots."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=160)
    Image.open(full).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()
