"""How images and texts lie to one another: alignment, uniformity, similarities, the modality gap, hubs, neighbourhoods.

A topology of m spheres has distances about sqrt(m) times as long as one of a single sphere. Lengths are therefore given
as the root mean square over spheres (a length divided by sqrt(m)), so that `sphere(512)` and `oblique(32,16)` compare;
on topologies without spheres m is 1. Image i belongs to the text `pairs[i]`; without `pairs`, to text i.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..topology import EuclideanTopology, ObliqueTopology, Topology
from .points import (
    Array,
    Points,
    blocks,
    chords_of,
    exact,
    geodesics_of,
    neighbours,
    own,
    paired,
    parallel_transport,
)


def alignment(
    image_points: Points, text_points: Points, topology: Topology, pairs: Tensor | None = None, alpha: float = 2.0
) -> float:
    """Mean of r ** alpha over pairs, with r the chord between an image and its text, root mean square over spheres.

    Alignment of Wang & Isola (2020, arXiv 2005.10242). On one sphere it is theirs. On m spheres with
    alpha = 2 it is the mean over spheres of the squared chord, which is also theirs of the flat unit vector. In
    [0, 2 ** alpha] on spheres, and small is good; on other topologies r is the model's metric.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import alignment
        >>> topology = parse_topology("oblique(2,2)")
        >>> x = topology.project(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]))
        >>> y = topology.project(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
        >>> round(alignment(x, y, topology), 6)  # squared chords of 2 and 0
        1.0
    """
    x, y, rows = paired(image_points, text_points, topology, pairs)
    chords = chords_of(topology).similarity_rowwise(x, y[rows]).abs() / math.sqrt(topology.m)
    return float(chords.pow(alpha).mean())


def uniformity(points: Points, topology: Topology, t: float = 2.0) -> float:
    """log of the mean of exp(-t r^2) over all pairs of different points, r as in `alignment`.

    Uniformity of Wang & Isola (2020): the logarithm of the mean Gaussian potential. On one sphere it is
    theirs, on m spheres theirs of the flat unit vector. It is 0 where all points are one; the least that any
    distribution can have is `uniformity_floor`, near -2t for either shape.

    Args:
        points: (N, *point_shape), N >= 2.
        t: > 0.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import uniformity
        >>> topology = parse_topology("sphere(2)")
        >>> uniformity(topology.project(torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]])), topology)  # a chord of 2
        -8.0
    """
    x, chords = exact(points, topology), chords_of(topology)
    if len(x) < 2:
        raise UserError("uniformity needs at least two points")
    sums = []
    for start, similarity in blocks(x, x, chords):
        logs = similarity.square() * (-t / topology.m)
        rows = torch.arange(len(logs))
        logs[rows, rows + start] = -math.inf
        sums.append(logs.logsumexp((0, 1)))
    return float(torch.stack(sums).logsumexp(0)) - math.log(len(x) * (len(x) - 1))


def uniformity_floor(topology: Topology, t: float = 2.0) -> float:
    """`uniformity` of the uniform distribution on a product of spheres, the least that any distribution has.

    On S^(n-1) the mean of exp(k u), u one coordinate, is 0F1(; n/2; k^2 / 4). With k = 2t/m this gives
    -2t + m log 0F1(; n/2; (t/m)^2). For the kernel is positive definite and turns with the spheres, so that no
    distribution has less energy than the one that turning leaves as it is (Wang & Isola 2020, Proposition 1, for one).

    Raises:
        UserError: for a topology that is no product of spheres, where points can always lie further apart.

    Examples:
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import uniformity_floor
        >>> for spec in ("sphere(2)", "sphere(512)", "oblique(32,16)"):
        ...     print(round(uniformity_floor(parse_topology(spec)), 3))
        -1.575
        -3.984
        -3.984
    """
    if not isinstance(topology, ObliqueTopology):
        raise UserError(f"{topology.spec} has no most uniform distribution; a product of spheres has")
    z, total, term = (t / topology.m) ** 2, 0.0, 1.0
    for k in itertools.count(1):
        total += term
        term *= z / ((topology.n / 2 + k - 1) * k)
        if term < 1e-17 * total:
            break
    return -2 * t + topology.m * math.log(total)


class Similarities(NamedTuple):
    """Similarities in the topology's own units."""

    positive: Tensor
    """(N,), of each image with its own text."""
    negative: Tensor
    """(N * (K - 1),), of each image with every other text."""


def similarities(
    image_points: Points, text_points: Points, topology: Topology, pairs: Tensor | None = None
) -> Similarities:
    """Similarities of pairs and of all others; N * K numbers are held, so take a sample of large sets.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import similarities
        >>> topology = parse_topology("sphere(2)")
        >>> points = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> positive, negative = similarities(points, points, topology)
        >>> positive.tolist(), negative.tolist()
        ([1.0, 1.0], [0.0, 0.0])
    """
    x, y, rows = paired(image_points, text_points, topology, pairs)
    parts = [_split(block, rows[start : start + len(block)]) for start, block in blocks(x, y, own(topology))]
    positive, negative = zip(*parts, strict=True)
    return Similarities(torch.cat(positive), torch.cat(negative))


def _split(block: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    mine = torch.zeros_like(block, dtype=torch.bool).scatter_(1, rows[:, None], True)
    return block[mine], block[~mine]


class Histogram(NamedTuple):
    """Densities of similarities: each integrates to 1 over the edges."""

    edges: Array
    """(bins + 1,), in the topology's units."""
    positive: Array
    """(bins,), of images with their own texts."""
    negative: Array
    """(bins,), of images with all other texts; zero where there is but one text."""


def similarity_histogram(
    image_points: Points, text_points: Points, topology: Topology, pairs: Tensor | None = None, bins: int = 100
) -> Histogram:
    """Histogram of `similarities` over the topology's range, or where that is infinite from the least to the greatest.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import similarity_histogram
        >>> topology = parse_topology("sphere(2)")
        >>> points = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> edges, positive, negative = similarity_histogram(points, points, topology, bins=4)
        >>> edges.tolist(), positive.tolist(), negative.tolist()
        ([-1.0, -0.5, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 2.0], [0.0, 0.0, 2.0, 0.0])
    """
    x, y, rows = paired(image_points, text_points, topology, pairs)
    measured = own(topology)
    low, high = topology.range
    if not math.isfinite(high - low):
        ends = [block.aminmax() for _, block in blocks(x, y, measured)]
        low, high = float(min(end.min for end in ends)), float(max(end.max for end in ends))
    edges = np.linspace(low, high, bins + 1)
    counts, totals = np.zeros((2, bins)), np.zeros((2, 1))
    for start, block in blocks(x, y, measured):
        for side, values in enumerate(_split(block, rows[start : start + len(block)])):
            # Rounding carries a similarity of a point with itself over the end.
            counts[side] += np.histogram(values.clamp(low, high).numpy(), edges)[0]
            totals[side] += len(values)
    densities = counts / (np.maximum(totals, 1) * np.diff(edges))
    return Histogram(edges, densities[0], densities[1])


def equilibrium_gap(
    image_points: Points, text_points: Points, topology: Topology, pairs: Tensor | None = None
) -> float:
    """How far the mean similarity of pairs is above that of all others, as a share of the topology's range.

    The gap at which attraction and repulsion come to rest (Sun, arXiv 2209.02127). In [-1, 1]; on unbounded
    ranges in the topology's own units. The model's scale times it times the width of the range is in logits.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import equilibrium_gap
        >>> topology = parse_topology("sphere(2)")
        >>> points = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> equilibrium_gap(points, points, topology)  # 1 against 0, on a range of [-1, 1]
        0.5
    """
    x, y, rows = paired(image_points, text_points, topology, pairs)
    if len(y) < 2:
        raise UserError("an equilibrium gap needs at least two texts")
    measured = own(topology)
    positive = float(measured.similarity_rowwise(x, y[rows]).sum())
    everything = sum(float(block.sum()) for _, block in blocks(x, y, measured))
    low, high = topology.range
    width = high - low if math.isfinite(high - low) else 1.0
    return (positive / len(x) - (everything - positive) / (len(x) * (len(y) - 1))) / width


def modality_gap(image_points: Points, text_points: Points, topology: Topology) -> float:
    """Geodesic distance between the means of images and of texts, root mean square over spheres.

    The gap of Liang et al. (2022, arXiv 2203.02053) on the manifold: the means are `topology.mean`'s. On spheres an
    angle in [0, pi]. For their own figure see `centroid_distance`.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import modality_gap
        >>> topology = parse_topology("sphere(2)")
        >>> images, texts = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])).split(1)
        >>> round(modality_gap(images, texts, topology), 3)  # a right angle
        1.571
    """
    x, y = exact(image_points, topology), exact(text_points, topology)
    shape = own(topology)
    between = geodesics_of(topology).similarity_rowwise(shape.mean(x), shape.mean(y))
    return float(between.abs()) / math.sqrt(topology.m)


def centroid_distance(image_points: Points, text_points: Points, topology: Topology) -> float:
    """Euclidean distance between the centroids of the flat unit vectors of images and of texts, in [0, 2].

    The figure that Liang et al. (2022) report, 0.82 for CLIP on MS-COCO. The centroids lie inside the sphere,
    so it mixes the angle of the gap with how wide each modality spreads.

    Raises:
        UserError: for a topology without a flat form.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import centroid_distance
        >>> topology = parse_topology("oblique(2,2)")
        >>> images = topology.project(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]))
        >>> round(centroid_distance(images, -images, topology), 3)
        2.0
    """
    chords, space = chords_of(topology), EuclideanTopology(topology.embed_dim, 1, "l2")
    centroids = [space.mean(chords.flat(exact(points, topology))[:, None]) for points in (image_points, text_points)]
    return float(space.similarity_rowwise(*centroids).abs())


def close_gap(image_points: Points, text_points: Points, topology: Topology) -> tuple[Tensor, Tensor]:
    """Images and texts moved so that both have one mean: the gap taken away, and nothing else.

    Each modality's points are taken to tangent vectors at its own `topology.mean` (logarithm), carried by parallel
    transport along the geodesic to the common mean, the one of the two means, and put back on the manifold there
    (exponential). On spheres, hyperboloid and Euclidean space this is an isometry (a transvection: each sphere turns in
    the plane of its two means), so all distances within a modality stay as they were; in Euclidean space it is the
    shift of Liang et al. (2022).

    Returns:
        Points (N, *point_shape) and (K, *point_shape), float64.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import close_gap
        >>> topology = parse_topology("sphere(2)")
        >>> images, texts = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])).split(1)
        >>> [moved.round(decimals=3).tolist() for moved in close_gap(images, texts, topology)]
        [[[[0.707, 0.707]]], [[[0.707, 0.707]]]]
    """
    shape = own(topology)
    sides = [exact(points, topology) for points in (image_points, text_points)]
    means = [shape.mean(side) for side in sides]
    common = shape.mean(torch.stack(means))
    images, texts = (_moved(side, mean, common, shape) for side, mean in zip(sides, means, strict=True))
    return images, texts


def _moved(points: Tensor, start: Tensor, end: Tensor, topology: Topology) -> Tensor:
    manifold = topology.manifold
    vectors = parallel_transport(topology, start, end, manifold.logmap(start, points))
    moved: Tensor = manifold.expmap(end, vectors)
    return moved


def occurrences(queries: Points, topology: Topology, k: int = 10, gallery: Points | None = None) -> Tensor:
    """How often each of a gallery (M, ...) is among the k nearest of a query (M,); without one, of the other queries.

    N_k of Radovanovic et al. (2010, JMLR 11); it sums to N * k.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import occurrences
        >>> points = torch.tensor([0.0, 1.0, 3.0]).view(3, 1, 1)
        >>> occurrences(points, parse_topology("euclidean(1)"), k=1).tolist()
        [1, 2, 0]
    """
    rows = neighbours(queries, topology, k, gallery).rows
    return rows.flatten().bincount(minlength=len(queries if gallery is None else gallery))


def hubness(queries: Points, topology: Topology, k: int = 10, gallery: Points | None = None) -> float:
    """Skewness of `occurrences`: 0 where none is a hub, large where a few points are near to nearly all.

    Radovanovic et al. (2010). Of images among texts it tells which captions are said of everything.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import hubness
        >>> star = torch.cat([torch.zeros(1, 1, 8), torch.eye(8)[:, None]])  # a centre and eight points about it
        >>> round(hubness(star, parse_topology("euclidean(8)"), k=1), 3)
        2.405
    """
    counts = occurrences(queries, topology, k, gallery).double()
    spread = counts - counts.mean()
    deviation = spread.square().mean().sqrt()
    return float(spread.pow(3).mean() / deviation**3) if deviation > 0 else 0.0


def neighbourhood_overlap(
    points: Points,
    others: Points,
    topology: Topology,
    k: int = 10,
    other_topology: Topology | None = None,
    measure: Literal["share", "jaccard"] = "share",
) -> float:
    """Mean overlap of the k nearest neighbours of the same items in two embeddings, in [0, 1].

    Between modalities: points of images and of their texts, row by row. Between models: of the same items by one and by
    the other (mutual k-NN alignment of Huh et al. 2024, arXiv 2405.07987). By chance the share is k / (N - 1).

    Args:
        points: (N, *point_shape) under `topology`.
        others: (N, ...) under `other_topology`, or where that is None under `topology`.
        k: in [1, N - 1].
        measure: `share`, |A n B| / k, or `jaccard`, |A n B| / |A u B|.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import neighbourhood_overlap
        >>> points = torch.tensor([0.0, 1.0, 3.0, 7.0]).view(4, 1, 1)
        >>> neighbourhood_overlap(points, points.square(), parse_topology("euclidean(1)"), k=1)
        1.0
    """
    if len(points) != len(others):
        raise UserError(
            f"an overlap is of the same items in two embeddings, not of {len(points):,} and {len(others):,}"
        )
    near = neighbours(points, topology, k).rows
    far = neighbours(others, other_topology or topology, k).rows
    common = (near[:, :, None] == far[:, None]).any(2).sum(1).double()
    return float((common / (k if measure == "share" else 2 * k - common)).mean())
