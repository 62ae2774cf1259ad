"""Saved points as every diagnostic takes them: in float64, on the manifold, under a distance that is a metric.

Two points are compared by a topology alone. Where a diagnostic needs a metric and the model's own distance is none, the
metric is one that ranks as it does (`metric_of`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import UserError
from ..manifold import Oblique
from ..topology import ObliqueTopology, SphereTopology, Topology

Points: TypeAlias = "Tensor | npt.NDArray[Any]"
"""(N, *point_shape), of any float type, on any device."""
Array: TypeAlias = npt.NDArray[np.float64]

HELD = 2**24
"""Numbers held at once."""
OFF = 1e-2
"""Largest distance of a coordinate from the manifold, relative to the largest; bfloat16 points are 4e-3 off."""
SAME = 6
"""Decimals to which the coordinates of one item agree when float32 towers encode it in two batches."""

# Distances that break the triangle inequality, or are not 0 between a point and itself, by the metric that ranks alike.
METRICS = {"inner": "chordal", "squared": "l2"}
CHORDS = {"sphere": "chordal", "oblique": "chordal", "euclidean": "l2", "lorentz": "geodesic"}
GEODESICS = {"sphere": "geodesic", "oblique": "geodesic", "euclidean": "l2", "lorentz": "geodesic"}


def exact(points: Points, topology: Topology) -> Tensor:
    """Points (N, *point_shape) in float64 on the CPU, put back on the manifold to the last digit.

    Raises:
        UserError: for another shape, no points, NaN or infinity, or numbers off the manifold by more than 1 %.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import exact
        >>> topology = parse_topology("sphere(3)")
        >>> exact(topology.project(torch.ones(2, 1, 3)), topology).norm(dim=-1).sub(1).abs().max().item() < 1e-15
        True
    """
    rows = torch.as_tensor(points).detach().cpu().double()
    if not len(rows) or rows.shape[1:] != topology.point_shape:
        m, n = topology.point_shape
        raise UserError(f"points of {topology.spec} have the shape (N, {m}, {n}) with N >= 1, not {tuple(rows.shape)}")
    bad = int((~rows.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise UserError(f"{bad:,} of {len(rows):,} points hold NaN or infinity")
    on = own(topology).manifold.projx(rows)
    off = float((on - rows).abs().max() / on.abs().max())
    if off > OFF:
        raise UserError(
            f"points are not on {topology.spec}, but off by {off:.2g}: features want topology.project first"
        )
    return on


def own(topology: Topology, distance: str | None = None) -> Topology:
    """The same topology for points on the CPU, without gradients; with another distance where one is named."""
    if distance in (None, topology.distance):
        return copy.deepcopy(topology).cpu().requires_grad_(False)
    return type(topology)(topology.n, topology.m, str(distance))


def metric_of(topology: Topology) -> Topology:
    """The topology under a distance that is a metric and ranks as its own does.

    `inner` becomes `chordal`, the root of 2m + 2d, and `squared` becomes `l2`, its root; the others are metrics.

    Examples:
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import metric_of
        >>> metric_of(parse_topology("oblique(3,2)")).spec, metric_of(parse_topology("lorentz(6)")).spec
        ('oblique(3,2)/chordal', 'lorentz(6)')
    """
    return own(topology, METRICS.get(topology.distance))


def chords_of(topology: Topology) -> Topology:
    """The topology under its straight-line distance: chords on spheres, l2 for Euclidean; geodesic for Lorentz."""
    return own(topology, CHORDS[topology.family])


def geodesics_of(topology: Topology) -> Topology:
    """The topology under the length of the shortest path on its manifold."""
    return own(topology, GEODESICS[topology.family])


def one_sphere(topology: Topology) -> Topology:
    """The topology of each single sphere of a product.

    Raises:
        UserError: for a topology that is no product of spheres.
    """
    if not isinstance(topology, ObliqueTopology):
        raise UserError(f"{topology.spec} is no product of spheres: it has no parts to look at one by one")
    return SphereTopology(topology.n, 1, topology.distance)


def distances(points: Points, topology: Topology, others: Points | None = None) -> Tensor:
    """Distances of all points (N, ...) from one another (N, N), or from `others` (M, ...) (N, M), under `metric_of`.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import distances
        >>> topology = parse_topology("sphere(2)")  # its inner product is no metric, so chords are measured
        >>> points = topology.project(torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]], [[0.0, 1.0]]]))
        >>> distances(points, topology).round(decimals=3).tolist()
        [[0.0, 2.0, 1.414], [2.0, 0.0, 1.414], [1.414, 1.414, 0.0]]
    """
    metric, x = metric_of(topology), exact(points, topology)
    y = x if others is None else exact(others, topology)
    found = torch.cat([similarity.abs() for _, similarity in blocks(x, y, metric)])
    if others is None:
        # Of a point with itself rounding leaves 1e-8.
        found = ((found + found.T) / 2).fill_diagonal_(0)
    return found


def blocks(x: Tensor, y: Tensor, topology: Topology) -> Iterator[tuple[int, Tensor]]:
    """Similarities of all x with all y, some rows at a time: the first row and the block (rows, len(y))."""
    rows = max(1, HELD // (len(y) * topology.held_a_pair))
    for start in range(0, len(x), rows):
        yield start, topology.similarity(x[start : start + rows], y)


class Neighbours(NamedTuple):
    """Nearest neighbours, the nearest first."""

    rows: Tensor
    """(N, k), of the gallery."""
    distances: Tensor
    """(N, k), under `metric_of`."""


def neighbours(points: Points, topology: Topology, k: int, gallery: Points | None = None) -> Neighbours:
    """The k nearest of a gallery (M, ...) to each point (N, ...); without one, of the other points.

    Every pair is compared; the distances of those found are exact also next to 0.

    Raises:
        UserError: for k outside [1, M], or [1, N - 1] without a gallery.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import neighbours
        >>> topology = parse_topology("euclidean(1)")
        >>> found = neighbours(torch.tensor([0.0, 1.0, 5.0]).view(3, 1, 1), topology, k=1)
        >>> found.rows.tolist(), found.distances.tolist()
        ([[1], [0], [1]], [[1.0], [1.0], [4.0]])
    """
    metric, x = metric_of(topology), exact(points, topology)
    y = x if gallery is None else exact(gallery, topology)
    most = len(y) - (gallery is None)
    if not 1 <= k <= most:
        raise UserError(f"k must lie in [1, {most}] for {most:,} points to choose from, not be {k}")
    found = []
    for start, similarity in blocks(x, y, metric):
        if gallery is None:
            own_rows = torch.arange(len(similarity))
            similarity[own_rows, own_rows + start] = -math.inf
        found.append(similarity.topk(k).indices)
    rows = torch.cat(found)
    step = max(1, HELD // (k * x[0].numel()))
    parts = zip(x.split(step), rows.split(step), strict=True)
    return Neighbours(
        rows, torch.cat([metric.similarity_rowwise(part[:, None], y[near]).abs() for part, near in parts])
    )


def sample_rows(count: int, size: int | None, seed: int) -> Tensor:
    """Rows of a sample without repeats, ascending; all of them where `size` is None or no smaller than `count`."""
    if size is None or size >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size].sort().values


def distinct_rows(points: Tensor) -> Tensor:
    """The first row of each item that occurs, ascending; what agrees to six decimals is one item."""
    _, places = torch.unique(points.flatten(1).round(decimals=SAME), dim=0, return_inverse=True)
    first = torch.full((int(places.max()) + 1,), len(points)).scatter_reduce(
        0, places, torch.arange(len(points)), "amin"
    )
    return first.sort().values


def paired(
    image_points: Points, text_points: Points, topology: Topology, pairs: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact points of images (N, ...) and texts (K, ...), and the text's row of each image (N,).

    Raises:
        UserError: for `pairs` that name no text of each image, or none at all where N and K differ.
    """
    x, y = exact(image_points, topology), exact(text_points, topology)
    if pairs is None:
        if len(x) != len(y):
            raise UserError(f"{len(x):,} images and {len(y):,} texts: say which text belongs to each image by `pairs`")
        return x, y, torch.arange(len(x))
    rows = torch.as_tensor(pairs).detach().cpu().long()
    if rows.shape != (len(x),) or int(rows.min()) < 0 or int(rows.max()) >= len(y):
        raise UserError(f"`pairs` must hold a row in [0, {len(y) - 1}] of the texts for each of {len(x):,} images")
    return x, y, rows


def parallel_transport(topology: Topology, start: Tensor, end: Tensor, vectors: Tensor) -> Tensor:
    """Tangent vectors at `start`, carried along the shortest geodesic to `end` without turning."""
    manifold = topology.manifold
    if isinstance(manifold, Oblique):
        return manifold.parallel_transport(start, end, vectors)
    # Those of geoopt's Euclidean and Lorentz are parallel already.
    carried: Tensor = manifold.transp(start, end, vectors)
    return carried
