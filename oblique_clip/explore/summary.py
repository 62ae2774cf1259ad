"""All the cheap diagnostics of a run at once, as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from ..errors import UserError
from ..topology import Topology
from .compare import linear_cka, procrustes
from .dimension import geodesic_radii, mle_dimension, two_nn
from .geometry import (
    alignment,
    centroid_distance,
    close_gap,
    equilibrium_gap,
    hubness,
    modality_gap,
    neighbourhood_overlap,
    similarities,
    uniformity,
    uniformity_floor,
)
from .homology import bottleneck, persistence, persistence_entropy
from .points import Points, one_sphere, paired, sample_rows
from .spheres import (
    cka_between_spheres,
    effective_rank,
    effective_ranks,
    score_shares,
    sphere_faults,
    top1,
    uniformity_by_sphere,
    variance_explained,
    votes,
)

Figure = float | list[float]
NEIGHBOURS = 10
"""Neighbours of hubness and of the overlap between modalities, fewer where there are no more points."""
RADII = 20
"""Neighbours of the maximum likelihood dimension."""


def summarise(
    image_points: Points,
    text_points: Points,
    topology: Topology,
    pairs: Tensor | None = None,
    seed: int = 0,
    sample: int = 2000,
    homology: bool = False,
    landmarks: int = 150,
) -> dict[str, Figure]:
    """Figures of images (N, *point_shape) and texts (K, *point_shape) by name; a list has one number for each sphere.

    Each is that of the function of its name in `oblique_clip.explore`, with `_images` or `_texts` of one side;
    `hubness_texts` is of texts near to images; `overlap`, `cka` and `procrustes` compare each text with an image of it.
    What cannot be told is left out: spheres of a topology without them, a dimension of a few points, a gap of one text.

    Args:
        pairs: (N,), the text's row of each image; image i with text i without it.
        seed: of the samples.
        sample: images looked at, and where there are more texts than that, those of these images alone.
        homology: whether to compute loops of images and of texts on `landmarks`, in units of the median distance; needs
            ripser, see `persistence` for how long it takes.

    Raises:
        UserError: for points of another topology, `pairs` that do not fit, or homology without ripser.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import summarise
        >>> topology = parse_topology("oblique(4,2)")
        >>> texts = topology.project(torch.randn(60, 2, 4, generator=torch.Generator().manual_seed(0)))
        >>> figures = summarise(texts, texts, topology)
        >>> figures["top1"], round(figures["modality_gap"], 3), figures["sphere_top1"]
        (1.0, 0.0, [1.0, 1.0])
    """
    x, y, rows = paired(image_points, text_points, topology, pairs)
    looked_at = sample_rows(len(x), sample, seed)
    x, rows = x[looked_at], rows[looked_at]
    if len(y) > sample:
        named, rows = torch.unique(rows, return_inverse=True)
        y = y[named]
    found: dict[str, Figure] = {"images": float(len(x)), "texts": float(len(y))}
    for measure in (_geometry, _spheres):
        found |= measure(x, y, topology, rows, seed)
    if homology:
        found |= _homology(x, y, topology, landmarks, seed)
    return {name: figure for name, figure in found.items() if _is_finite(figure)}


def _geometry(x: Tensor, y: Tensor, topology: Topology, rows: Tensor, seed: int) -> dict[str, Figure]:
    # One image of each text that has one: items to compare modalities by.
    named = torch.unique(rows)
    single = torch.stack([(rows == text).nonzero()[0, 0] for text in named])
    a, b = x[single], y[named]
    k = max(1, min(NEIGHBOURS, len(y) - 1, len(x) - 1, len(a) - 1))
    scores = similarities(x, y, topology, rows)
    measures: dict[str, Callable[[], float]] = {
        "alignment": partial(alignment, x, y, topology, rows),
        "uniformity_images": partial(uniformity, x, topology),
        "uniformity_texts": partial(uniformity, y, topology),
        "uniformity_floor": partial(uniformity_floor, topology),
        "equilibrium_gap": partial(equilibrium_gap, x, y, topology, rows),
        "positive": lambda: float(scores.positive.mean()),
        "positive_std": lambda: _spread(scores.positive),
        "negative": lambda: float(scores.negative.mean()),
        "negative_std": lambda: _spread(scores.negative),
        "top1": partial(top1, x, y, topology, rows),
        "top1_gap_closed": lambda: top1(*close_gap(x, y, topology), topology, rows),
        "modality_gap": partial(modality_gap, x, y, topology),
        "centroid_distance": partial(centroid_distance, x, y, topology),
        "hubness_texts": partial(hubness, x, topology, k, y),
        "hubness_images": partial(hubness, y, topology, k, x),
        "overlap": partial(neighbourhood_overlap, a, b, topology, k),
        "cka": partial(linear_cka, a, b),
        "procrustes": partial(procrustes, a, b),
    }
    for name, points in (("images", x), ("texts", y)):
        measures[f"effective_rank_{name}"] = partial(effective_rank, points)
        measures |= _dimensions(points, topology, name, seed)
    return _all(measures)


def _dimensions(points: Tensor, topology: Topology, name: str, seed: int) -> dict[str, Callable[[], float]]:
    """Both from the same distances, as `intrinsic_dimension` has them."""
    radii = lru_cache(partial(geodesic_radii, points, topology, RADII, None, seed))
    return {f"twonn_{name}": lambda: two_nn(radii()), f"mle_{name}": lambda: mle_dimension(radii())}


def _spheres(x: Tensor, y: Tensor, topology: Topology, rows: Tensor, seed: int) -> dict[str, Figure]:
    try:
        one_sphere(topology)
    except UserError:
        return {}
    alone = votes(x, y, topology, rows)
    found: dict[str, Figure] = {"sphere_top1": alone.top1.tolist(), "sphere_agreement": alone.agreement.tolist()}
    if len(y) > 1:
        shares = score_shares(x, y, topology, rows, seed=seed)
        found |= {"sphere_margin_share": shares.margin.tolist(), "sphere_variance_share": shares.variance.tolist()}
    for name, points in (("images", x), ("texts", y)):
        if len(points) < 2:
            continue
        alike, faults = cka_between_spheres(points, topology), sphere_faults(points, topology, seed)
        others = topology.m * (topology.m - 1)
        found |= {
            f"sphere_effective_rank_{name}": effective_ranks(points, topology).tolist(),
            f"sphere_variance_{name}": variance_explained(points, topology).tolist(),
            f"sphere_uniformity_{name}": uniformity_by_sphere(points, topology).tolist(),
            f"dead_spheres_{name}": float(len(faults.dead)),
            f"duplicate_spheres_{name}": float(len(faults.duplicate)),
            f"sphere_cka_{name}": float(alike.sum() - alike.trace()) / others if others else math.nan,
        }
    return found


def _homology(x: Tensor, y: Tensor, topology: Topology, count: int, seed: int) -> dict[str, Figure]:
    sides = {
        name: persistence(points, topology, count=count, relative=True, seed=seed)
        for name, points in (("images", x), ("texts", y))
    }
    found: dict[str, Figure] = {}
    for name, side in sides.items():
        found[f"homology_error_{name}"] = side.error
        for dimension, bars in enumerate(side.diagrams):
            found[f"entropy_h{dimension}_{name}"] = persistence_entropy(bars)
            found[f"betti_{dimension}_{name}"] = float(side.betti_numbers()[dimension])
    both = zip(sides["images"].diagrams, sides["texts"].diagrams, strict=True)
    return found | {f"bottleneck_h{dimension}": bottleneck(a, b) for dimension, (a, b) in enumerate(both)}


def _spread(values: Tensor) -> float:
    return float(values.std()) if len(values) > 1 else math.nan


def _all(measures: dict[str, Callable[[], float]]) -> dict[str, Figure]:
    """Every figure that these points have."""
    found: dict[str, Figure] = {}
    for name, measure in measures.items():
        try:
            found[name] = measure()
        except UserError:
            continue
    return found


def _is_finite(figure: Figure) -> bool:
    return all(map(math.isfinite, figure if isinstance(figure, list) else [figure]))
