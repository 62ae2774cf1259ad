"""Similarities of pairs and of strangers: their histograms, and how they part over training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from ..errors import UserError
from ..explore import similarity_histogram
from ..explore.points import Points
from ..figures import read_curve
from ..style import ruled
from ..topology import Topology

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (("positive", "-", "pairs"), ("negative", "--", "strangers"))


class Pairs(NamedTuple):
    """Pictures, names, and which name is whose, as `explore.similarities` takes them."""

    image_points: Points
    text_points: Points
    topology: Topology
    pairs: Tensor | None = None


def draw_similarities(models: Mapping[str, Pairs], bins: int = 50) -> Figure:
    """A panel a model: how the similarities of pictures with their own name and with others are spread.

    Similarities are shown as a share of the furthest from 0 that the topology has, so that panels compare.

    Args:
        models: for each title what `explore.similarities` takes.

    Raises:
        UserError: without models, for an unbounded topology, or points that do not fit it.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.draw import draw_similarities
        >>> from oblique_clip.draw.similarities import Pairs
        >>> topology = parse_topology("oblique(4,2)")
        >>> points = topology.project(torch.randn(30, 2, 4, generator=torch.Generator().manual_seed(0)))
        >>> figure = draw_similarities({"one": Pairs(points, points, topology)})
        >>> figure.axes[0].get_xlabel()
        'similarity / 2'
    """
    from matplotlib.figure import Figure

    if not models:
        raise UserError("name at least one model")
    figure = Figure((4.4 * len(models), 3.4), layout="constrained")
    for axis, (title, own) in zip(figure.subplots(1, len(models), squeeze=False)[0], models.items(), strict=True):
        most = max(map(abs, own.topology.range))
        if not np.isfinite(most):
            raise UserError(f"{own.topology.spec} has no largest similarity to compare by")
        found = similarity_histogram(*own, bins=bins)
        edges = np.asarray(found.edges) / most
        for values, (_, style, label) in zip((found.positive, found.negative), KINDS, strict=True):
            shares = np.asarray(values) / max(float(np.sum(values)), 1e-12)
            axis.stairs(100 * shares, edges, linestyle=style, color="black", label=label)
        ruled(axis, f"similarity / {most:.3g}", "share (%)").set(title=title, xlim=(edges[0], edges[-1]))
        axis.locator_params("x", nbins=5)
    figure.axes[0].legend(fontsize=8)
    return figure


def draw_similarity_curves(runs: Mapping[str, Path]) -> Figure:
    """A panel a run: mean and one standard deviation of both kinds of similarity over training, on validation.

    Raises:
        UserError: without runs, or for one without validation.

    Examples:
        >>> from pathlib import Path
        >>> from oblique_clip.draw import draw_similarity_curves
        >>> draw_similarity_curves({})
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: name at least one run
    """
    from matplotlib.figure import Figure

    if not runs:
        raise UserError("name at least one run")
    figure = Figure((3.6 * len(runs), 3.4), layout="constrained")
    for axis, (name, run) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True):
        for kind, style, label in KINDS:
            steps, means = read_curve(run, f"val_{kind}")
            if not steps:
                raise UserError(f"{run} has no validation in its metrics.jsonl")
            draw_band(axis, steps, means, read_curve(run, f"val_{kind}_std")[1], style, label)
        ruled(axis, "step", "similarity").set_title(name)
    figure.axes[0].legend(fontsize=8)
    return figure


def draw_band(
    axis: Axes, steps: Sequence[float], means: Sequence[float], spreads: Sequence[float], style: str, label: str
) -> None:
    """A line with a band of so much to either side."""
    axis.plot(steps, means, style, color="black", label=label)
    low, high = np.subtract(means, spreads), np.add(means, spreads)
    axis.fill_between(steps, low, high, color="#999999", alpha=0.3, linewidth=0)
