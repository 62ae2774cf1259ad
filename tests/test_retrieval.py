"""Retrieval: recall as a plain loop counts it, with any number of captions an image and of images a caption."""

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oblique_clip.bench.retrieval import by_clip_benchmark, by_sorting, noisy_pairs
from oblique_clip.evaluate.retrieval import best_ranks, group_matches, retrieval
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


Pairs = list[tuple[int, int]]


def turned(pairs: Pairs) -> Pairs:
    return [(text, image) for image, text in pairs]


def recall_by_hand(kind: str, queries: list[list[int]], candidates: list[list[int]], pairs: Pairs, k: int) -> float:
    hits = 0
    for i, query in enumerate(queries):
        scores = [similarity(kind, query, candidate) for candidate in candidates]
        matches = [score for j, score in enumerate(scores) if (i, j) in pairs]
        if matches:
            before = sum(score >= max(matches) for j, score in enumerate(scores) if (i, j) not in pairs)
            hits += before < k
    return hits / len(queries)


def chance_by_hand(queries: int, candidates: int, pairs: Pairs, k: int) -> float:
    """Over every set of k candidates, the share of queries with a match in it."""
    sets = list(combinations(range(candidates), min(k, candidates)))
    return sum(any((i, j) in pairs for j in first) for i in range(queries) for first in sets) / (queries * len(sets))


points = st.lists(st.integers(-1, 1), min_size=3, max_size=3)


Case = tuple[list[list[int]], list[list[int]], Pairs]


@st.composite
def cases(draw: st.DrawFn, most: int = 10) -> Case:
    """Images, texts, and any relation between them, in any order and with repeats."""
    images = draw(st.lists(points, min_size=1, max_size=most))
    texts = draw(st.lists(points, min_size=1, max_size=most))
    pair = st.tuples(st.integers(0, len(images) - 1), st.integers(0, len(texts) - 1))
    return images, texts, draw(st.lists(pair, max_size=2 * most))


def as_points(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)[:, None]


def as_matches(pairs: Pairs) -> Tensor:
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


@laws
@given(case=cases(), kind=st.sampled_from(["inner", "squared"]), chunk=st.integers(1, 11))
def test_recall_is_that_of_a_plain_loop_whatever_the_chunk(case: Case, kind: str, chunk: int) -> None:
    images, texts, pairs = case
    found = retrieval(as_points(images), as_points(texts), as_matches(pairs), TOPOLOGIES[kind], KS, chunk)
    for k in KS:
        to_text = recall_by_hand(kind, images, texts, pairs, k)
        to_image = recall_by_hand(kind, texts, images, turned(pairs), k)
        assert found[f"image_to_text_r@{k}"] == pytest.approx(to_text, abs=EXACT)
        assert found[f"text_to_image_r@{k}"] == pytest.approx(to_image, abs=EXACT)


def ranks_by_sorting(queries: Tensor, candidates: Tensor, matches: Tensor) -> Tensor:
    """Places in rows sorted in float64, where what is equal to a match stands before it; matches do not count."""
    scores = queries.flatten(1).double() @ candidates.flatten(1).double().T
    match = torch.zeros_like(scores, dtype=torch.bool)
    match[matches[:, 0], matches[:, 1]] = True
    # Similarities of small integers are whole: half a unit puts a match behind its equals, before all others.
    order = (scores - 0.5 * match).argsort(1, descending=True)
    sorted_match = match.gather(1, order)
    first = torch.where(match.any(1), sorted_match.int().argmax(1), len(candidates))
    return first


@pytest.mark.parametrize("held", [1, 5_000, 2**25])
def test_ranks_are_the_places_in_a_sort_in_float64_ties_before_us(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("oblique_clip.evaluate.retrieval.SCORES", held)
    images, texts = (torch.randint(-2, 3, (count, 1, 3)).float() for count in (300, 700))
    groups = torch.randint(0, 200, (300,)), torch.randint(0, 200, (700,))
    matches = group_matches(*groups)
    # A row without match, one with many, and equal candidates: integers repeat.
    assert len(set(range(300)) - set(matches[:, 0].tolist())) and len(matches) > 900
    for queries, candidates, own in ((images, texts, matches), (texts, images, matches.flip(1))):
        found = best_ranks(queries, candidates, own, TOPOLOGIES["inner"])
        assert torch.equal(found, ranks_by_sorting(queries, candidates, own))


@pytest.mark.parametrize("spec", ["sphere(8)", "oblique(4,3)", "oblique(4,3)/geodesic", "euclidean(8)", "lorentz(8)"])
def test_no_more_similarities_are_held_at_once_than_said(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    topology, held = parse_topology(spec), 300
    monkeypatch.setattr("oblique_clip.evaluate.retrieval.SCORES", held)
    points = topology.project(torch.randn(2 * 37, topology.m, topology.n)).unflatten(0, (2, 37))
    matches = torch.arange(37)[:, None].expand(-1, 2)
    sizes = []
    similarity = topology.similarity

    def recorded(x: Tensor, y: Tensor) -> Tensor:
        sizes.append(len(x) * len(y) * (topology.m if "geodesic" in spec else 1))
        return similarity(x, y)

    at_once = retrieval(*points, matches, topology, chunk=37)
    monkeypatch.setattr(topology, "similarity", recorded)
    assert retrieval(*points, matches, topology) == at_once
    assert held / 2 < max(sizes) <= held and len(sizes) > 2


def test_similarities_that_are_no_numbers_count_against_us_wherever_they_stand() -> None:
    topology = TOPOLOGIES["inner"]
    texts = torch.tensor([[3.0, 0, 0], [2, 0, 0], [1, 0, 0], [torch.nan, 0, 0]])[:, None]
    query = torch.tensor([[[1.0, 0, 0]]])
    # The best of two matches is first, yet a candidate is no number: it stands before.
    assert best_ranks(query, texts, torch.tensor([[0, 0], [0, 2]]), topology).tolist() == [1]
    # A match that is no number hides the others': every candidate that is no match stands before.
    assert best_ranks(query, texts, torch.tensor([[0, 3], [0, 0]]), topology).tolist() == [2]


@pytest.mark.parametrize("peer", [by_sorting, by_clip_benchmark])
def test_without_ties_recall_is_that_of_the_peers(peer: Callable[[Tensor, Tensor], dict[str, float]]) -> None:
    if peer is by_clip_benchmark:
        pytest.importorskip("clip_benchmark")
    images, texts, matches = noisy_pairs(400)
    found = retrieval(images, texts, matches, parse_topology("sphere(512)"), KS)
    theirs = peer(images, texts)
    assert theirs == pytest.approx({name: found[name] for name in theirs}, abs=EXACT)
    assert 0.2 < found["image_to_text_r@1"] < found["image_to_text_r@10"] < 1


@laws
@given(case=cases(most=7))
def test_chance_is_the_share_of_all_sets_of_k_candidates_that_hold_a_match(case: Case) -> None:
    images, texts, pairs = case
    found = retrieval(as_points(images), as_points(texts), as_matches(pairs), TOPOLOGIES["inner"], KS)
    for k in KS:
        to_text = chance_by_hand(len(images), len(texts), pairs, k)
        to_image = chance_by_hand(len(texts), len(images), turned(pairs), k)
        assert found[f"image_to_text_chance_r@{k}"] == pytest.approx(to_text, abs=EXACT)
        assert found[f"text_to_image_chance_r@{k}"] == pytest.approx(to_image, abs=EXACT)


def test_random_points_reach_chance_on_average() -> None:
    torch.manual_seed(0)
    queries, candidates, topology = 4000, 60, parse_topology("oblique(4,3)")
    points = [topology.project(torch.randn(count, 3, 4)) for count in (queries, candidates)]
    groups = [torch.randint(0, 30, (count,)) for count in (queries, candidates)]
    found = retrieval(*points, group_matches(*groups), topology)
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
    found = retrieval(images, texts, group_matches(image_groups, text_groups), topology)
    assert found["image_to_text_r@1"] == found["text_to_image_r@1"] == 1.0
    assert found["image_to_text_chance_r@1"] == found["text_to_image_chance_r@1"] == 0.5


def test_a_collapsed_or_diverged_model_finds_nothing() -> None:
    topology = parse_topology("sphere(3)")
    diagonal = torch.arange(20)[:, None].expand(20, 2)
    for value in (1.0, torch.nan):
        points = torch.full((20, 1, 3), value)
        found = retrieval(points, points, diagonal, topology)
        assert all(found[f"{side}_r@{k}"] == 0 for side in ("image_to_text", "text_to_image") for k in (1, 5, 10))


def test_a_query_without_a_match_is_a_miss_even_where_k_exceeds_the_candidates() -> None:
    points, topology = torch.eye(3)[:, None], parse_topology("sphere(3)")
    found = retrieval(points, points, torch.tensor([[0, 0]]), topology)
    assert found["image_to_text_r@1"] == found["image_to_text_r@10"] == pytest.approx(1 / 3)
    assert found["image_to_text_chance_r@10"] == pytest.approx(1 / 3)
    ranks = best_ranks(points, points, torch.empty(0, 2, dtype=torch.int64), topology, 2)
    assert ranks.tolist() == [3, 3, 3]


def test_a_relation_that_no_groups_express_matches_its_pairs_alone() -> None:
    """Image 0 has captions a and b, image 1 has b and c: b is right for both, c is wrong for image 0."""
    topology = parse_topology("euclidean(1)/squared")
    rows = [[0], [4]], [[7], [1], [3]]
    pairs = [(0, 0), (0, 1), (1, 1), (1, 2)]
    images, texts = (as_points(side) for side in rows)
    found = retrieval(images, texts, as_matches(pairs), topology, (1, 2))
    assert found["image_to_text_r@1"] == recall_by_hand("squared", *rows, pairs, 1) == 1.0
    assert found["text_to_image_r@1"] == recall_by_hand("squared", *rows[::-1], turned(pairs), 1) == 2 / 3
    assert found["text_to_image_r@2"] == 1.0
    assert found["image_to_text_chance_r@1"] == pytest.approx(2 / 3, abs=EXACT)
    assert found["text_to_image_chance_r@1"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3, abs=EXACT)


sides = st.lists(st.sampled_from([-(2**62), -1, 0, 3, 2**62]), max_size=10)


@laws
@given(image_groups=sides, text_groups=sides)
def test_groups_of_any_integers_match_where_they_are_equal(image_groups: list[int], text_groups: list[int]) -> None:
    found = group_matches(*(torch.tensor(side, dtype=torch.int64) for side in (image_groups, text_groups)))
    by_hand = [(i, j) for i, own in enumerate(image_groups) for j, other in enumerate(text_groups) if own == other]
    assert found.shape == (len(by_hand), 2) and sorted(map(tuple, found.tolist())) == by_hand


def test_ranks_of_half_precision_embeddings_are_counted_exactly() -> None:
    """Counted in bfloat16 itself, sums beyond 256 would be rounded."""
    topology = parse_topology("sphere(16)")
    points = topology.project(torch.randn(2, 600, 1, 16)).bfloat16()
    scores = topology.similarity(*points)
    matches = torch.arange(600)[:, None].expand(-1, 2)
    expected = (scores >= scores.diagonal()[:, None]).sum(1) - 1
    assert torch.equal(best_ranks(*points, matches, topology), expected)
