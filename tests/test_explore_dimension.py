"""Intrinsic dimension of sets whose dimension is known, and against scikit-dimension where both apply."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

from oblique_clip import parse_topology
from oblique_clip.errors import UserError
from oblique_clip.explore import intrinsic_dimension, mle_dimension, neighbours, two_nn

KNOWN = 0.1
"""Relative error allowed of 1,500 uniform points without an edge."""
SAME = 1e-9
"""Two programs for one formula."""


def uniform(spec: str, count: int = 1500, seed: int = 0) -> Tensor:
    topology = parse_topology(spec)
    generator = torch.Generator().manual_seed(seed)
    return topology.project(torch.randn(count, topology.m, topology.n, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("method", ["twonn", "mle"])
@pytest.mark.parametrize(
    "spec, dimension", [("sphere(2)", 1), ("oblique(2,2)", 2), ("sphere(3)/geodesic", 2), ("oblique(3,2)/geodesic", 4)]
)
def test_a_manifold_has_its_own_dimension(spec: str, dimension: int, method: str) -> None:
    """Ob(n, m) has m (n - 1)."""
    found = intrinsic_dimension(uniform(spec), parse_topology(spec), method)  # type: ignore[arg-type]
    assert math.isclose(found, dimension, rel_tol=KNOWN)


def test_a_circle_in_many_spheres_is_still_one_number_wide() -> None:
    """The same turn on every sphere: 16 numbers a point, one of them free."""
    points = uniform("sphere(2)").repeat(1, 8, 1)
    assert math.isclose(intrinsic_dimension(points, parse_topology("oblique(2,8)")), 1, rel_tol=KNOWN)


@pytest.mark.parametrize("method", ["twonn", "mle"])
def test_in_euclidean_space_the_estimators_are_those_of_scikit_dimension(method: str) -> None:
    pytest.importorskip("skdim")
    topology, points = parse_topology("euclidean(5)"), uniform("euclidean(5)", 400)
    theirs = intrinsic_dimension(points, topology, method, "flat")  # type: ignore[arg-type]
    ours = intrinsic_dimension(points, topology, method)  # type: ignore[arg-type]
    assert math.isclose(ours, theirs, rel_tol=SAME)


def test_danco_finds_a_sphere_on_flat_coordinates_alone() -> None:
    pytest.importorskip("skdim")
    topology, points = parse_topology("sphere(4)"), uniform("sphere(4)", 300)
    assert math.isclose(intrinsic_dimension(points, topology, "danco", "flat", k=10), 3, rel_tol=2 * KNOWN)
    with pytest.raises(UserError, match="only the space 'flat'"):
        intrinsic_dimension(points, topology, "danco")


def test_an_item_said_twice_counts_once() -> None:
    """Also where two batches encoded it with other rounding."""
    topology, points = parse_topology("sphere(3)"), uniform("sphere(3)", 300)
    again = topology.project(points + 1e-9 * torch.randn(points.shape, dtype=torch.float64))
    # Six decimals cut a few of 900 coordinates between the two.
    for method in ("twonn", "mle"):
        once = intrinsic_dimension(points, topology, method)  # type: ignore[arg-type]
        assert intrinsic_dimension(torch.cat([points, points]), topology, method) == once  # type: ignore[arg-type]
        twice = intrinsic_dimension(torch.cat([points, again]), topology, method)  # type: ignore[arg-type]
        assert math.isclose(twice, once, rel_tol=KNOWN)


def test_a_sample_is_drawn_by_its_seed() -> None:
    topology, points = parse_topology("sphere(3)"), uniform("sphere(3)")
    found = [intrinsic_dimension(points, topology, sample=200, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_estimators_do_not_depend_on_the_unit() -> None:
    near = neighbours(uniform("sphere(3)", 300), parse_topology("sphere(3)/geodesic"), 20).distances
    assert math.isclose(two_nn(near), two_nn(1000 * near), rel_tol=SAME)
    assert math.isclose(mle_dimension(near), mle_dimension(1000 * near), rel_tol=SAME)


def test_too_few_points_and_a_missing_package_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    topology, points = parse_topology("sphere(3)"), uniform("sphere(3)", 15)
    with pytest.raises(UserError, match="more than 20 distinct points, not 15"):
        intrinsic_dimension(points, topology, "mle")
    monkeypatch.setitem(sys.modules, "skdim", None)
    with pytest.raises(UserError, match=r"needs scikit-dimension: pip install 'oblique-clip\[explore\]'"):
        intrinsic_dimension(points, topology, space="flat", k=5)
