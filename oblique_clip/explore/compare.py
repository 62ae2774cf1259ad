"""How alike two embeddings of the same items are, whatever their topologies: N rows of each, in one order."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError
from ..topology import Topology
from .extra import load_extra
from .moments import TINY, covariance, table
from .points import Points, distances, sample_rows


def linear_cka(x: Points, y: Points) -> float:
    """Linear centred kernel alignment of features (N, ...) and (N, ...), in [0, 1]; 0 where one side is constant.

    Kornblith et al. (2019, arXiv 1905.00414, equation 4). Turning or scaling either side changes nothing. For unrelated
    features it is not 0 but about d / N: compare at one N.

    Examples:
        >>> import torch
        >>> from oblique_clip.explore import linear_cka
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
        >>> round(linear_cka(x, 3 * x.flip(1)), 3), round(linear_cka(x, x[:, :1]), 3)
        (1.0, 0.791)
    """
    a, b = _tables(x, y)
    crossed = covariance(a, b).square().sum()
    norms = covariance(a, a).norm() * covariance(b, b).norm()
    return float(crossed / norms) if norms > TINY else 0.0


def procrustes(x: Points, y: Points) -> float:
    """What is left after the best turn, shift and scaling of features (N, ...) onto (N, ...): disparity in [0, 1].

    Orthogonal Procrustes (Schoenemann 1966; `scipy.spatial.procrustes`): both sides centred and scaled to norm 1, the
    squared distance that is left is 1 - |X^T Y|_*^2 with the nuclear norm. 0 for a turned and scaled copy. The narrower
    side counts as if filled up with zeros.

    Examples:
        >>> import torch
        >>> from oblique_clip.explore import procrustes
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
        >>> round(abs(procrustes(x, 3 * x.flip(1) + 1)), 3), round(procrustes(x, x[:, :1]), 3)
        (0.0, 0.375)
    """
    a, b = _tables(x, y)
    norms = a.norm() * b.norm()
    if norms <= TINY:
        raise UserError("Procrustes needs features that are not all the same")
    nuclear = torch.linalg.svdvals(covariance(a, b)).sum() * len(a) / norms
    return max(0.0, 1 - float(nuclear.square()))


def rank_correlation(
    points: Points,
    others: Points,
    topology: Topology,
    other_topology: Topology | None = None,
    sample: int | None = 1000,
    seed: int = 0,
) -> float:
    """Spearman's correlation of the distances of all pairs of items in two embeddings, in [-1, 1].

    Representational similarity analysis (Kriegeskorte et al. 2008): 1 where one embedding orders all distances as the
    other does, so also where one metric is a rising function of the other.

    Args:
        points: (N, *point_shape) under `topology`.
        others: (N, ...) of the same items under `other_topology`, or where that is None under `topology`.
        sample: items looked at, drawn by `seed`; None for all, whose N^2 / 2 distances are held.

    Raises:
        UserError: without scipy, or for sets of different size.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import rank_correlation
        >>> topology = parse_topology("sphere(3)")
        >>> points = topology.project(torch.randn(20, 1, 3, generator=torch.Generator().manual_seed(0)))
        >>> round(rank_correlation(points, points, topology, parse_topology("sphere(3)/geodesic")), 3)
        1.0
    """
    stats = load_extra("scipy.stats", "a rank correlation")
    if len(points) != len(others) or len(points) < 3:
        raise UserError(f"a comparison is of at least three items in both, not of {len(points):,} and {len(others):,}")
    rows = sample_rows(len(points), sample, seed)
    upper = torch.triu_indices(len(rows), len(rows), 1)
    lengths = [
        distances(torch.as_tensor(side)[rows], shape)[upper[0], upper[1]].numpy()
        for side, shape in ((points, topology), (others, other_topology or topology))
    ]
    return float(stats.spearmanr(*lengths).statistic)


def _tables(x: Points, y: Points) -> tuple[Tensor, Tensor]:
    if len(x) != len(y):
        raise UserError(f"a comparison is of the same items in two embeddings, not of {len(x):,} and {len(y):,}")
    return table(x), table(y)
