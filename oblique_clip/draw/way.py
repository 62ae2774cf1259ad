"""What lies along the way from one point to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import UserError
from ..explore import Traversal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_way(
    pictures: Tensor,
    of_pictures: Traversal,
    names: Sequence[str],
    of_names: Traversal,
    ends: Mapping[str, float] | None = None,
) -> Figure:
    """Pictures and names that are nearest along a geodesic, each where it becomes the nearest.

    Args:
        pictures: uint8 (M, 3, S, S), the gallery of `of_pictures`.
        of_pictures: see `explore.traverse`.
        names: the gallery of `of_names`.
        ends: what stands at the ends, by words: {"apple": 0, "bus": 1}.

    Raises:
        UserError: for a traversal of another gallery.

    Examples:
        >>> import torch
        >>> from oblique_clip.draw import draw_way
        >>> from oblique_clip.explore import Traversal
        >>> way = Traversal(torch.tensor([1, 0]), torch.tensor([0.0, 0.6]))
        >>> figure = draw_way(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), way, ("apple", "bus"), way)
        >>> [text.get_text() for text in figure.axes[-1].texts]
        ['bus', 'apple']
    """
    from matplotlib.figure import Figure

    for gallery, way in ((pictures, of_pictures), (names, of_names)):
        if int(way.rows.max()) >= len(gallery):
            raise UserError(f"the way meets row {int(way.rows.max())} of a gallery of {len(gallery)}")
    count = len(of_pictures.rows)
    figure = Figure((9, 3.6), layout="constrained")
    rows = figure.add_gridspec(2, 1)
    above, below = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
    for axis, row, time in zip(
        above.subplots(1, count, squeeze=False)[0], of_pictures.rows.tolist(), of_pictures.times.tolist(), strict=True
    ):
        axis.imshow(pictures[row].permute(1, 2, 0))
        axis.set_title(f"{time:.2f}", fontsize=8)
        axis.axis("off")
    _draw_names(below.subplots(), names, of_names, ends or {})
    return figure


def _draw_names(axis: Axes, names: Sequence[str], way: Traversal, ends: Mapping[str, float]) -> None:
    times = [*way.times.tolist(), 1.0]
    for place, (row, start, end) in enumerate(zip(way.rows.tolist(), times, times[1:], strict=False)):
        axis.axvspan(start, end, color="#dddddd" if place % 2 else "#f3f3f3", linewidth=0)
        axis.text((start + end) / 2, 0.5, names[row], rotation=35, ha="center", va="center", size=8, parse_math=False)
    for word, time in ends.items():
        axis.axvline(time, color="black", linewidth=2, label=word)
    axis.set(xlim=(0, 1), ylim=(0, 1), yticks=[], xlabel=_between(ends))


def _between(ends: Mapping[str, float]) -> str:
    words = list(ends)
    return f"share of the way from {words[0]} to {words[-1]}" if len(words) > 1 else "share of the way"
