"""Persistence diagrams and Betti curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..explore import Persistence, betti_curve
from ..style import line, ruled
from ..topology import parse_topology

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOLES = ("clusters", "loops", "voids")


def draw_persistence(found: Mapping[str, Persistence]) -> Figure:
    """Two panels a point set: where each hole is born and dies, and how many there are at each scale (Betti curves).

    A hole far above the diagonal is one of the whole set; one within the grey band, as wide as the sampling error, may
    be of the landmarks alone. Triangles at the top never die.

    Args:
        found: for each title what `explore.persistence` gives.

    Raises:
        UserError: without point sets.

    Examples:
        >>> import math
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.draw import draw_persistence
        >>> from oblique_clip.explore import persistence
        >>> angles = torch.arange(40) * (2 * math.pi / 40)
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)[:, None]
        >>> figure = draw_persistence({"circle": persistence(circle, parse_topology("sphere(2)"))})
        >>> [axis.get_title() for axis in figure.axes]
        ['circle', '']
    """
    from matplotlib.figure import Figure

    if not found:
        raise UserError("name at least one set of points")
    figure = Figure((3.3 * len(found), 6.2), layout="constrained")
    columns = figure.subplots(2, len(found), squeeze=False).T
    for (diagrams, curves), (title, one) in zip(columns, found.items(), strict=True):
        deaths = np.concatenate([bars[:, 1] for bars in one.diagrams])
        end = 1.08 * float(deaths[np.isfinite(deaths)].max(initial=1e-9))
        _draw_diagram(diagrams, one, end)
        diagrams.set_title(title)
        scales = np.linspace(0, end, 300)
        for place, bars in enumerate(one.diagrams):
            curves.plot(scales, betti_curve(bars, scales), label=HOLES[place], **{**line(place), "marker": ""})
        ruled(curves, f"scale ({_unit(one)})", "holes").set_yscale("symlog", linthresh=10)
    # Sets may be looked at up to different dimensions: the panel with the most names them all.
    widest = max(columns[:, 0], key=lambda axis: len(axis.get_legend_handles_labels()[1]))
    widest.legend(fontsize=8, loc="lower right")
    return figure


def _draw_diagram(axis: Axes, one: Persistence, end: float) -> None:
    axis.plot([0, end], [0, end], color="#999999", linewidth=1)
    axis.fill_between([0, end], [0, end], [one.error, end + one.error], color="#cccccc", alpha=0.4, linewidth=0)
    for place, bars in enumerate(one.diagrams):
        own = line(place)
        lasting = np.isinf(bars[:, 1])
        style: dict[str, Any] = {"color": own["color"], "alpha": 0.7, "linewidths": 0}
        axis.scatter(bars[~lasting, 0], bars[~lasting, 1], s=14, marker=own["marker"], label=HOLES[place], **style)
        axis.scatter(bars[lasting, 0], np.full(lasting.sum(), end), s=40, marker="^", **style)
    unit = _unit(one)
    ruled(axis, f"birth ({unit})", f"death ({unit})").set(xlim=(-0.02 * end, end), ylim=(-0.02 * end, 1.04 * end))


def _unit(one: Persistence) -> str:
    """Of births and deaths, in words."""
    return f"{parse_topology(one.metric).distance} distance" if one.unit == 1 else "median distances"
