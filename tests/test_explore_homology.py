"""Persistent homology: shapes whose Betti numbers are known, the stated bounds, and distances of diagrams by hand."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oblique_clip import parse_topology
from oblique_clip.errors import UserError
from oblique_clip.explore import (
    betti_curve,
    bottleneck,
    distances,
    landmarks,
    persistence,
    persistence_entropy,
    wasserstein,
)

pytest.importorskip("ripser")

SAME = 1e-6
"""Ripser computes in float32."""
EXACT = 1e-12

Diagram = npt.NDArray[np.float64]
laws = settings(max_examples=40, deadline=None, database=None)


def uniform(spec: str, count: int, seed: int = 0) -> Tensor:
    topology = parse_topology(spec)
    generator = torch.Generator().manual_seed(seed)
    return topology.project(torch.randn(count, topology.m, topology.n, generator=generator, dtype=torch.float64))


def two_clusters(spec: str) -> Tensor:
    topology = parse_topology(spec)
    centre = uniform(spec, 1)
    return topology.project(torch.cat([centre, -centre]).repeat(30, 1, 1) + 0.1 * uniform(spec, 60))


SHAPES = [
    ("sphere(2)", 400, 60, (1, 1)),
    ("sphere(2)/geodesic", 400, 60, (1, 1)),
    ("oblique(2,2)/geodesic", 4000, 200, (1, 2, 1)),
    ("sphere(3)/geodesic", 3000, 120, (1, 0, 1)),
]
"""A circle, the torus Ob(2, 2) and a sphere: the distance, points, landmarks, and Betti numbers."""


@pytest.mark.parametrize("spec, points, count, betti", SHAPES)
def test_a_known_shape_has_its_betti_numbers_beyond_the_error_of_the_landmarks(
    spec: str, points: int, count: int, betti: tuple[int, ...]
) -> None:
    found = persistence(uniform(spec, points), parse_topology(spec), len(betti) - 1, count)
    assert 0 < found.radius < math.pi / 8 and found.betti_numbers() == betti


def test_the_torus_has_them_under_inner_products_too() -> None:
    """As chords, whose holes are shorter: more than a third of the radius, where noise stays below."""
    found = persistence(uniform("oblique(2,2)", 4000), parse_topology("oblique(2,2)"), 2, 150)
    assert found.metric == "oblique(2,2)/chordal"
    assert found.betti_numbers(least=0.7) == (1, 2, 1)


@pytest.mark.parametrize("spec", ["sphere(8)", "oblique(4,3)/geodesic", "euclidean(8)"])
def test_two_clusters_are_two(spec: str) -> None:
    assert persistence(two_clusters(spec), parse_topology(spec), count=60).betti_numbers(least=1.0) == (2, 0)


def test_the_square_of_a_circle_has_one_loop_with_the_known_birth_and_death() -> None:
    """Four points on a circle: sides of sqrt(2) close the loop, diagonals of 2 fill it."""
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])[:, None]
    found = persistence(square, parse_topology("sphere(2)"))
    assert np.allclose(found.diagrams[1], [[math.sqrt(2), 2.0]], atol=SAME)
    assert np.allclose(found.diagrams[0][:, 1], [math.sqrt(2)] * 3 + [math.inf], atol=SAME)
    angles = persistence(square, parse_topology("sphere(2)/geodesic"))
    assert np.allclose(angles.diagrams[1], [[math.pi / 2, math.pi]], atol=SAME)


@pytest.mark.parametrize("choice", ["farthest", "random"])
def test_the_diagrams_of_landmarks_are_within_the_stated_error_of_those_of_all_points(choice: str) -> None:
    topology, points = parse_topology("oblique(2,2)/geodesic"), uniform("oblique(2,2)/geodesic", 120)
    whole = persistence(points, topology, count=120)
    part = persistence(points, topology, count=40, choice=choice)  # type: ignore[arg-type]
    assert whole.radius == 0.0 and part.radius > 0
    for ours, full in zip(part.diagrams, whole.diagrams, strict=True):
        assert bottleneck(ours, full) <= part.error + SAME


@pytest.mark.parametrize("choice", ["farthest", "random"])
@pytest.mark.parametrize("spec", ["oblique(4,3)", "euclidean(6)"])
def test_the_radius_of_landmarks_covers_every_point(spec: str, choice: str) -> None:
    topology, points = parse_topology(spec), uniform(spec, 80)
    rows, radius = landmarks(points, topology, 12, choice, seed=1)  # type: ignore[arg-type]
    assert len(set(rows.tolist())) == 12
    to_landmarks = distances(points, topology)[:, rows].amin(1)
    assert math.isclose(radius, float(to_landmarks.max()), rel_tol=1e-7)
    assert torch.equal(rows, landmarks(points, topology, 12, choice, seed=1).rows)  # type: ignore[arg-type]


def test_farthest_landmarks_cover_at_most_twice_as_far_as_the_best() -> None:
    """Gonzalez' theorem, against every choice of three."""
    topology, points = parse_topology("sphere(3)/geodesic"), uniform("sphere(3)/geodesic", 14)
    table = distances(points, topology)
    best = min(float(table[:, list(rows)].amin(1).max()) for rows in itertools.combinations(range(14), 3))
    for seed in range(5):
        assert best <= landmarks(points, topology, 3, seed=seed).radius <= 2 * best


def test_relative_diagrams_do_not_depend_on_the_unit() -> None:
    topology, points = parse_topology("euclidean(3)"), uniform("euclidean(3)", 60)
    small, large = (persistence(points * unit, topology, relative=True, count=40) for unit in (1, 1000))
    assert math.isclose(large.unit / small.unit, 1000, rel_tol=SAME)
    assert math.isclose(large.radius, small.radius, rel_tol=SAME)
    assert all(np.allclose(a, b, atol=SAME) for a, b in zip(small.diagrams, large.diagrams, strict=True))


# diagrams


@st.composite
def diagrams(draw: st.DrawFn, most: int = 3) -> Diagram:
    """Bars on a coarse grid, so that ties occur."""
    bars = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), max_size=most))
    return np.array([(birth / 2, (birth + length) / 2) for birth, length in bars], dtype=float).reshape(-1, 2)


def by_every_matching(first: Diagram, second: Diagram) -> list[list[float]]:
    """The moves of every way to pair bars of both, those left over vanishing."""
    halves = [(bars[:, 1] - bars[:, 0]) / 2 for bars in (first, second)]
    ways = []
    for size in range(min(len(first), len(second)) + 1):
        for ours in itertools.combinations(range(len(first)), size):
            for theirs in itertools.permutations(range(len(second)), size):
                moves = [float(np.abs(first[i] - second[j]).max()) for i, j in zip(ours, theirs, strict=True)]
                moves += [float(halves[0][i]) for i in range(len(first)) if i not in ours]
                moves += [float(halves[1][j]) for j in range(len(second)) if j not in theirs]
                ways.append(moves)
    return ways


@laws
@given(first=diagrams(), second=diagrams(), order=st.sampled_from([1.0, 2.0]))
def test_distances_of_diagrams_are_the_best_of_all_matchings(first: Diagram, second: Diagram, order: float) -> None:
    ways = by_every_matching(first, second)
    assert bottleneck(first, second) == min(max(moves, default=0.0) for moves in ways)
    least = min(sum(move**order for move in moves) for moves in ways) ** (1 / order)
    assert math.isclose(wasserstein(first, second, order), least, abs_tol=EXACT)


@laws
@given(first=diagrams(8), second=diagrams(8), third=diagrams(8))
def test_distances_of_diagrams_are_metrics(first: Diagram, second: Diagram, third: Diagram) -> None:
    for distance in (bottleneck, wasserstein):
        assert distance(first, first[::-1]) == 0.0
        assert math.isclose(distance(first, second), distance(second, first), abs_tol=EXACT)
        assert distance(first, third) <= distance(first, second) + distance(second, third) + EXACT


def test_the_bottleneck_is_that_of_persim() -> None:
    persim = pytest.importorskip("persim")
    one, other = (
        persistence(uniform("sphere(8)", 60, seed), parse_topology("sphere(8)")).diagrams[1] for seed in (0, 1)
    )
    assert len(one) > 5 and math.isclose(bottleneck(one, other), persim.bottleneck(one, other), rel_tol=SAME)


def test_bars_that_never_end_are_paired_with_each_other() -> None:
    first = np.array([[0.0, math.inf], [3.0, math.inf], [0.0, 1.0]])
    second = np.array([[2.5, math.inf], [0.0, math.inf]])
    assert bottleneck(first, second) == 0.5
    assert wasserstein(first, second) == 1.0
    assert bottleneck(first, second[:1]) == wasserstein(first, second[:1]) == math.inf


def test_entropy_of_equal_bars_is_the_log_of_their_number() -> None:
    equal = np.array([[0.5 * k, 0.5 * k + 2] for k in range(7)] + [[0.0, math.inf]])
    assert math.isclose(persistence_entropy(equal), math.log(7), rel_tol=EXACT)
    assert persistence_entropy(np.array([[0.0, 1.0], [0.0, 1e-12]])) < 1e-9
    assert persistence_entropy(np.zeros((0, 2))) == 0.0


@laws
@given(diagram=diagrams(8))
def test_a_betti_curve_sums_to_the_length_of_all_bars(diagram: Diagram) -> None:
    scales = np.arange(0, 14) * 0.5
    assert math.isclose(0.5 * betti_curve(diagram, scales).sum(), float((diagram[:, 1] - diagram[:, 0]).sum()))


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ripser", None)
    with pytest.raises(UserError, match=r"persistent homology needs ripser: pip install 'oblique-clip\[explore\]'"):
        persistence(uniform("sphere(2)", 5), parse_topology("sphere(2)"))
