"""Diagnostics of saved points: pure functions that know a topology, and no model.

Points (N, *point_shape) go in, as `encode_image`, `encode_text` and `embed.to_points` give them, as tensors or arrays;
numbers and arrays come out. Everything is computed in float64 on the CPU, and what is drawn is drawn by a seed.
Homology, flat dimensions and rank correlation need `pip install "oblique-clip[explore]"`.
"""

from .compare import linear_cka, procrustes, rank_correlation
from .dimension import intrinsic_dimension, mle_dimension, two_nn
from .geometry import (
    Histogram,
    Similarities,
    alignment,
    centroid_distance,
    close_gap,
    equilibrium_gap,
    hubness,
    modality_gap,
    neighbourhood_overlap,
    occurrences,
    similarities,
    similarity_histogram,
    uniformity,
    uniformity_floor,
)
from .homology import (
    Landmarks,
    Persistence,
    betti_curve,
    bottleneck,
    landmarks,
    persistence,
    persistence_entropy,
    wasserstein,
)
from .paths import Traversal, interpolate, root, swap_sphere, traverse
from .points import Neighbours, distances, exact, metric_of, neighbours
from .spheres import (
    ScoreShares,
    Votes,
    cka_between_spheres,
    effective_rank,
    effective_ranks,
    score_shares,
    spectra,
    sphere_faults,
    uniformity_by_sphere,
    variance_explained,
    votes,
)
from .summary import summarise

__all__ = [
    "Histogram",
    "Landmarks",
    "Neighbours",
    "Persistence",
    "ScoreShares",
    "Similarities",
    "Traversal",
    "Votes",
    "alignment",
    "betti_curve",
    "bottleneck",
    "centroid_distance",
    "cka_between_spheres",
    "close_gap",
    "distances",
    "effective_rank",
    "effective_ranks",
    "equilibrium_gap",
    "exact",
    "hubness",
    "interpolate",
    "intrinsic_dimension",
    "landmarks",
    "linear_cka",
    "metric_of",
    "mle_dimension",
    "modality_gap",
    "neighbourhood_overlap",
    "neighbours",
    "occurrences",
    "persistence",
    "persistence_entropy",
    "procrustes",
    "rank_correlation",
    "root",
    "score_shares",
    "similarities",
    "similarity_histogram",
    "spectra",
    "sphere_faults",
    "summarise",
    "swap_sphere",
    "traverse",
    "two_nn",
    "uniformity",
    "uniformity_by_sphere",
    "uniformity_floor",
    "variance_explained",
    "votes",
    "wasserstein",
]
