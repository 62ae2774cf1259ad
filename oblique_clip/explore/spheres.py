"""What each sphere of a product does: its rank, variance, share of the score, own votes, and likeness to the others.

Results have one number for each of the m spheres, in their order. `sphere(d)` is the case m = 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..health import Faults, faults_of
from ..topology import Topology
from .geometry import uniformity
from .moments import TINY, covariance, entropy_rank, table
from .points import Points, blocks, exact, one_sphere, own, paired, sample_rows

LOOKED_AT = 128
"""Points among which `sphere_faults` compares cosines, all with all."""


def effective_rank(features: Points) -> float:
    """exp of the entropy of the singular values of features (N, ...), each coordinate less its mean.

    Effective rank of Roy & Vetterli (2007, EUSIPCO), of the centred table: the one direction of a mean tells items
    nothing. In [1, d]; 0 where all rows are one.

    Examples:
        >>> import torch
        >>> from oblique_clip.explore import effective_rank
        >>> square = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(effective_rank(square), 3), round(effective_rank(square[:2]), 3)
        (2.0, 1.0)
    """
    return float(entropy_rank(torch.linalg.svdvals(table(features) / len(features) ** 0.5)))


def spectra(points: Points, topology: Topology) -> Tensor:
    """Eigenvalues (m, n) of each sphere's covariance, falling; a row sums to the sphere's variance, in [0, 1].

    Raises:
        UserError: for a topology that is no product of spheres.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import spectra
        >>> topology = parse_topology("oblique(2,2)")
        >>> points = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]])
        >>> spectra(points, topology).tolist()  # the first varies along one axis, the second not at all
        [[1.0, 0.0], [0.0, 0.0]]
    """
    one_sphere(topology)
    x = exact(points, topology)
    parts = [table(part) for part in x.unbind(1)]
    return torch.stack([torch.linalg.eigvalsh(covariance(part, part)).flip(0).clamp(min=0) for part in parts])


def effective_ranks(points: Points, topology: Topology) -> Tensor:
    """`effective_rank` of each sphere (m,), in [1, n]; 0 for a dead one.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import effective_ranks
        >>> points = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]])
        >>> effective_ranks(points, parse_topology("oblique(2,2)")).tolist()
        [1.0, 0.0]
    """
    return entropy_rank(spectra(points, topology).sqrt())


def variance_explained(points: Points, topology: Topology) -> Tensor:
    """Share of the points' variance on each sphere (m,), summing to 1; all 0 where nothing varies.

    A sphere's own variance, 1 - |mean|^2, lies in [0, 1], so where all spread fully each has 1/m.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import variance_explained
        >>> points = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]])
        >>> variance_explained(points, parse_topology("oblique(2,2)")).tolist()
        [1.0, 0.0]
    """
    variances = spectra(points, topology).sum(1)
    return variances / variances.sum().clamp(min=TINY)


def uniformity_by_sphere(points: Points, topology: Topology, t: float = 2.0) -> Tensor:
    """`uniformity` of each sphere alone (m,); its floor is `uniformity_floor` of `sphere(n)`.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import uniformity_by_sphere
        >>> points = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]])
        >>> uniformity_by_sphere(points, parse_topology("oblique(2,2)")).tolist()  # poles, and one point twice
        [-8.0, 0.0]
    """
    part = one_sphere(topology)
    return torch.tensor([uniformity(rows, part, t) for rows in exact(points, topology).split(1, dim=1)])


def sphere_faults(points: Points, topology: Topology, seed: int = 0) -> Faults:
    """Spheres on which all points are one, and pairs of spheres that tell the same, by `health.faults_of`.

    Of more than 128 points a sample is looked at.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import sphere_faults
        >>> topology = parse_topology("oblique(4,3)")
        >>> points = topology.project(torch.randn(32, 3, 4, generator=torch.Generator().manual_seed(0)))
        >>> points[:, 1], points[:, 2] = points[:, 0], points[0, 2]
        >>> sphere_faults(points, topology)
        Faults(dead=[2], duplicate=[(0, 1)])
    """
    one_sphere(topology)
    x = exact(points, topology)
    return faults_of(x[sample_rows(len(x), LOOKED_AT, seed)], own(topology))


class ScoreShares(NamedTuple):
    """Shares of the score of inner products, sphere by sphere; each sums to 1, and one may be negative."""

    margin: Tensor
    """(m,), of the distance between the mean scores of pairs and of all others: what tells right from wrong."""
    variance: Tensor
    """(m,), of the variance of scores over all images and texts: what the score is made of."""


def score_shares(
    image_points: Points,
    text_points: Points,
    topology: Topology,
    pairs: Tensor | None = None,
    sample: int = 20_000,
    seed: int = 0,
) -> ScoreShares:
    """What each sphere carries of the score sum_i <x_i, y_i>.

    The margin's share is E<x_i, y_i> over pairs less the same over all others, of the sum of that over spheres; the
    variance's is Cov(<x_i, y_i>, score) / Var(score), over `sample` image-text couples drawn with repeats. Shares of a
    margin near zero, as before training, mean nothing.

    Raises:
        UserError: for a topology that is no product of spheres, or a single text.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import score_shares
        >>> topology = parse_topology("oblique(2,2)")
        >>> points = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]])
        >>> score_shares(points, points, topology).margin.tolist()  # the second sphere tells nothing
        [1.0, 0.0]
    """
    one_sphere(topology)
    x, y, rows = paired(image_points, text_points, topology, pairs)
    if len(y) < 2:
        raise UserError("shares of a margin need at least two texts")
    cosines = own(topology).per_sphere
    positive = cosines(x, y[rows]).sum(0)
    # Inner products are linear in both: those of the sums are the sums over all couples.
    everything = cosines(x.sum(0), y.sum(0))
    margin = positive / len(x) - (everything - positive) / (len(x) * (len(y) - 1))
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randint(len(side), (sample,), generator=generator) for side in (x, y))
    scores = table(torch.cat([cosines(x[i], y[j]) for i, j in zip(left.split(4096), right.split(4096), strict=True)]))
    shares = covariance(scores, scores).sum(1)
    return ScoreShares(margin / margin.sum(), shares / shares.sum().clamp(min=TINY))


def cka_between_spheres(points: Points, topology: Topology) -> Tensor:
    """Linear CKA (Kornblith et al. 2019, arXiv 1905.00414) of each sphere's parts with each other's (m, m), in [0, 1].

    1 on the diagonal; 0 for a dead sphere. As every CKA it is above 0 also for unrelated parts, by about n / N.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import cka_between_spheres
        >>> topology = parse_topology("oblique(2,2)")
        >>> points = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, -1.0]]])
        >>> cka_between_spheres(points, topology).round(decimals=3).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    one_sphere(topology)
    flat = table(exact(points, topology))
    crossed = covariance(flat, flat).view(topology.m, topology.n, topology.m, topology.n).square().sum((1, 3))
    own_norms = crossed.diagonal().sqrt()
    norms = own_norms[:, None] * own_norms
    return torch.where(norms > TINY, crossed / norms.clamp(min=TINY), 0.0)


class Votes(NamedTuple):
    """What each sphere would choose alone."""

    top1: Tensor
    """(m,), share of images whose own text is strictly the most similar on this sphere."""
    agreement: Tensor
    """(m,), share of images for which this sphere chooses as the whole does."""
    whole: float
    """Top-1 of the whole similarity."""


def votes(image_points: Points, text_points: Points, topology: Topology, pairs: Tensor | None = None) -> Votes:
    """Each sphere's own top-1 among the texts, and how often it agrees with the whole.

    A text as similar as the right one counts as before it. Texts should be distinct: names of classes, say.

    Raises:
        UserError: for a topology that is no product of spheres.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import votes
        >>> points = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]])
        >>> top1, agreement, whole = votes(points, points, parse_topology("oblique(2,2)"))
        >>> top1.tolist(), agreement.tolist(), whole  # the second sphere cannot choose
        ([1.0, 0.0], [1.0, 0.5], 1.0)
    """
    part = one_sphere(topology)
    x, y, rows = paired(image_points, text_points, topology, pairs)
    right, chosen = _choices(x, y, own(topology), rows)
    alone = [_choices(a, b, part, rows) for a, b in zip(x.split(1, 1), y.split(1, 1), strict=True)]
    top1 = torch.stack([hits.double().mean() for hits, _ in alone])
    agreement = torch.stack([(choice == chosen).double().mean() for _, choice in alone])
    return Votes(top1, agreement, float(right.double().mean()))


def top1(image_points: Points, text_points: Points, topology: Topology, pairs: Tensor | None = None) -> float:
    """Share of images whose own text is strictly the most similar."""
    x, y, rows = paired(image_points, text_points, topology, pairs)
    return float(_choices(x, y, own(topology), rows)[0].double().mean())


def _choices(x: Tensor, y: Tensor, topology: Topology, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each image's own text is strictly nearest (N,), and which text is nearest (N,)."""
    right, chosen = [], []
    for start, block in blocks(x, y, topology):
        mine = block.gather(1, rows[start : start + len(block), None])
        right.append((block < mine).sum(1) == len(y) - 1)
        chosen.append(block.argmax(1))
    return torch.cat(right), torch.cat(chosen)
