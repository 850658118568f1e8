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

"""The axes that all plots over the layers of an encoder share."""

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator


def draw_layer_axis(axes: Axes, from_zero: bool = False) -> None:
    """Draw layers along the abscissa. ``from_zero``: the ordinate begins at 0, so that small differences look small.
    It ends above the curves, since a flat curve would lie on the upper edge, which cuts off half of each marker."""
    axes.set_xlabel("layer (0: input of the transformer)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if from_zero:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
