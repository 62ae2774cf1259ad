"""Persistent homology: clusters, loops and voids of a point set at all scales, under the model's own distance.

The Vietoris-Rips filtration joins points at distance s or less; a bar [birth, death) is a hole that lives for these s.
It is computed on landmarks. Let r be the largest distance of a point to the nearest landmark. Then r bounds the
Hausdorff and so the Gromov-Hausdorff distance of landmarks and points, and the bottleneck distance of their diagrams
is at most 2r (Chazal, de Silva & Oudot 2014, arXiv 1207.3885, Theorem 5.2). So a bar of the landmarks longer than 4r
stands for a hole of the whole set. Of what the points themselves were drawn from, this says nothing.

Ob(2, m) is an m-torus: Betti numbers 1, m, m (m - 1) / 2, ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import UserError
from ..topology import Topology
from .extra import load_extra
from .points import Array, Points, blocks, distances, exact, metric_of, sample_rows

Choice = Literal["farthest", "random"]


class Landmarks(NamedTuple):
    """A subset that stands for a set of points."""

    rows: Tensor
    """(L,), of the points, in the order they were chosen."""
    radius: float
    """Largest distance of any point to the nearest landmark, under `metric_of`."""


def landmarks(
    points: Points, topology: Topology, count: int = 200, choice: Choice = "farthest", seed: int = 0
) -> Landmarks:
    """Landmarks of points (N, *point_shape); all points where there are no more than `count`.

    `farthest` takes again and again the point farthest from those taken (Gonzalez 1985: at most twice the least radius
    possible), and so every outlier; `random` takes a uniform sample, which follows the density.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import landmarks
        >>> points = torch.tensor([0.0, 1.0, 5.0, 9.0]).view(4, 1, 1)
        >>> rows, radius = landmarks(points, parse_topology("euclidean(1)"), 2)
        >>> len(rows), radius <= 5.0
        (2, True)
    """
    if count < 1:
        raise UserError(f"there must be at least one landmark, not {count}")
    x, metric = exact(points, topology), metric_of(topology)
    if count >= len(x):
        return Landmarks(torch.arange(len(x)), 0.0)
    if choice == "random":
        rows = sample_rows(len(x), count, seed)
        return Landmarks(rows, max(float(near.abs().amin(1).max()) for _, near in blocks(x, x[rows], metric)))
    chosen = [int(torch.randint(len(x), (1,), generator=torch.Generator().manual_seed(seed)))]
    nearest = metric.similarity_rowwise(x, x[chosen[0]]).abs()
    while len(chosen) < count and float(nearest.max()) > 0:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, metric.similarity_rowwise(x, x[chosen[-1]]).abs())
    return Landmarks(torch.tensor(chosen), float(nearest.max()))


@dataclass(frozen=True)
class Persistence:
    """Persistence diagrams of a point set, on landmarks.

    Examples:
        >>> import numpy as np
        >>> import torch
        >>> from oblique_clip.explore import Persistence
        >>> bars = np.array([[0.0, 0.5], [0.0, np.inf]])
        >>> found = Persistence((bars,), torch.arange(2), radius=0.1, unit=1.0, metric="sphere(2)/chordal")
        >>> found.error, found.betti_numbers()  # 0.5 is longer than twice the error
        (0.2, (2,))
    """

    diagrams: tuple[Array, ...]
    """For each dimension from 0 its bars (K, 2), birth and death, the latter perhaps infinite."""
    rows: Tensor
    """(L,), the landmarks' rows."""
    radius: float
    """Covering radius of the landmarks, in the diagrams' unit."""
    unit: float
    """What distances were divided by."""
    metric: str
    """Spec of the topology whose distance it is."""

    @property
    def error(self) -> float:
        """Largest bottleneck distance of a diagram from that of all points."""
        return 2 * self.radius

    def betti_numbers(self, least: float | None = None) -> tuple[int, ...]:
        """Bars longer than `least` in each dimension; by default than twice the error: holes that all points have."""
        least = 2 * self.error if least is None else least
        return tuple(int((bars[:, 1] - bars[:, 0] > least).sum()) for bars in self.diagrams)


def persistence(
    points: Points,
    topology: Topology,
    max_dim: int = 1,
    count: int = 200,
    choice: Choice = "farthest",
    relative: bool = False,
    seed: int = 0,
) -> Persistence:
    """Persistent homology of points (N, *point_shape) by Ripser (Bauer 2021), with coefficients in Z/2.

    The distance is the model's own, or where that is no metric the one of `metric_of`: chordal for inner.

    Args:
        max_dim: highest dimension of holes: 0 clusters, 1 loops, 2 voids. 200 landmarks of a torus take 2 s for voids;
            of points that spread in all of 512 directions, loops take 2 s for 200 landmarks and 2 minutes for 400.
        count: landmarks, chosen as in `landmarks` by `choice` and `seed`.
        relative: whether to divide distances by the median distance of two landmarks, so that topologies compare.

    Raises:
        UserError: without ripser.

    Examples:
        >>> import math
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import persistence
        >>> angles = torch.arange(40) * (2 * math.pi / 40)
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)[:, None]
        >>> persistence(circle, parse_topology("sphere(2)")).betti_numbers(least=0.5)
        (1, 1)
    """
    ripser = load_extra("ripser", "persistent homology")
    x = exact(points, topology)
    rows, radius = landmarks(x, topology, count, choice, seed)
    between = distances(x[rows], topology).numpy()
    unit = 1.0
    if relative:
        unit = float(np.median(between[np.triu_indices(len(rows), 1)])) if len(rows) > 1 else 0.0
        if unit <= 0:
            raise UserError("distances relative to their median need at least two distinct points")
    diagrams = ripser.ripser(between / unit, maxdim=max_dim, distance_matrix=True)["dgms"]
    return Persistence(
        tuple(np.asarray(bars, dtype=np.float64) for bars in diagrams),
        rows,
        radius / unit,
        unit,
        metric_of(topology).spec,
    )


def betti_curve(diagram: Array, scales: Array) -> npt.NDArray[np.int64]:
    """Number of bars (K, 2) alive at each of the scales (S,).

    Examples:
        >>> import numpy as np
        >>> from oblique_clip.explore import betti_curve
        >>> betti_curve(np.array([[0.0, 1.0], [0.5, np.inf]]), np.array([0.0, 0.5, 1.0])).tolist()
        [1, 2, 1]
    """
    alive = (diagram[:, :1] <= scales) & (scales < diagram[:, 1:])
    return alive.sum(0)


def persistence_entropy(diagram: Array) -> float:
    """Shannon entropy, in nats, of the finite bars' lengths as shares of their sum; 0 where there are none.

    Rucco et al. (2016); Chintakunta et al. (2015). Of K bars at most log K, where all are equally long.

    Examples:
        >>> import numpy as np
        >>> from oblique_clip.explore import persistence_entropy
        >>> round(persistence_entropy(np.array([[0.0, 1.0], [1.0, 2.0], [0.0, np.inf]])), 4)  # log 2
        0.6931
    """
    lengths = _finite(diagram)
    lengths = lengths[:, 1] - lengths[:, 0]
    lengths = lengths[lengths > 0]
    shares = lengths / lengths.sum() if len(lengths) else lengths
    return float(-(shares * np.log(shares)).sum()) + 0.0


def bottleneck(first: Array, second: Array) -> float:
    """Bottleneck distance of two diagrams (K, 2) and (L, 2): the least largest move that turns one into the other.

    Moves are measured by the larger of the changes of birth and of death; a bar may also vanish, at half its length
    (Cohen-Steiner, Edelsbrunner & Harer 2007). Infinite where the diagrams have different numbers of infinite bars.

    Raises:
        UserError: without scipy.

    Examples:
        >>> import numpy as np
        >>> from oblique_clip.explore import bottleneck
        >>> bottleneck(np.array([[0.0, 4.0], [1.0, 1.5]]), np.array([[0.0, 5.0]]))
        1.0
    """
    sparse = load_extra("scipy.sparse", "a distance of diagrams")
    graph = load_extra("scipy.sparse.csgraph", "a distance of diagrams")
    forever = _infinite_moves(first, second)
    least = float(forever.max(initial=0.0))
    costs = _costs(_finite(first), _finite(second))
    if not np.isfinite(least) or not costs.size:
        return least
    steps = np.unique(costs)
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        mates = graph.maximum_bipartite_matching(sparse.csr_matrix(costs <= steps[middle]), perm_type="column")
        low, high = (low, middle) if (mates >= 0).all() else (middle + 1, high)
    return max(least, float(steps[low]))


def wasserstein(first: Array, second: Array, order: float = 1.0) -> float:
    """Wasserstein distance of two diagrams: the least (sum of moves ** order) ** (1 / order), moves as in `bottleneck`.

    Cohen-Steiner et al. (2010). It counts every bar, so compare diagrams of equally many landmarks.

    Raises:
        UserError: without scipy.

    Examples:
        >>> import numpy as np
        >>> from oblique_clip.explore import wasserstein
        >>> wasserstein(np.array([[0.0, 4.0], [1.0, 1.5]]), np.array([[0.0, 5.0]]))
        1.25
    """
    optimize = load_extra("scipy.optimize", "a distance of diagrams")
    forever = _infinite_moves(first, second)
    costs = _costs(_finite(first), _finite(second)) ** order
    return float((costs[optimize.linear_sum_assignment(costs)].sum() + (forever**order).sum()) ** (1 / order))


def _finite(diagram: Array) -> Array:
    return diagram[np.isfinite(diagram[:, 1])]


def _infinite_moves(first: Array, second: Array) -> Array:
    """Moves of the bars that never end, in order of birth, which is the best order."""
    births = [np.sort(diagram[~np.isfinite(diagram[:, 1]), 0]) for diagram in (first, second)]
    if len(births[0]) != len(births[1]):
        return np.array([np.inf])
    return np.abs(births[0] - births[1])


def _costs(first: Array, second: Array) -> Array:
    """Moves of K bars, and L places to vanish from, to L bars, and K places to vanish to: (K + L, L + K)."""
    k, width = len(first), len(second)
    costs = np.zeros((k + width, width + k))
    costs[:k, :width] = np.abs(first[:, None] - second[None]).max(-1)
    costs[:k, width:] = (first[:, 1:] - first[:, :1]) / 2
    costs[k:, :width] = (second[:, 1] - second[:, 0]) / 2
    return costs
