"""Lines through the means of runs: the learned scale against noise, accuracy against the size of an embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..style import FORMS, line, ruled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = Mapping[str, Mapping[float, Sequence[float]]]
"""By name, then by place on the axis, a value a run."""


def draw_scales(scales: Series, label: str = "learned scale") -> Figure:
    """The learned scale of runs against the share of shuffled captions: a dot a run, a line through their means.

    Args:
        scales: by name and noise in [0, 1]; times the width of the topology's range, if several are to compare.
        label: what the axis says that they are.

    Raises:
        UserError: without runs.

    Examples:
        >>> from oblique_clip.draw import draw_scales
        >>> figure = draw_scales({"sphere": {0.0: [30.0, 32.0], 0.5: [20.0]}})
        >>> figure.axes[0].lines[-1].get_ydata().tolist()
        [31.0, 20.0]
    """
    figure, axis = _drawn(scales)
    ruled(axis, "share of shuffled captions", label)
    return figure


def draw_sizes(accuracies: Series) -> Figure:
    """Accuracy against how many numbers of an embedding are kept: a dot a run, a line through their means.

    Args:
        accuracies: in [0, 1], by name and number of numbers >= 1.

    Raises:
        UserError: without runs.

    Examples:
        >>> from oblique_clip.draw import draw_sizes
        >>> figure = draw_sizes({"cut": {32: [0.25], 64: [0.5]}, "nested": {32: [0.375], 64: [0.5]}})
        >>> [line.get_ydata().tolist() for line in figure.axes[0].lines[1::2]]
        [[25.0, 50.0], [37.5, 50.0]]
    """
    figure, axis = _drawn({
        name: {size: [100 * value for value in values] for size, values in own.items()}
        for name, own in accuracies.items()
    })  # fmt: skip
    sizes = sorted({size for own in accuracies.values() for size in own})
    ruled(axis, "numbers kept", "top-1 (%)").set_xscale("log")
    axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axis.minorticks_off()
    return figure


def _drawn(series: Series) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    if not any(series.values()):
        raise UserError("there is no run to draw")
    figure = Figure((5, 3.6), layout="constrained")
    axis = figure.subplots()
    for place, (name, own) in enumerate(series.items()):
        style: Mapping[str, Any] = FORMS.get(name, line(place))
        dots = [(x, value) for x, values in own.items() for value in values]
        axis.plot(*zip(*dots, strict=True), style["marker"], color=style["color"], alpha=0.5, markersize=4)
        axis.plot(list(own), [float(np.mean(values)) for values in own.values()], label=name, **{**style, "marker": ""})
    axis.legend(fontsize=8)
    return figure, axis
