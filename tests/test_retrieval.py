"""Retrieval: recall as a plain loop counts it, with any number of captions an image and of images a caption."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oblique_clip.evaluate.retrieval import best_ranks, retrieval
from oblique_clip.topology import parse_topology

EXACT = 1e-12
"""For the same sum of a few float64 numbers taken in another order."""
SAMPLED = 4
"""Standard errors that a simulation may stray from its expectation."""

# Inner products and squared distances of small integers are exact in float32, and often equal.
TOPOLOGIES = {"inner": parse_topology("sphere(3)"), "squared": parse_topology("euclidean(3)/squared")}
KS = (1, 2, 5, 10)

laws = settings(max_examples=100, deadline=None, database=None)


def similarity(kind: str, x: list[int], y: list[int]) -> int:
    if kind == "inner":
        return sum(a * b for a, b in zip(x, y, strict=True))
    return -sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def recall_by_hand(
    kind: str, queries: list[list[int]], candidates: list[list[int]], own: list[int], theirs: list[int], k: int
) -> float:
    hits = 0
    for query, group in zip(queries, own, strict=True):
        scores = [similarity(kind, query, candidate) for candidate in candidates]
        matches = [score for score, other in zip(scores, theirs, strict=True) if other == group]
        if matches:
            before = sum(s >= max(matches) for s, other in zip(scores, theirs, strict=True) if other != group)
            hits += before < k
    return hits / len(queries)


def chance_by_hand(own: list[int], theirs: list[int], k: int) -> float:
    """Over every set of k candidates, the share of queries with a match in it."""
    sets = list(combinations(theirs, min(k, len(theirs))))
    return sum(group in first for group in own for first in sets) / (len(own) * len(sets))


points = st.lists(st.integers(-1, 1), min_size=3, max_size=3)


@st.composite
def cases(draw: st.DrawFn, most: int = 10) -> tuple[list[list[int]], list[list[int]], list[int], list[int]]:
    images = draw(st.lists(points, min_size=1, max_size=most))
    texts = draw(st.lists(points, min_size=1, max_size=most))
    groups = [st.lists(st.integers(0, 4), min_size=len(side), max_size=len(side)) for side in (images, texts)]
    return images, texts, draw(groups[0]), draw(groups[1])


def as_points(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)[:, None]


@laws
@given(case=cases(), kind=st.sampled_from(["inner", "squared"]), chunk=st.integers(1, 11))
def test_recall_is_that_of_a_plain_loop_whatever_the_chunk(
    case: tuple[list[list[int]], list[list[int]], list[int], list[int]], kind: str, chunk: int
) -> None:
    images, texts, image_groups, text_groups = case
    found = retrieval(
        as_points(images), as_points(texts), torch.tensor(image_groups), torch.tensor(text_groups),
        TOPOLOGIES[kind], KS, chunk,
    )  # fmt: skip
    for k in KS:
        to_text = recall_by_hand(kind, images, texts, image_groups, text_groups, k)
        to_image = recall_by_hand(kind, texts, images, text_groups, image_groups, k)
        assert found[f"image_to_text_r@{k}"] == pytest.approx(to_text, abs=EXACT)
        assert found[f"text_to_image_r@{k}"] == pytest.approx(to_image, abs=EXACT)


@laws
@given(case=cases(most=7))
def test_chance_is_the_share_of_all_sets_of_k_candidates_that_hold_a_match(
    case: tuple[list[list[int]], list[list[int]], list[int], list[int]],
) -> None:
    images, texts, image_groups, text_groups = case
    found = retrieval(
        as_points(images), as_points(texts), torch.tensor(image_groups), torch.tensor(text_groups),
        TOPOLOGIES["inner"], KS,
    )  # fmt: skip
    for k in KS:
        to_text, to_image = chance_by_hand(image_groups, text_groups, k), chance_by_hand(text_groups, image_groups, k)
        assert found[f"image_to_text_chance_r@{k}"] == pytest.approx(to_text, abs=EXACT)
        assert found[f"text_to_image_chance_r@{k}"] == pytest.approx(to_image, abs=EXACT)


def test_random_points_reach_chance_on_average() -> None:
    torch.manual_seed(0)
    queries, candidates, topology = 4000, 60, parse_topology("oblique(4,3)")
    points = [topology.project(torch.randn(count, 3, 4)) for count in (queries, candidates)]
    groups = [torch.randint(0, 30, (count,)) for count in (queries, candidates)]
    found = retrieval(*points, *groups, topology)
    for k in (1, 5, 10):
        chance = found[f"image_to_text_chance_r@{k}"]
        # Queries share their candidates, and so their luck: at most as many independent draws as candidates.
        assert abs(found[f"image_to_text_r@{k}"] - chance) <= SAMPLED * (chance * (1 - chance) / candidates) ** 0.5
        assert 0 < chance < 1


def test_several_captions_of_an_image_do_not_stand_in_each_others_way() -> None:
    """Its five captions are the five nearest: one hit at rank 1, and each caption finds its image first."""
    topology = parse_topology("euclidean(1)/squared")
    images, image_groups = torch.tensor([[[0.0]], [[100.0]]]), torch.tensor([7, 8])
    texts = torch.tensor([1.0, 2, 3, 4, 5, 101, 102, 103, 104, 105]).view(-1, 1, 1)
    text_groups = torch.tensor([7] * 5 + [8] * 5)
    found = retrieval(images, texts, image_groups, text_groups, topology)
    assert found["image_to_text_r@1"] == found["text_to_image_r@1"] == 1.0
    assert found["image_to_text_chance_r@1"] == found["text_to_image_chance_r@1"] == 0.5


def test_a_collapsed_or_diverged_model_finds_nothing() -> None:
    topology = parse_topology("sphere(3)")
    groups = torch.arange(20)
    for value in (1.0, torch.nan):
        points = torch.full((20, 1, 3), value)
        found = retrieval(points, points, groups, groups, topology)
        assert all(found[f"{side}_r@{k}"] == 0 for side in ("image_to_text", "text_to_image") for k in (1, 5, 10))


def test_a_query_without_a_match_is_a_miss_even_where_k_exceeds_the_candidates() -> None:
    points, topology = torch.eye(3)[:, None], parse_topology("sphere(3)")
    found = retrieval(points, points, torch.tensor([0, 1, 2]), torch.tensor([0, 8, 9]), topology)
    assert found["image_to_text_r@1"] == found["image_to_text_r@10"] == pytest.approx(1 / 3)
    assert found["image_to_text_chance_r@10"] == pytest.approx(1 / 3)
    ranks = best_ranks(points, points, torch.tensor([5, 6, 7]), torch.tensor([0, 8, 9]), topology, 2)
    assert ranks.tolist() == [3, 3, 3]


def test_groups_may_be_any_integers() -> None:
    torch.manual_seed(0)
    topology = parse_topology("oblique(4,3)")
    points = topology.project(torch.randn(40, 3, 4)), topology.project(torch.randn(30, 3, 4))
    groups = torch.randint(0, 9, (40,)), torch.randint(0, 9, (30,))
    names = torch.randint(-(2**62), 2**62, (9,))
    assert retrieval(*points, *groups, topology) == retrieval(*points, *(names[g] for g in groups), topology)
