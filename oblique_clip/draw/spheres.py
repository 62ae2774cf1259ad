"""Every sphere of a product drawn whole: circles where n = 2, globes where n = 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from ..explore import exact
from ..explore.extra import load_extra
from ..explore.points import Points, one_sphere
from ..style import NAMES, PICTURES
from ..topology import Topology

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]
COLUMNS = 4
LINES = 13
"""Meridians and parallels of a globe, each."""
KINDS = (("pictures", PICTURES, "o"), ("names", NAMES, "^"))


def draw_circles(image_points: Points, text_points: Points, topology: Topology) -> Figure:
    """Ob(2, m): a circle a sphere, and where m is 2 or more the first two as a torus cut open.

    On the square of angles opposite edges are one: what leaves at the right comes in at the left.

    Args:
        image_points: (N, m, 2).
        text_points: (K, m, 2).

    Raises:
        UserError: for a topology that is no product of circles.

    Examples:
        >>> import math
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.draw import draw_circles
        >>> topology = parse_topology("oblique(2,2)")
        >>> points = topology.project(torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(0)))
        >>> figure = draw_circles(points, points, topology)
        >>> [axis.get_title() for axis in figure.axes]
        ['sphere 1', 'sphere 2', 'spheres 1 and 2: a torus']
    """
    from matplotlib.figure import Figure

    both = _whole(image_points, text_points, topology, 2)
    torus = topology.m > 1
    figure, axes = _grid(topology.m + torus, Figure)
    angles = np.linspace(0, 2 * math.pi, 200)
    for sphere, axis in enumerate(axes[: topology.m]):
        axis.plot(np.cos(angles), np.sin(angles), color="#bbbbbb", linewidth=1)
        for points, (label, colour, marker) in zip(both, KINDS, strict=True):
            # Pictures on the circle and names just within, as both would hide each other.
            own = points[:, sphere] * (1.0 if label == "pictures" else 0.9)
            axis.scatter(own[:, 0], own[:, 1], s=9, color=colour, marker=marker, alpha=0.5, linewidths=0, label=label)
        axis.set(title=f"sphere {sphere + 1}", aspect="equal", xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
        axis.axis("off")
    if torus:
        axis = axes[topology.m]
        for points, (label, colour, marker) in zip(both, KINDS, strict=True):
            turned = np.degrees(np.arctan2(points[:, :2, 1], points[:, :2, 0]))
            axis.scatter(*turned.T, s=9, color=colour, marker=marker, alpha=0.5, linewidths=0, label=label)
        ends, ticks = (-180, 180), range(-180, 181, 90)
        axis.set(title="spheres 1 and 2: a torus", aspect="equal", xlim=ends, ylim=ends, xticks=ticks, yticks=ticks)
        axis.set(xlabel="angle on sphere 1 (degrees)", ylabel="angle on sphere 2 (degrees)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def draw_spheres(image_points: Points, text_points: Points, topology: Topology) -> Figure:
    """Ob(3, m): a globe a sphere. Points on its far side are faint.

    Args:
        image_points: (N, m, 3).
        text_points: (K, m, 3).

    Raises:
        UserError: for a topology that is no product of spheres in three dimensions.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.draw import draw_spheres
        >>> topology = parse_topology("oblique(3,4)")
        >>> points = topology.project(torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0)))
        >>> len(draw_spheres(points, points, topology).axes)
        4
        >>> draw_spheres(points, points, parse_topology("oblique(4,3)"))
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: oblique(4,3) has spheres of 4 numbers; those of 3 can be drawn
    """
    from matplotlib.figure import Figure

    both = _whole(image_points, text_points, topology, 3)
    figure, axes = _grid(topology.m, Figure)
    view = _view()
    for sphere, axis in enumerate(axes):
        for ring in _globe():
            seen = ring @ view.T
            front = np.where(seen[:, 2:] >= 0, seen[:, :2], np.nan)
            axis.plot(*front.T, color="#dddddd", linewidth=0.6, zorder=0)
        axis.add_patch(_outline())
        for points, (label, colour, marker) in zip(both, KINDS, strict=True):
            seen = points[:, sphere] @ view.T
            for near, alpha in ((seen[:, 2] < 0, 0.15), (seen[:, 2] >= 0, 0.7)):
                axis.scatter(
                    *seen[near, :2].T, s=9, color=colour, marker=marker, alpha=alpha, linewidths=0,
                    label=label if alpha > 0.5 else None,
                )  # fmt: skip
        axis.set(title=f"sphere {sphere + 1}", aspect="equal", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1))
        axis.axis("off")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def spheres_figure(
    image_points: Points,
    text_points: Points,
    topology: Topology,
    image_names: Sequence[str] | None = None,
    text_names: Sequence[str] | None = None,
) -> Any:
    """What `draw_spheres` draws as a plotly figure: globes to turn, with names on hover.

    Raises:
        UserError: as `draw_spheres`, or without plotly.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.draw import spheres_figure
        >>> topology = parse_topology("oblique(3,2)")
        >>> points = topology.project(torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)))
        >>> figure = spheres_figure(points, points, topology, text_names=("a", "b", "c", "d", "e"))
        >>> sum(trace.name == "names" for trace in figure.data)  # one on each sphere
        2
    """
    graph = load_extra("plotly.graph_objects", "a figure to turn")
    subplots = load_extra("plotly.subplots", "a figure to turn")
    both = _whole(image_points, text_points, topology, 3)
    columns = min(COLUMNS, topology.m)
    rows = -(-topology.m // columns)
    titles = [f"sphere {sphere + 1}" for sphere in range(topology.m)]
    kinds = [[{"type": "scene"}] * columns] * rows
    figure = subplots.make_subplots(rows, columns, specs=kinds, subplot_titles=titles, horizontal_spacing=0.01)
    rings = np.concatenate([np.vstack([ring, np.full((1, 3), np.nan)]) for ring in _globe()])
    named = (image_names, text_names)
    for sphere in range(topology.m):
        place = {"row": sphere // columns + 1, "col": sphere % columns + 1}
        grid = dict(zip("xyz", rings.round(3).T, strict=True))
        figure.add_trace(graph.Scatter3d(
            **grid, mode="lines", line={"color": "#cccccc", "width": 1}, hoverinfo="skip", showlegend=False
        ), **place)  # fmt: skip
        for points, names, (label, colour, marker) in zip(both, named, KINDS, strict=True):
            symbol = {"o": "circle", "^": "diamond"}[marker]
            own = dict(zip("xyz", points[:, sphere].round(3).T, strict=True))
            figure.add_trace(graph.Scatter3d(
                **own, mode="markers", name=label, text=None if names is None else list(names),
                hoverinfo="text" if names is not None else "name", showlegend=sphere == 0, legendgroup=label,
                marker={"size": 2.5, "color": colour, "symbol": symbol, "opacity": 0.7},
            ), **place)  # fmt: skip
    hidden = {axis: {"visible": False} for axis in ("xaxis", "yaxis", "zaxis")}
    figure.update_scenes(**hidden, aspectmode="cube")
    figure.update_layout(height=300 * rows, margin={"l": 0, "r": 0, "t": 30, "b": 0}, template="plotly_white")
    return figure


def _whole(image_points: Points, text_points: Points, topology: Topology, n: int) -> tuple[Array, Array]:
    one_sphere(topology)
    if topology.n != n:
        raise UserError(f"{topology.spec} has spheres of {topology.n} numbers; those of {n} can be drawn")
    images, texts = (exact(points, topology).numpy() for points in (image_points, text_points))
    return images, texts


def _grid(count: int, kind: Any) -> tuple[Figure, list[Any]]:
    """A figure with so many panels, of at most `COLUMNS` in a row."""
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = kind((2.6 * columns + 0.4, 2.7 * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def _globe() -> list[Array]:
    """Meridians and parallels, each (S, 3)."""
    along = np.linspace(0, 2 * math.pi, 73)
    level = np.linspace(-math.pi / 2, math.pi / 2, 37)
    parallels = [
        np.stack([math.cos(b) * np.cos(along), math.cos(b) * np.sin(along), np.full_like(along, math.sin(b))], 1)
        for b in np.linspace(-math.pi / 2, math.pi / 2, LINES)[1:-1:2]
    ]
    meridians = [
        np.stack([np.cos(level) * math.cos(a), np.cos(level) * math.sin(a), np.sin(level)], 1)
        for a in np.linspace(0, 2 * math.pi, LINES)[:-1]
    ]
    return [*parallels, *meridians]


def _view() -> Array:
    """From 20 degrees above the equator and 30 beside the first axis: rows are right, up and towards the viewer."""
    up, side = math.radians(20), math.radians(30)
    towards = np.array([math.cos(up) * math.cos(side), math.cos(up) * math.sin(side), math.sin(up)])
    right = np.array([-math.sin(side), math.cos(side), 0.0])
    return np.stack([right, np.cross(towards, right), towards])


def _outline() -> Any:
    from matplotlib.patches import Circle

    return Circle((0, 0), 1, fill=False, color="#999999", linewidth=0.8)
