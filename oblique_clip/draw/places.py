"""A flat map of points under the model's own distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import UserError
from ..explore.extra import load_extra
from ..explore.points import Points, exact
from ..page.map import SIDE, Map, draw_map
from ..topology import Topology

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_places(points: Points, topology: Topology, pictures: Tensor) -> Figure:
    """Pictures laid out so that those close under the model's distance stay close; `page.map.draw_map` has the method.

    Args:
        points: (N, *point_shape); some hundred, as each is drawn.
        pictures: uint8 (N, 3, S, S).

    Raises:
        UserError: where there are not as many pictures as points.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.draw import draw_places
        >>> topology = parse_topology("sphere(4)")
        >>> points = topology.project(torch.randn(6, 1, 4, generator=torch.Generator().manual_seed(0)))
        >>> figure = draw_places(points, topology, torch.zeros(6, 3, 8, 8, dtype=torch.uint8))
        >>> len(figure.axes[0].images), figure.axes[0].get_title()
        (6, 'principal coordinates of the chordal distance')
    """
    from matplotlib.figure import Figure

    if len(pictures) != len(points):
        raise UserError(f"{len(points)} points need as many pictures, not {len(pictures)}")
    found = draw_map(exact(points, topology), topology)
    high = float(found.places[:, 1].max()) + SIDE
    figure = Figure((7, 7 * high + 0.3), layout="constrained")
    axis = figure.subplots()
    for (x, y), picture in zip(found.places, pictures, strict=True):
        axis.imshow(picture.permute(1, 2, 0), extent=(x - SIDE / 2, x + SIDE / 2, y - SIDE / 2, y + SIDE / 2))
    axis.set(xlim=(-SIDE, 1 + SIDE), ylim=(-SIDE, high), title=titled(found))
    axis.axis("off")
    return figure


def places_figure(points: Points, topology: Topology, names: Sequence[str], kinds: Sequence[str] | None = None) -> Any:
    """What `draw_places` draws as a plotly figure: dots with names on hover, a marker a kind.

    Args:
        points: (N, *point_shape).
        names: of the N points.
        kinds: what each is, for the legend: its group, or whether it is a picture or a name.

    Raises:
        UserError: where there are not as many names as points, or without plotly.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.draw import places_figure
        >>> topology = parse_topology("sphere(4)")
        >>> points = topology.project(torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(0)))
        >>> figure = places_figure(points, topology, ("a", "b", "c"), kinds=("x", "x", "y"))
        >>> [(trace.name, list(trace.text)) for trace in figure.data]
        [('x', ['a', 'b']), ('y', ['c'])]
    """
    graph = load_extra("plotly.graph_objects", "a figure to hover over")
    kinds = ("points",) * len(points) if kinds is None else kinds
    if not len(points) == len(names) == len(kinds):
        raise UserError(f"{len(points)} points need as many names and kinds, not {len(names)} and {len(kinds)}")
    found = draw_map(exact(points, topology), topology)
    figure = graph.Figure()
    for place, kind in enumerate(dict.fromkeys(kinds)):
        rows = [row for row, own in enumerate(kinds) if own == kind]
        x, y = found.places[rows].round(4).T
        figure.add_trace(graph.Scatter(
            x=x, y=y, mode="markers", name=kind, text=[names[row] for row in rows], hoverinfo="text",
            marker={"symbol": place, "size": 7},
        ))  # fmt: skip
    figure.update_layout(template="plotly_white", title=titled(found), height=600)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    return figure


def titled(found: Map) -> str:
    """How a map was made, in words."""
    return f"{found.method} of the {found.distance} distance"
