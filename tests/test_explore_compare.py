"""Two embeddings of the same items: what must not change a comparison, and the reference programs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oblique_clip import parse_topology
from oblique_clip.errors import UserError
from oblique_clip.explore import distances, linear_cka, procrustes, rank_correlation

EXACT = 1e-9
"""Two ways to the same float64 number, through singular values."""

laws = settings(max_examples=40, deadline=None, database=None)


def table(seed: int, rows: int = 12, columns: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def turn(seed: int, size: int = 5) -> Tensor:
    return torch.linalg.qr(table(seed, size, size)).Q


@laws
@given(seed=st.integers(0, 2**20), scale=st.floats(0.01, 100))
def test_turns_shifts_and_units_change_neither_cka_nor_procrustes(seed: int, scale: float) -> None:
    x, y = table(seed), table(seed + 1, columns=3)
    changed = scale * x @ turn(seed + 2) + table(seed + 3, 1)
    for measure in (linear_cka, procrustes):
        assert math.isclose(measure(changed, y), measure(x, y), abs_tol=EXACT)
        assert math.isclose(measure(y, x), measure(x, y), abs_tol=EXACT)
        assert 0 <= measure(x, y) <= 1
    assert math.isclose(linear_cka(x, changed), 1, rel_tol=EXACT)
    assert math.isclose(procrustes(x, changed), 0, abs_tol=EXACT)


def test_a_stretch_of_one_axis_changes_both() -> None:
    x = table(0)
    stretched = x * torch.tensor([5.0, 1, 1, 1, 1])
    assert linear_cka(x, stretched) < 0.9 and procrustes(x, stretched) > 0.1


def test_cka_is_the_cosine_of_centred_gram_matrices() -> None:
    x, y = table(0), table(1, columns=3)
    centring = torch.eye(12, dtype=torch.float64) - 1 / 12
    a, b = (centring @ side @ side.T @ centring for side in (x, y))
    assert math.isclose(linear_cka(x, y), float((a * b).sum() / (a.norm() * b.norm())), rel_tol=EXACT)
    assert linear_cka(x, torch.ones(12, 2)) == 0.0


def test_procrustes_is_that_of_scipy() -> None:
    spatial = pytest.importorskip("scipy.spatial")
    x, y = table(0), table(1)
    assert math.isclose(procrustes(x, y), spatial.procrustes(x.numpy(), y.numpy())[2], rel_tol=EXACT)
    narrow = torch.cat([y[:, :3], torch.zeros(12, 2)], 1)
    assert math.isclose(procrustes(x, y[:, :3]), spatial.procrustes(x.numpy(), narrow.numpy())[2], rel_tol=EXACT)


def test_points_of_two_topologies_compare_as_they_are() -> None:
    one, many = parse_topology("sphere(12)"), parse_topology("oblique(4,3)")
    features = table(0, 30, 12)
    assert linear_cka(one.project(features[:, None]), many.project(features.view(30, 3, 4))) > 0.8


@pytest.mark.parametrize("spec, other", [("sphere(4)", "sphere(4)/geodesic"), ("euclidean(4)", "euclidean(4)/squared")])
def test_distances_in_the_same_order_correlate_fully(spec: str, other: str) -> None:
    pytest.importorskip("scipy")
    topology = parse_topology(spec)
    points = topology.project(table(0, 20 * topology.m, topology.n).view(20, topology.m, topology.n))
    assert math.isclose(rank_correlation(points, points, topology, parse_topology(other)), 1, rel_tol=EXACT)


def test_each_side_is_measured_by_its_own_topology() -> None:
    """On several spheres angles order pairs otherwise than chords do."""
    stats = pytest.importorskip("scipy.stats")
    inner, geodesic = parse_topology("oblique(3,4)"), parse_topology("oblique(3,4)/geodesic")
    points = inner.project(table(0, 80, 3).view(20, 4, 3))
    upper = torch.triu_indices(20, 20, 1)
    lengths = [distances(points, topology)[upper[0], upper[1]] for topology in (inner, geodesic)]
    found = rank_correlation(points, points, inner, geodesic)
    assert math.isclose(found, stats.spearmanr(*lengths).statistic, rel_tol=EXACT) and 0.9 < found < 1 - 1e-4


def test_a_rank_correlation_is_that_of_ranks_by_hand() -> None:
    pytest.importorskip("scipy")
    topology = parse_topology("euclidean(1)")
    one, other = torch.tensor([0.0, 1.0, 3.0, 7.0]).view(4, 1, 1), torch.tensor([0.0, 8.0, 2.0, 3.0]).view(4, 1, 1)
    # Of (0,1) (0,2) (0,3) (1,2) (1,3) (2,3): distances 1 3 7 2 6 4 and 8 2 3 6 5 1.
    ranks = np.array([[1, 3, 6, 2, 5, 4], [6, 2, 3, 5, 4, 1]])
    found = rank_correlation(one, other, topology)
    assert math.isclose(found, float(np.corrcoef(ranks)[0, 1]), rel_tol=EXACT)


def test_a_sample_looks_at_the_same_items_of_both() -> None:
    pytest.importorskip("scipy")
    topology = parse_topology("euclidean(5)")
    points = table(0, 200)[:, None]
    assert math.isclose(rank_correlation(points, points.clone(), topology, sample=20), 1, rel_tol=EXACT)
    assert abs(rank_correlation(points, points.roll(1, 0), topology, sample=50)) < 0.2


def test_sets_of_different_items_are_refused() -> None:
    for measure in (linear_cka, procrustes):
        with pytest.raises(UserError, match="not of 12 and 11"):
            measure(table(0), table(0)[:11])
    with pytest.raises(UserError, match="not of 12 and 11"):
        rank_correlation(table(0)[:, None], table(0)[:11, None], parse_topology("euclidean(5)"))
