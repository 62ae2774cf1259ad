"""Diagnostics sphere by sphere, on products whose spheres were made to differ."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oblique_clip import parse_topology
from oblique_clip.errors import UserError
from oblique_clip.explore import (
    cka_between_spheres,
    effective_rank,
    effective_ranks,
    linear_cka,
    score_shares,
    spectra,
    sphere_faults,
    uniformity,
    uniformity_by_sphere,
    variance_explained,
    votes,
)
from oblique_clip.health import spheres

EXACT = 1e-12
"""Two ways to the same float64 number."""

laws = settings(max_examples=30, deadline=None, database=None)


def points_with_faults() -> Tensor:
    """On Ob(4, 4): a full sphere, its turned copy, a dead one, and one that lies on a circle."""
    topology = parse_topology("oblique(4,4)")
    generator = torch.Generator().manual_seed(0)
    points = topology.project(torch.randn(400, 4, 4, generator=generator, dtype=torch.float64))
    points[:, 1] = points[:, 0].roll(1, -1)
    points[:, 2] = points[0, 2]
    points[:, 3, 2:] = 0
    return topology.project(points)


def test_the_effective_rank_of_k_equal_directions_is_k() -> None:
    for k in (1, 2, 5):
        cross = torch.cat([torch.eye(6)[:k], -torch.eye(6)[:k]])
        assert math.isclose(effective_rank(3 * cross + 1), k, rel_tol=EXACT)
    assert effective_rank(torch.ones(5, 3)) == 0.0


@laws
@given(seed=st.integers(0, 2**20), rank=st.integers(1, 5), scale=st.floats(0.1, 10))
def test_an_effective_rank_is_at_most_the_rank_and_blind_to_turns_shifts_and_units(
    seed: int, rank: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right, shift = (
        torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((9, rank), (rank, 6), (6,))
    )
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    table = left @ right
    found = effective_rank(table)
    assert 1 - 1e-9 <= found <= rank + 1e-5
    assert math.isclose(effective_rank(scale * table @ turn + shift), found, rel_tol=1e-5)


def test_each_sphere_has_the_rank_and_variance_it_was_made_with() -> None:
    points, topology = points_with_faults(), parse_topology("oblique(4,4)")
    ranks, shares = effective_ranks(points, topology), variance_explained(points, topology)
    assert ranks[0] > 3.9 and math.isclose(float(ranks[1]), float(ranks[0]), rel_tol=1e-9)
    assert ranks[2] == 0 and 1.95 < ranks[3] <= 2.001
    assert math.isclose(float(shares.sum()), 1.0, rel_tol=EXACT)
    assert shares[2] <= EXACT and (shares[[0, 1, 3]] - 1 / 3).abs().max() < 0.01
    # Of uniform points every direction of S^3 has a quarter of the variance, 1.
    assert (spectra(points, topology)[0] - 0.25).abs().max() < 0.05
    for sphere in range(4):
        assert math.isclose(float(ranks[sphere]), effective_rank(points[:, sphere]), rel_tol=1e-6, abs_tol=1e-6)


def test_dead_and_duplicate_spheres_are_those_that_training_warns_of() -> None:
    topology = parse_topology("oblique(4,4)")
    points = points_with_faults()
    assert sphere_faults(points, topology) == ([2], [(0, 1)])
    warned = spheres(points[:64], topology)
    assert warned["dead spheres"].endswith("sphere 2 of 4") and warned["duplicate spheres"].endswith("0 and 1")


def test_uniformity_by_sphere_is_that_of_each_part() -> None:
    points, topology = points_with_faults(), parse_topology("oblique(4,4)")
    found = uniformity_by_sphere(points, topology)
    sphere = parse_topology("sphere(4)")
    for place in (0, 2, 3):
        assert math.isclose(float(found[place]), uniformity(points[:, place : place + 1], sphere), abs_tol=1e-6)
    assert found[0] < found[3] < found[2]


def test_cka_between_spheres_is_linear_cka_of_their_parts() -> None:
    points, topology = points_with_faults(), parse_topology("oblique(4,4)")
    found = cka_between_spheres(points, topology)
    assert torch.allclose(found, found.T) and not found[2].any()
    for one in (0, 1, 3):
        for other in (0, 1, 3):
            reference = linear_cka(points[:, one], points[:, other])
            assert math.isclose(float(found[one, other]), reference, rel_tol=1e-9)
    assert math.isclose(float(found[0, 1]), 1.0, rel_tol=1e-9) and found[0, 3] < 0.1


def paired_points() -> tuple[Tensor, Tensor, Tensor]:
    """Images and texts on Ob(4, 3) that agree on the first sphere, half of them on the second, none on the last."""
    topology = parse_topology("oblique(4,3)")
    generator = torch.Generator().manual_seed(0)
    texts = topology.project(torch.randn(40, 3, 4, generator=generator, dtype=torch.float64))
    pairs = torch.arange(200) % 40
    images = topology.project(torch.randn(200, 3, 4, generator=generator, dtype=torch.float64))
    images[:, 0] = texts[pairs, 0]
    images[:100, 1] = texts[pairs[:100], 1]
    return images, texts, pairs


def test_votes_are_those_of_a_plain_loop() -> None:
    images, texts, pairs = paired_points()
    found = votes(images, texts, parse_topology("oblique(4,3)"), pairs)
    cosines = (images[:, None] * texts[None]).sum(-1)
    whole = cosines.sum(-1).argmax(1)
    for sphere in range(3):
        choice = cosines[..., sphere].argmax(1)
        assert math.isclose(float(found.top1[sphere]), float((choice == pairs).double().mean()), rel_tol=EXACT)
        assert math.isclose(float(found.agreement[sphere]), float((choice == whole).double().mean()), rel_tol=EXACT)
    assert found.top1[0] == 1.0 and found.top1[1] > 0.5 > 0.2 > found.top1[2]
    assert math.isclose(found.whole, float((whole == pairs).double().mean()), rel_tol=EXACT)


def test_a_tie_is_no_hit() -> None:
    topology = parse_topology("sphere(2)")
    texts = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    found = votes(texts, texts, topology)
    assert math.isclose(found.whole, 1 / 3) and math.isclose(float(found.top1[0]), 1 / 3)


def test_shares_of_the_margin_are_those_of_a_plain_loop() -> None:
    images, texts, pairs = paired_points()
    found = score_shares(images, texts, parse_topology("oblique(4,3)"), pairs)
    cosines = (images[:, None] * texts[None]).sum(-1)
    mine = torch.zeros(200, 40, dtype=torch.bool).scatter_(1, pairs[:, None], True)
    margins = cosines[mine].mean(0) - cosines[~mine].mean(0)
    assert torch.allclose(found.margin, margins / margins.sum(), rtol=1e-9)
    assert found.margin[0] > found.margin[1] > 0.2 and abs(float(found.margin[2])) < 0.1


def test_spheres_that_tell_the_same_share_the_variance_of_what_they_say_together() -> None:
    """Cov(c_i, c) / Var(c) over all couples, near which a sample of 20,000 comes; by their own variance the two copies
    would have a quarter each, and not a third."""
    points, topology = points_with_faults(), parse_topology("oblique(4,4)")
    found = score_shares(points, points, topology).variance
    cosines = (points[:, None] * points[None]).sum(-1)
    centred = cosines.flatten(0, 1) - cosines.mean((0, 1))
    reference = (centred * centred.sum(1, keepdim=True)).mean(0)
    assert (found - reference / reference.sum()).abs().max() < 0.03
    assert math.isclose(float(found.sum()), 1.0, rel_tol=EXACT) and abs(float(found[2])) < EXACT


def test_a_topology_without_spheres_has_no_such_diagnostics() -> None:
    topology = parse_topology("euclidean(6)")
    points = torch.randn(5, 1, 6)
    for diagnostic in (spectra, effective_ranks, variance_explained, uniformity_by_sphere, cka_between_spheres):
        with pytest.raises(UserError, match="no product of spheres"):
            diagnostic(points, topology)
    for pairwise in (votes, score_shares):
        with pytest.raises(UserError, match="no product of spheres"):
            pairwise(points, points, topology)
    with pytest.raises(UserError, match="no product of spheres"):
        sphere_faults(points, topology)
