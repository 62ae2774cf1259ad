"""What each sphere says of a picture, name by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..errors import UserError
from ..explore.points import Points, exact, one_sphere, own
from ..topology import Topology

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_votes(image_point: Points, text_points: Points, names: Sequence[str], topology: Topology) -> Figure:
    """A row a name, the most similar first: its similarity on each sphere, and the mean of them at the right.

    Stars are each sphere's own choice. The whole similarity is the sum of a row.

    Args:
        image_point: (*point_shape), of one picture.
        text_points: (K, *point_shape), of the names.
        names: K of them.

    Raises:
        UserError: for a topology that is no product of spheres, or names that do not fit the points.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.draw import draw_votes
        >>> topology = parse_topology("oblique(2,2)")
        >>> texts = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]])
        >>> figure = draw_votes(texts[1], texts, ("cat", "dog"), topology)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]  # cat is right on one sphere of two
        ['dog', 'cat']
    """
    from matplotlib.figure import Figure

    one_sphere(topology)
    x, y = exact(torch.as_tensor(image_point)[None], topology), exact(text_points, topology)
    if len(y) != len(names):
        raise UserError(f"{len(y)} points of names need as many names, not {len(names)}")
    scores = own(topology).per_sphere(x.expand_as(y), y)
    order = scores.sum(1).argsort(descending=True)
    scores = scores[order]
    figure = Figure((2.8 + 0.42 * (topology.m + 1), 1.3 + 0.32 * len(names)), layout="constrained")
    axis = figure.subplots()
    shown = torch.cat([scores, scores.mean(1, keepdim=True)], 1)
    drawn = axis.imshow(shown, cmap="gray_r", vmin=-1, vmax=1, aspect="auto")
    for sphere, row in enumerate(scores.argmax(0).tolist()):
        dark = float(scores[row, sphere]) > 0
        axis.text(sphere, row, "*", ha="center", va="center", color="white" if dark else "black", size=12)
    axis.axvline(topology.m - 0.5, color="black", linewidth=1.5)
    axis.set_yticks(range(len(names)), [names[row] for row in order.tolist()])
    axis.set_xticks(range(topology.m + 1), [*map(str, range(1, topology.m + 1)), "all"])
    axis.set(xlabel="sphere (a star is its own choice)")
    figure.colorbar(drawn, label="similarity")
    return figure
