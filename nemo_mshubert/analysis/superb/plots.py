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

"""Plots of probes, in a module of their own, since the training code takes seconds to import."""

from typing import Any, Dict, Sequence


def plot_layer_weights(results: Sequence[Dict[str, Any]]):
    """A `matplotlib.figure.Figure` of the learned layer weights, one curve per model."""
    from matplotlib.figure import Figure

    from nemo_mshubert.analysis.layer_axis import draw_layer_axis

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for result in results:
        label = f"{result['name']}, {result['task'].upper()}"
        axes.plot(result["layer_weights"], marker="o", markersize=4, label=label)
    axes.set_ylabel("weight")
    draw_layer_axis(axes, from_zero=True)
    axes.legend(frameon=False, fontsize=8)
    return figure
