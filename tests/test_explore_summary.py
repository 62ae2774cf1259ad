"""All figures of a run at once: plain values, of the diagnostics themselves, for every topology."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from oblique_clip import explore, parse_topology
from oblique_clip.errors import UserError
from oblique_clip.explore import summarise
from oblique_clip.topology import Topology

SAME = 1e-9


def run_of(spec: str, images: int = 120, texts: int = 40) -> tuple[Topology, Tensor, Tensor, Tensor]:
    """Pictures about their texts, with a gap between both."""
    topology = parse_topology(spec)
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(count, topology.m, topology.n, generator=generator) for count in (texts, images, 1)]
    pairs = torch.arange(images) % texts
    pictures = draw[0][pairs] + 0.5 * draw[1] + draw[2]
    return topology, topology.project(pictures).detach(), topology.project(draw[0]).detach(), pairs


@pytest.mark.parametrize(
    "spec", ["oblique(4,3)", "oblique(4,3)/geodesic", "sphere(12)", "euclidean(12)", "lorentz(12)"]
)
def test_a_summary_is_json_of_the_same_names_for_every_topology_but_what_it_lacks(spec: str) -> None:
    topology, images, texts, pairs = run_of(spec)
    found = summarise(images, texts, topology, pairs)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    names = set(summarise(*run_of("oblique(4,3)")[1:3], *run_of("oblique(4,3)")[::3]))
    flat = {"centroid_distance", "uniformity_floor"}
    lacks = {
        "euclidean": {name for name in names if "sphere" in name} | flat,
        "lorentz": {name for name in names if "sphere" in name} | flat,
        "sphere": {"sphere_cka_images", "sphere_cka_texts"},
    }
    assert names - set(found) == lacks.get(topology.family, set()) and set(found) <= names
    assert all(len(figure) == topology.m for figure in found.values() if isinstance(figure, list))


def test_its_figures_are_those_of_the_diagnostics() -> None:
    topology, images, texts, pairs = run_of("oblique(4,3)")
    found = summarise(images, texts, topology, pairs)
    scores = explore.similarities(images, texts, topology, pairs)
    single = torch.arange(40)
    expected = {
        "images": 120,
        "alignment": explore.alignment(images, texts, topology, pairs),
        "uniformity_texts": explore.uniformity(texts, topology),
        "equilibrium_gap": explore.equilibrium_gap(images, texts, topology, pairs),
        "negative_std": float(scores.negative.std()),
        "modality_gap": explore.modality_gap(images, texts, topology),
        "top1": explore.votes(images, texts, topology, pairs).whole,
        "hubness_texts": explore.hubness(images, topology, 10, texts),
        "hubness_images": explore.hubness(texts, topology, 10, images),
        "overlap": explore.neighbourhood_overlap(images[single], texts, topology),
        "procrustes": explore.procrustes(explore.exact(images[single], topology), explore.exact(texts, topology)),
        "effective_rank_images": explore.effective_rank(explore.exact(images, topology)),
        "twonn_images": explore.intrinsic_dimension(images, topology),
        "mle_texts": explore.intrinsic_dimension(texts, topology, "mle"),
        "sphere_top1": explore.votes(images, texts, topology, pairs).top1.tolist(),
        "sphere_effective_rank_texts": explore.effective_ranks(texts, topology).tolist(),
    }
    for name, figure in expected.items():
        assert found[name] == pytest.approx(figure, rel=SAME), name


def test_closing_the_gap_mends_a_gap_that_makes_errors() -> None:
    """Texts far away to one side: all pictures but a few prefer the nearest of them."""
    topology, images, texts, pairs = run_of("sphere(12)")
    aside = topology.project(texts + 3 * torch.eye(12)[0])
    found = summarise(images, aside, topology, pairs)
    assert found["modality_gap"] > 0.8  # type: ignore[operator]
    assert found["top1_gap_closed"] > found["top1"] + 0.1  # type: ignore[operator]


def test_a_sample_bounds_images_and_keeps_the_texts_that_they_have() -> None:
    topology, images, texts, pairs = run_of("oblique(4,3)", 200, 100)
    found = summarise(images, texts, topology, pairs, sample=50)
    assert found["images"] == 50 and 25 < found["texts"] <= 50  # type: ignore[operator]
    # Every image's text is still its own: as good a match as before.
    whole = summarise(images, texts, topology, pairs)
    assert found["positive"] == pytest.approx(whole["positive"], rel=0.05)
    assert found == summarise(images, texts, topology, pairs, sample=50)
    assert found != summarise(images, texts, topology, pairs, sample=50, seed=1)


def test_homology_is_added_on_demand() -> None:
    pytest.importorskip("ripser")
    topology, images, texts, pairs = run_of("oblique(2,2)")
    without, found = (summarise(images, texts, topology, pairs, homology=on, landmarks=30) for on in (False, True))
    added = set(found) - set(without)
    assert {"bottleneck_h0", "bottleneck_h1", "entropy_h1_images", "betti_0_texts", "homology_error_images"} <= added
    same = summarise(texts, texts, topology, homology=True, landmarks=30)
    assert same["bottleneck_h0"] == same["bottleneck_h1"] == 0.0


def test_what_few_points_cannot_tell_is_left_out() -> None:
    topology, images, texts, _ = run_of("oblique(4,3)", 2, 2)
    found = summarise(images, texts, topology)
    assert "twonn_images" not in found and "positive" in found
    single = summarise(images[:1], texts[:1], topology)
    assert "equilibrium_gap" not in single and "negative" not in single and math.isfinite(single["alignment"])  # type: ignore[arg-type]


def test_a_mistake_in_what_is_given_is_said() -> None:
    topology, images, texts, pairs = run_of("oblique(4,3)")
    with pytest.raises(UserError, match="120 images and 40 texts"):
        summarise(images, texts, topology)
    with pytest.raises(UserError, match=r"shape \(N, 1, 12\)"):
        summarise(images, texts, parse_topology("sphere(12)"), pairs)
