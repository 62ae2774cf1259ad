"""Ways along geodesics of every topology, what lies on them, and edits of one sphere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from oblique_clip import parse_topology
from oblique_clip.errors import UserError
from oblique_clip.explore import interpolate, modality_gap, root, swap_sphere, traverse
from oblique_clip.explore.points import geodesics_of
from oblique_clip.topology import LorentzTopology, Topology

SPECS = ["sphere(8)", "oblique(4,3)", "oblique(4,3)/geodesic", "euclidean(8)", "lorentz(8)"]

ON_THE_WAY = 1e-5
"""Relative to the whole way; geoopt's hyperboloid clamps short lengths."""


def points_of(spec: str, count: int) -> tuple[Topology, Tensor]:
    topology = parse_topology(spec)
    if isinstance(topology, LorentzTopology):
        torch.nn.init.constant_(topology.log_curvature, 0.7)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, topology.m, topology.n, generator=generator, dtype=torch.float64)
    return topology, topology.project(features).detach()


@pytest.mark.parametrize("spec", SPECS)
def test_a_way_goes_from_end_to_end_at_constant_speed_on_the_shortest_line(spec: str) -> None:
    topology, (a, b) = points_of(spec, 2)
    way = interpolate(topology, a, b, 9)
    measure = geodesics_of(topology)
    whole = float(measure.similarity_rowwise(a, b).abs())
    assert (way[[0, -1]] - torch.stack([a, b])).abs().max() <= ON_THE_WAY
    steps = measure.similarity_rowwise(way[1:], way[:-1]).abs()
    assert (steps - whole / 8).abs().max() <= ON_THE_WAY * whole
    assert float(topology.manifold.projx(way).sub(way).abs().max()) <= ON_THE_WAY


@pytest.mark.parametrize("spec", SPECS)
def test_a_way_from_a_point_to_itself_stays_there(spec: str) -> None:
    topology, (a,) = points_of(spec, 1)
    assert (interpolate(topology, a, a, 5) - a).abs().max() <= ON_THE_WAY


def test_between_antipodes_one_great_circle_is_taken() -> None:
    topology = parse_topology("sphere(3)/geodesic")
    pole = torch.tensor([[0.0, 0.0, 1.0]])
    way = interpolate(topology, pole, -pole, 5)
    assert torch.allclose(way[:, 0, 2], torch.linspace(0, math.pi, 5, dtype=torch.float64).cos(), atol=1e-6)
    assert torch.allclose(way.norm(dim=-1), torch.ones(5, 1, dtype=torch.float64))


@pytest.mark.parametrize("spec", SPECS)
def test_a_traversal_names_the_nearest_along_the_way_once_each(spec: str) -> None:
    """Among strangers, two stops on the way: each is the nearest from half way between the one before and itself."""
    topology, points = points_of(spec, 40)
    a, b = points[0], points[1]
    stops = interpolate(topology, a, b, 4)[1:3]
    rows, times = traverse(topology, a, b, torch.cat([points, stops]), 32)
    assert rows.tolist() == [0, 40, 41, 1]
    assert torch.allclose(times * 31, torch.tensor([0.0, 6, 16, 26], dtype=torch.float64))


def test_the_root_is_the_mean_of_all_or_the_vertex() -> None:
    topology, points = points_of("oblique(4,3)", 30)
    assert modality_gap(root(topology, points[:10], points[10:])[None], points, topology) <= 1e-7
    hyperbolic, lifted = points_of("lorentz(8)", 30)
    vertex = root(hyperbolic, lifted)
    assert not vertex[0, 1:].any() and math.isclose(float(vertex[0, 0]), math.exp(-0.35), rel_tol=1e-6)
    with pytest.raises(UserError, match="the mean of no points"):
        root(topology)


def test_swapping_a_sphere_moves_its_share_of_every_similarity() -> None:
    topology, points = points_of("oblique(4,3)", 12)
    a, b, others = points[0], points[1], points[2:]
    swapped, _ = swap_sphere(topology, a, b, 1)
    change = topology.similarity(swapped[None], others) - topology.similarity(a[None], others)
    shares = topology.per_sphere(b, others) - topology.per_sphere(a, others)
    assert torch.allclose(change[0], shares[:, 1])
    back = swap_sphere(topology, *swap_sphere(topology, a, b, 1), 1)
    assert torch.allclose(torch.stack(back), points[:2])


def test_what_has_no_way_or_no_sphere_is_refused() -> None:
    topology, points = points_of("oblique(4,3)", 2)
    with pytest.raises(UserError, match="spheres 0 to 2, no sphere 3"):
        swap_sphere(topology, *points, 3)
    with pytest.raises(UserError, match="at least two points, not 1"):
        interpolate(topology, *points, 1)
    with pytest.raises(UserError, match=r"shape \(N, 3, 4\)"):
        interpolate(topology, points[0], torch.ones(12))
    with pytest.raises(UserError, match="no product of spheres"):
        swap_sphere(parse_topology("euclidean(4)"), torch.ones(1, 4), torch.ones(1, 4), 0)
