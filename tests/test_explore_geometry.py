"""Geometry of saved points: known answers, the published formulas on one sphere, and what may not change them."""

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
from oblique_clip.explore import (
    alignment,
    centroid_distance,
    close_gap,
    distances,
    equilibrium_gap,
    exact,
    hubness,
    metric_of,
    modality_gap,
    neighbourhood_overlap,
    neighbours,
    occurrences,
    similarities,
    similarity_histogram,
    uniformity,
    uniformity_floor,
)
from oblique_clip.topology import LorentzTopology, Topology

SPHERES = ["sphere(8)", "sphere(8)/geodesic", "oblique(4,3)", "oblique(4,3)/geodesic", "oblique(2,6)/chordal"]
SPECS = [*SPHERES, "euclidean(8)", "euclidean(8)/squared", "lorentz(8)"]

EXACT = 1e-12
"""Two ways to the same float64 number."""
SQUARED = 1e-7
"""The same beside a root, where half of the digits are lost next to 0."""
LORENTZ = 1e-6
"""geoopt's hyperboloid, which clamps short lengths."""

laws = settings(max_examples=30, deadline=None, database=None)


def tolerance(topology: Topology) -> float:
    return LORENTZ if topology.family == "lorentz" else SQUARED


def random_points(topology: Topology, count: int, seed: int = 0, towards: float = 0.0) -> Tensor:
    """Points about a common direction where `towards` is above 0."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, topology.m, topology.n, generator=generator, dtype=torch.float64)
    features = features + towards * torch.randn(topology.m, topology.n, generator=generator, dtype=torch.float64)
    return topology.project(features).detach()


def with_curvature(spec: str) -> Topology:
    """Lorentz away from curvature 1, where its formulas have no factor to forget."""
    topology = parse_topology(spec)
    if isinstance(topology, LorentzTopology):
        torch.nn.init.constant_(topology.log_curvature, 0.7)
    return topology


# points


@pytest.mark.parametrize("spec", SPECS)
def test_distances_are_a_metric_that_ranks_as_the_similarity_does(spec: str) -> None:
    topology = with_curvature(spec)
    points = random_points(topology, 24)
    found = distances(points, topology)
    assert torch.equal(found, found.T) and not found.diagonal().any() and (found + torch.eye(24) > 0).all()
    assert (found[:, :, None] + found[None] - found[:, None] >= -EXACT).all()  # (i, k, j): d(i, k) + d(k, j) >= d(i, j)
    upper = torch.triu_indices(24, 24, 1)
    similarity = topology.similarity(points, points).detach()[upper[0], upper[1]]
    assert torch.equal(similarity.argsort(descending=True), found[upper[0], upper[1]].argsort())


@pytest.mark.parametrize("spec", SPECS)
def test_neighbours_are_those_of_the_sorted_distances(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they are computed a few rows at a time."""
    topology = with_curvature(spec)
    points = random_points(topology, 30)
    reference = distances(points, topology).fill_diagonal_(math.inf)
    monkeypatch.setattr("oblique_clip.explore.points.HELD", 200)
    found = neighbours(points, topology, 4)
    assert torch.equal(found.rows, reference.argsort(1)[:, :4])
    assert (found.distances - reference.sort(1).values[:, :4]).abs().max() <= tolerance(topology)


def test_two_points_a_millionth_apart_have_that_distance() -> None:
    """A pairwise chord would be off by 1e-8, and a ratio of two such distances by a hundredth."""
    topology = parse_topology("oblique(2,2)")
    angles = torch.tensor([0.0, 1e-6, 3e-6], dtype=torch.float64)
    points = torch.stack([angles.cos(), angles.sin()], 1)[:, None].repeat(1, 2, 1)
    nearest = neighbours(points, topology, 2).distances
    assert torch.allclose(nearest[0], math.sqrt(2) * angles[1:], rtol=1e-9, atol=0)


def test_what_are_no_points_is_refused() -> None:
    topology = parse_topology("oblique(4,3)")
    good = random_points(topology, 5)
    for bad, words in (
        (good.flatten(1), r"shape \(N, 3, 4\)"),
        (good[:0], "N >= 1"),
        (2 * good, "off by 1"),
        (torch.full_like(good, math.nan), "5 of 5 points hold NaN"),
    ):
        with pytest.raises(UserError, match=words):
            exact(bad, topology)
    with pytest.raises(UserError, match=r"k must lie in \[1, 4\]"):
        neighbours(good, topology, 5)
    with pytest.raises(UserError, match="5 images and 4 texts"):
        alignment(good, good[:4], topology)
    with pytest.raises(UserError, match=r"row in \[0, 3\]"):
        alignment(good, good[:4], topology, torch.tensor([0, 1, 2, 3, 4]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_saved_points_of_any_float_type_are_taken_back_to_the_manifold(dtype: torch.dtype) -> None:
    topology = parse_topology("oblique(16,4)")
    points = random_points(topology, 20)
    on = exact(points.to(dtype), topology)
    assert (on.norm(dim=-1) - 1).abs().max() <= EXACT
    assert torch.equal(exact(points.float().numpy(), topology), exact(points.float(), topology))
    assert (on - points).abs().max() <= torch.finfo(dtype).eps


# alignment and uniformity


def test_on_one_sphere_both_are_the_published_formulas() -> None:
    """Wang & Isola's own code, which runs on plain unit vectors."""
    topology = parse_topology("sphere(8)")
    x, y = random_points(topology, 40), random_points(topology, 40, seed=1)
    flat_x, flat_y = x.flatten(1), y.flatten(1)
    assert math.isclose(alignment(x, y, topology), float((flat_x - flat_y).norm(dim=1).pow(2).mean()), rel_tol=EXACT)
    assert math.isclose(alignment(x, y, topology, alpha=1), float((flat_x - flat_y).norm(dim=1).mean()), rel_tol=EXACT)
    theirs = float(torch.pdist(flat_x).pow(2).mul(-2).exp().mean().log())
    assert math.isclose(uniformity(x, topology), theirs, rel_tol=SQUARED)


@pytest.mark.parametrize("distance", ["inner", "geodesic"])
def test_on_many_spheres_both_are_those_of_the_flat_unit_vector(distance: str) -> None:
    topology, flat = parse_topology(f"oblique(4,3)/{distance}"), parse_topology("sphere(12)")
    x, y = random_points(topology, 40), random_points(topology, 40, seed=1)
    flat_x, flat_y = (parse_topology("oblique(4,3)").flat(points)[:, None] for points in (x, y))
    assert math.isclose(alignment(x, y, topology), alignment(flat_x, flat_y, flat), rel_tol=EXACT)
    assert math.isclose(uniformity(x, topology), uniformity(flat_x, flat), rel_tol=SQUARED)


def test_uniformity_does_not_depend_on_how_many_rows_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    topology = parse_topology("oblique(4,3)")
    points = random_points(topology, 40)
    whole = uniformity(points, topology)
    monkeypatch.setattr("oblique_clip.explore.points.HELD", 300)
    assert math.isclose(uniformity(points, topology), whole, rel_tol=EXACT)


def test_the_floor_on_a_circle_is_its_bessel_function() -> None:
    for t in (0.5, 2.0, 10.0):
        reference = -2 * t + math.log(torch.special.i0(torch.tensor(2 * t, dtype=torch.float64)))
        assert math.isclose(uniformity_floor(parse_topology("sphere(2)"), t), reference, rel_tol=EXACT)


@pytest.mark.parametrize("spec", ["sphere(2)", "sphere(3)", "oblique(2,2)", "oblique(3,4)"])
def test_uniform_points_have_the_uniformity_of_the_floor(spec: str) -> None:
    topology = parse_topology(spec)
    assert abs(uniformity(random_points(topology, 3000), topology) - uniformity_floor(topology)) <= 0.02


@laws
@given(
    seed=st.integers(0, 2**20),
    count=st.integers(2, 12),
    spec=st.sampled_from(["sphere(2)", "oblique(2,3)", "oblique(3,2)"]),
    towards=st.floats(0, 5),
)
def test_no_set_of_points_lies_below_the_floor(seed: int, count: int, spec: str, towards: float) -> None:
    """With each point's potential on itself, exp(0), which a mean over different points leaves out."""
    topology = parse_topology(spec)
    between = uniformity(random_points(topology, count, seed, towards), topology)
    whole = math.log((math.exp(between) * (count - 1) + 1) / count)
    assert whole >= uniformity_floor(topology) - EXACT


def test_equal_points_are_aligned_and_not_uniform() -> None:
    topology = parse_topology("oblique(4,3)")
    points = random_points(topology, 1).expand(5, -1, -1)
    assert alignment(points, points, topology) == 0.0
    assert abs(uniformity(points, topology)) <= SQUARED


# similarities


@pytest.mark.parametrize("spec", SPECS)
def test_similarities_and_their_gap_are_those_of_a_plain_loop(spec: str) -> None:
    topology = with_curvature(spec)
    images, texts, pairs = random_points(topology, 9), random_points(topology, 4, seed=1), torch.arange(9) % 4
    table = topology.similarity(images, texts).detach()
    own = [float(table[i, int(pairs[i])]) for i in range(9)]
    others = [float(table[i, j]) for i in range(9) for j in range(4) if j != pairs[i]]
    positive, negative = similarities(images, texts, topology, pairs)
    assert np.allclose(positive, own, atol=EXACT) and np.allclose(negative, others, atol=EXACT)
    low, high = topology.range
    width = high - low if math.isfinite(high - low) else 1
    gap = equilibrium_gap(images, texts, topology, pairs)
    assert math.isclose(gap, (np.mean(own) - np.mean(others)) / width, abs_tol=tolerance(topology))


@pytest.mark.parametrize("spec", SPECS)
def test_a_histogram_is_a_density_of_the_similarities(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oblique_clip.explore.points.HELD", 50)
    topology = with_curvature(spec)
    images, texts, pairs = random_points(topology, 40), random_points(topology, 8, seed=1), torch.arange(40) % 8
    edges, *densities = similarity_histogram(images, texts, topology, pairs, bins=20)
    for density, values in zip(densities, similarities(images, texts, topology, pairs), strict=True):
        reference, _ = np.histogram(values.numpy(), edges, density=True)
        assert np.allclose(density, reference, atol=EXACT)
        assert math.isclose(float((density * np.diff(edges)).sum()), 1.0, rel_tol=EXACT)


def test_a_point_compared_with_itself_falls_into_the_last_bin() -> None:
    topology = parse_topology("sphere(8)")
    points = random_points(topology, 50)
    edges, positive, _ = similarity_histogram(points, points, topology, bins=10)
    assert float(similarities(points, points, topology).positive.max()) > 1
    assert math.isclose(positive[-1] * (edges[-1] - edges[-2]), 1.0, rel_tol=EXACT)


# the modality gap


def cap(topology: Topology, angle: float, seed: int) -> Tensor:
    """A narrow cap about the point at this angle on every sphere's first great circle, with its mean just there."""
    noise = random_points(topology, 60, seed)
    around = 0.2 * torch.cat([noise, -noise])
    around[..., :2] = 0
    centre = torch.zeros(topology.m, topology.n, dtype=torch.float64)
    centre[:, 0], centre[:, 1] = math.cos(angle), math.sin(angle)
    return topology.project(centre + around)


@pytest.mark.parametrize("spec", SPHERES[:4])
@pytest.mark.parametrize("angle", [1e-3, 0.5, 1.2, 3.0])
def test_the_gap_of_two_caps_is_the_angle_between_them_on_one_sphere_or_many(spec: str, angle: float) -> None:
    topology = parse_topology(spec)
    images, texts = cap(topology, 0.0, 0), cap(topology, angle, 1)
    assert math.isclose(modality_gap(images, texts, topology), angle, rel_tol=1e-9)


@pytest.mark.parametrize("spec", SPECS)
def test_closing_the_gap_leaves_none_and_moves_each_side_as_a_whole(spec: str) -> None:
    topology = with_curvature(spec)
    images, texts = random_points(topology, 40, 1, towards=3.0), random_points(topology, 30, 2, towards=3.0)
    assert modality_gap(images, texts, topology) > 0.1
    moved = close_gap(images, texts, topology)
    assert modality_gap(*moved, topology) <= tolerance(topology)
    for before, after in zip((images, texts), moved, strict=True):
        change = distances(after, topology) - distances(before, topology)
        assert change.abs().max() <= tolerance(topology) * float(distances(before, topology).max())
    # The common mean is half way.
    alone = [modality_gap(before, after, topology) for before, after in zip((images, texts), moved, strict=True)]
    assert math.isclose(sum(alone), modality_gap(images, texts, topology), rel_tol=1e-5)


def test_the_centroid_distance_is_that_of_plain_means() -> None:
    topology = parse_topology("oblique(4,3)/geodesic")
    images, texts = random_points(topology, 40, 1, towards=1.0), random_points(topology, 30, 2, towards=1.0)
    reference = (images.flatten(1).mean(0) - texts.flatten(1).mean(0)).norm() / math.sqrt(3)
    assert math.isclose(centroid_distance(images, texts, topology), float(reference), rel_tol=EXACT)
    with pytest.raises(UserError, match="no flat form"):
        centroid_distance(*[torch.zeros(2, 1, 8)] * 2, parse_topology("euclidean(8)"))


# hubs and neighbourhoods


def test_the_centre_of_a_star_is_the_hub_of_all() -> None:
    """Of 1 point in 50 that has all occurrences, but its own, the skewness is that of a yes in 50, nearly."""
    star = torch.cat([torch.zeros(1, 1, 49), torch.eye(49)[:, None]])
    topology = parse_topology("euclidean(49)")
    counts = occurrences(star, topology, 1)
    assert int(counts[0]) == 49 and int(counts.sum()) == 50
    share = 1 / 50
    bernoulli = (1 - 2 * share) / math.sqrt(share * (1 - share))
    assert math.isclose(hubness(star, topology, 1), bernoulli, rel_tol=0.01)


def test_points_evenly_on_a_circle_have_no_hub() -> None:
    turns = torch.arange(12) * (2 * math.pi / 12)
    points = torch.stack([turns.cos(), turns.sin()], 1)[:, None]
    assert hubness(points, parse_topology("sphere(2)"), 2) == 0.0


def test_hubs_among_texts_are_counted_by_images() -> None:
    topology = parse_topology("sphere(8)")
    images, texts = random_points(topology, 30), random_points(topology, 6, 1)
    counts = occurrences(images, topology, 2, texts)
    best = (images.flatten(1) @ texts.flatten(1).T).topk(2).indices.flatten().tolist()
    assert counts.tolist() == [best.count(text) for text in range(6)]


@pytest.mark.parametrize("spec", ["sphere(8)", "oblique(4,3)"])
def test_overlap_is_whole_of_a_turned_copy_and_by_chance_of_strangers(spec: str) -> None:
    topology = parse_topology(spec)
    points = random_points(topology, 300)
    turn = torch.linalg.qr(torch.randn(topology.n, topology.n, dtype=torch.float64)).Q
    assert neighbourhood_overlap(points, points @ turn, topology, 5) == 1.0
    assert neighbourhood_overlap(points, points @ turn, topology, 5, measure="jaccard") == 1.0
    strangers = neighbourhood_overlap(points, random_points(topology, 300, 1), topology, 5)
    assert 0 < strangers < 3 * 5 / 299


def test_overlap_of_two_embeddings_counts_what_is_near_in_both() -> None:
    """Of two neighbours {1,2} {0,2} {1,0} {2,1} in one and {3,1} {3,0} {1,3} {0,1} in the other."""
    one, other = torch.tensor([0.0, 1.0, 3.0, 7.0]).view(4, 1, 1), torch.tensor([0.0, 3.0, 7.0, 1.0]).view(4, 1, 1)
    plain, squared = parse_topology("euclidean(1)"), parse_topology("euclidean(1)/squared")
    shares = [neighbourhood_overlap(one, other, plain, k, squared) for k in (1, 2, 3)]
    assert shares == [0.25, 0.5, 1.0]
    assert math.isclose(neighbourhood_overlap(one, other, plain, 2, squared, "jaccard"), 1 / 3)
    with pytest.raises(UserError, match="the same items"):
        neighbourhood_overlap(one, other[:3], plain, 1)


def test_the_metric_of_each_distance() -> None:
    assert [metric_of(parse_topology(spec)).distance for spec in SPECS] == [
        "chordal", "geodesic", "chordal", "geodesic", "chordal", "l2", "l2", "geodesic",
    ]  # fmt: skip
