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

"""The captions of a report are in test_report.py; here are the lines that its plots draw."""

import pytest

from nemo_mshubert.analysis import curves
from nemo_mshubert.analysis.experiments import Experiment

pytestmark = pytest.mark.unit


@pytest.fixture
def drawn(monkeypatch):
    """The axes of all plots, in the order in which they are made."""
    axes = []
    monkeypatch.setattr(curves, "png_of", lambda figure: axes.append(*figure.axes) or b"")
    return axes


def lines(axes):
    """``[(label, {step: value})]``; matplotlib's own names of lines without a label begin with an underscore. Labels
    are seen in the legend alone."""
    assert axes.get_legend() is not None
    found = [(line.get_label(), dict(zip(*map(list, line.get_data())))) for line in axes.lines]
    return [(None if label.startswith("_") else label, pytest.approx(curve)) for label, curve in found]


def test_plots_of_a_pretraining_draw_its_curves(drawn):
    """A page of empty axes, or of training where the label says validation, would look like a run without learning."""
    scalars = {
        "train_50/masked_accuracy": {9: 0.1, 19: 0.2},
        "val_50/masked_accuracy": {19: 0.25},
        "val_50/unmasked_accuracy": {19: 0.5},
        "train_50/loss": {9: 4.0},
        "val_50/loss": {19: 3.0},
        "val_50/predicted_codes": {19: 10.0},
        "val_views/masked_cosine_12": {19: 0.75},
        "val_views/masked_cosine_4": {19: 0.5},
    }
    curves.pretraining_plots(Experiment("ours", scalars))
    accuracy, loss, views, codes = drawn
    assert lines(accuracy) == [
        ("train masked", {9: 10, 19: 20}),
        ("val masked", {19: 25}),
        ("val unmasked", {19: 50}),
    ]
    colors = [line.get_color() for line in accuracy.lines]
    assert colors == [curves.MASKED, curves.MASKED, curves.UNMASKED] and accuracy.get_ylim()[0] == 0
    assert [line.get_marker() for line in accuracy.lines] == [
        ".",
        "o",
        "o",
    ]
    assert lines(loss) == [("train", {9: 4.0}), ("val", {19: 3.0})]
    assert lines(views) == [("block 4", {19: 0.5}), ("block 12", {19: 0.75})]
    assert lines(codes) == [("50", {19: 20})]  # percent of the set
    assert [axes.get_ylabel() for axes in drawn] == ["accuracy, %", "loss", "cosine", "% of the set"]


def test_a_pretraining_without_swap_or_validations_has_fewer_plots(drawn):
    """HuBERT has one view, and a run that has just begun no validations: their reports would end in an error."""
    hubert = {"train_50/loss": {9: 4.0}, "val_50/loss": {19: 3.0}, "val_50/predicted_codes": {19: 10.0}}
    plots = curves.pretraining_plots(Experiment("hubert", hubert))
    assert [plot.caption.split(":")[1].split(".")[0] for plot in plots] == [
        " loss",
        " clusters predicted at masked frames",
    ]
    (begun,) = curves.pretraining_plots(Experiment("begun", {"train_50/loss": {9: 4.0}}))
    assert begun.caption == "begun, 50 clusters: loss. Not validated yet."


def test_the_finest_set_comes_first(drawn):
    """It is the one that a run is judged by; the scalars come in the order of their names."""
    scalars = {f"val_{clusters}/loss": {9: 4.0} for clusters in (100, 50, 500)}
    plots = curves.pretraining_plots(Experiment("ours", scalars))
    assert [plot.caption.split(" clusters")[0] for plot in plots] == ["ours, 500", "ours, 100", "ours, 50"]


def test_what_is_not_finite_is_not_drawn(drawn):
    """Matplotlib has no axis to infinity, and the report of a run that failed would end in an error."""
    curve = {9: float("inf"), 19: 0.5, 29: float("nan")}
    plot = curves.wer_plot([Experiment("ours", {"val_wer": curve})])
    assert lines(drawn[0]) == [("ours", {19: 50})] and "50.00 % at step 19" in plot.caption


def test_seeds_of_one_configuration_share_a_colour_and_a_label(drawn):
    """Else nine curves of three configurations are nine colours, or one colour is two configurations."""
    runs = {"ours_seed1": 3.0, "ours_seed2": 5.0, "plain": 6.0}
    curves.comparison_plots([Experiment(name, {"val_50/loss": {9: loss}}) for name, loss in runs.items()])
    (axes,) = drawn
    assert lines(axes) == [("ours", {9: 3.0}), (None, {9: 5.0}), ("plain", {9: 6.0})]
    first, second, other = (line.get_color() for line in axes.lines)
    assert first == second != other


@pytest.mark.parametrize(
    "rates, top",
    [
        ([3.0, 0.5], 110),  # insertions of a first validation
        ([3.0, 2.0], 220),  # a run that is this bad to its end is seen whole
        ([0.5, 0.4], 52.5),
        ([0.4, 0.6, 0.5], 63),
        ([0.0, 0.0], 1),
    ],
)
def test_axis_of_error_rates_shows_where_each_curve_ends(drawn, rates, top):
    """Else the first validation of 300 % flattens the rest, or a run that ends above the axis is not on it."""
    curve = dict(zip((9, 19, 29), rates))
    curves.wer_plot([Experiment("finetune", {"val_wer": curve})])
    (axes,) = drawn
    assert lines(axes) == [("finetune", {step: 100 * rate for step, rate in curve.items()})]
    assert axes.get_ylim() == pytest.approx((0, top))


def test_the_axis_of_error_rates_ends_above_the_worst_run(drawn):
    """The baseline from scratch ends at 200 %: where it is above the axis, it is not seen to fail."""
    rates = {"pretrained": [3.0, 0.3], "scratch": [4.0, 2.0]}
    curves.wer_plot([Experiment(name, {"val_wer": dict(enumerate(both))}) for name, both in rates.items()])
    assert drawn[0].get_ylim() == pytest.approx((0, 220))


def test_comparisons_begin_with_the_finest_set_and_show_accuracy_in_percent(drawn):
    """The finest set is what the models are compared by; 0.4 on an axis in percent would be next to nothing."""
    names = [f"val_{clusters}/{metric}" for clusters in (50, 500) for metric in ("loss", "masked_accuracy")]
    plots = curves.comparison_plots([Experiment("ours", {name: {9: 0.4} for name in names})])
    assert [plot.caption.split(":")[0] for plot in plots] == ["500 clusters"] * 2 + ["50 clusters"] * 2
    assert [lines(axes) for axes in drawn] == [[("ours", {9: 40})], [("ours", {9: 0.4})]] * 2
    assert [axes.get_ylabel() for axes in drawn] == ["masked accuracy, %", "loss"] * 2


def test_error_rates_of_characters_say_so(drawn):
    """``model.use_cer=true``: NeMo logs the CER as val_wer, a fifth of a WER."""
    runs = [Experiment(name, {"val_wer": {9: 0.1}}, {"cfg.use_cer": name == "kana"}) for name in ("kana", "latin")]
    plot = curves.wer_plot(runs)
    assert [name for name, _ in lines(drawn[0])] == ["kana (CER)", "latin"]
    assert "kana (CER) 10.00 % at step 9, latin 10.00 %" in plot.caption


def test_learning_rates_are_drawn_by_experiment(drawn):
    """Which of two runs had which rate."""
    rates = {"a": {0: 1e-3, 9: 2e-3}, "b": {0: 5e-4}}
    curves.learning_rate_plot([Experiment(name, {"learning_rate": rate}) for name, rate in rates.items()], "training")
    assert lines(drawn[0]) == list(rates.items()) and drawn[0].get_ylim()[0] == 0
