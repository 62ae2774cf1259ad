"""How many numbers a set of points needs locally: estimators from the distances to nearest neighbours.

All look at a seeded sample without repeats: a name said twice would be a neighbour at distance 0.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..topology import Topology
from .extra import load_extra
from .points import Points, distinct_rows, exact, geodesics_of, neighbours, sample_rows

Method = Literal["twonn", "mle", "danco"]
Space = Literal["geodesic", "flat"]

KEPT = 0.9
"""Share of the ratios that TwoNN fits, the smallest ones; the tail is noisy (Facco et al. 2017, Methods)."""


def two_nn(nearest: Tensor) -> float:
    """Intrinsic dimension from the distances (N, >= 2) to the two nearest neighbours, the nearest first.

    TwoNN of Facco et al. (2017, Sci. Rep. 7:12140): mu = r2 / r1 has the distribution 1 - mu^-d, so d is the slope of
    -log(1 - F(mu)) over log mu, fitted through the origin on the 90 % smallest mu. Points at distance 0 are left out.

    Raises:
        UserError: where fewer than ten points are left.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import neighbours, two_nn
        >>> line = torch.rand(1000, 1, 1, generator=torch.Generator().manual_seed(0))
        >>> round(two_nn(neighbours(line, parse_topology("euclidean(1)"), 2).distances))
        1
    """
    ratios = (nearest[:, 1] / nearest[:, 0])[nearest[:, 0] > 0].double().sort().values
    if len(ratios) < 10:
        raise UserError(f"a dimension needs at least ten distinct points, not {len(ratios)}")
    kept = int(len(ratios) * KEPT)
    logs = ratios[:kept].log()
    below = torch.arange(1, kept + 1, dtype=torch.float64) / len(ratios)
    return float(-(logs * torch.log1p(-below)).sum() / logs.square().sum())


def mle_dimension(nearest: Tensor) -> float:
    """Intrinsic dimension from the distances (N, k) to the k >= 3 nearest neighbours, the nearest first.

    Maximum likelihood of Levina & Bickel (2005, NIPS 17), 1/d = mean of log(r_k / r_j) over j < k, averaged over points
    as inverses (MacKay & Ghahramani 2005). Points at distance 0 from another are left out.

    Raises:
        UserError: where fewer than ten points are left.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import mle_dimension, neighbours
        >>> line = torch.rand(1000, 1, 1, generator=torch.Generator().manual_seed(0))
        >>> round(mle_dimension(neighbours(line, parse_topology("euclidean(1)"), 20).distances))
        1
    """
    radii = nearest[nearest[:, 0] > 0].double()
    if len(radii) < 10 or radii.shape[1] < 3:
        raise UserError(
            f"a dimension needs three neighbours of ten distinct points, not distances {tuple(radii.shape)}"
        )
    return float(1 / (radii[:, -1:] / radii[:, :-1]).log().mean())


def intrinsic_dimension(
    points: Points,
    topology: Topology,
    method: Method = "twonn",
    space: Space = "geodesic",
    k: int = 20,
    sample: int | None = 2000,
    seed: int = 0,
) -> float:
    """Intrinsic dimension of points (N, *point_shape).

    Of a set as wide as real embeddings every estimator falls short, TwoNN least; compare at one sample size.

    Args:
        method: `twonn` (Facco et al. 2017), `mle` (Levina & Bickel 2005) or `danco` (Ceruti et al. 2014), which looks
            at angles too and takes minutes for high dimensions.
        space: `geodesic`, from the distances along the manifold, or `flat`, from the coordinates as plain vectors, by
            scikit-dimension. DANCo knows only the latter.
        k: neighbours that `mle` and `danco` look at.
        sample: distinct points to look at; None for all.
        seed: of the sample, and of DANCo's.

    Raises:
        UserError: without scikit-dimension where it is needed, for DANCo on geodesics, or for too few distinct points.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import intrinsic_dimension
        >>> topology = parse_topology("oblique(2,2)")  # a torus
        >>> points = topology.project(torch.randn(2000, 2, 2, generator=torch.Generator().manual_seed(0)))
        >>> round(intrinsic_dimension(points, topology)), round(intrinsic_dimension(points, topology, "mle"))
        (2, 2)
    """
    if space == "flat":
        return _by_skdim(_distinct(points, topology, k, sample, seed).flatten(1), method, k, seed)
    if method == "danco":
        raise UserError("DANCo looks at angles between coordinates: it knows only the space 'flat'")
    nearest = geodesic_radii(points, topology, 2 if method == "twonn" else k, sample, seed)
    return two_nn(nearest) if method == "twonn" else mle_dimension(nearest)


def geodesic_radii(points: Points, topology: Topology, k: int, sample: int | None, seed: int) -> Tensor:
    """Geodesic distances (S, k) of a sample of distinct points to their nearest neighbours, for several estimates."""
    return neighbours(_distinct(points, topology, k, sample, seed), geodesics_of(topology), k).distances


def _distinct(points: Points, topology: Topology, k: int, sample: int | None, seed: int) -> Tensor:
    x = exact(points, topology)
    x = x[distinct_rows(x)]
    x = x[sample_rows(len(x), sample, seed)]
    if len(x) <= max(k, 10):
        raise UserError(f"a dimension from {k} neighbours needs more than {max(k, 10)} distinct points, not {len(x):,}")
    return x


def _by_skdim(flat: Tensor, method: Method, k: int, seed: int) -> float:
    skdim = load_extra("skdim", "a dimension of flat coordinates")
    vectors = flat.numpy()
    if method == "twonn":
        return float(skdim.id.TwoNN(discard_fraction=1 - KEPT).fit(vectors).dimension_)
    if method == "mle":
        return float(skdim.id.MLE().fit(vectors, n_neighbors=k, comb="mle").dimension_)
    found = float(skdim.id.DANCo(k=k, random_state=seed).fit(vectors).dimension_)
    if not math.isfinite(found):
        raise UserError("DANCo found no dimension; take a larger sample")
    return found
