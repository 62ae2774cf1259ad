"""Image-text retrieval: recall@k both ways, with any number of captions an image and images a caption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..topology import Topology

KS = (1, 5, 10)
SCORES = 2**25
"""Similarities held at once: 128 MiB in float32, and a few times that while a distance is made of inner products."""


@torch.no_grad()
def retrieval(
    image_points: Tensor,
    text_points: Tensor,
    matches: Tensor,
    topology: Topology,
    ks: Sequence[int] = KS,
    chunk: int | None = None,
) -> dict[str, float]:
    """recall@k in [0, 1]: the share of queries with a match among the k most similar candidates.

    A candidate that is no match but exactly as similar as the best match counts as ranked before it, so ties never
    help; nor do similarities that are no numbers. A query without any match is a miss for every k.

    Args:
        image_points: (N, *point_shape).
        text_points: (M, *point_shape).
        matches: (P, 2), int64, pairs of an image and a text that match, in any order and number; repeats count once.

    Returns:
        `image_to_text_r@k` and `text_to_image_r@k`, with `*_chance_r@k` for a random order.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.evaluate.retrieval import retrieval
        >>> topology = parse_topology("sphere(2)")
        >>> images = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> texts = topology.project(torch.tensor([[[1.0, 0.1]], [[0.1, 1.0]], [[1.0, 0.2]]]))
        >>> matches = torch.tensor([[0, 0], [1, 1], [1, 2]])  # two captions for the second image
        >>> figures = retrieval(images, texts, matches, topology, ks=(1,))
        >>> {name: round(value, 3) for name, value in figures.items()}
        {'image_to_text_r@1': 1.0, 'image_to_text_chance_r@1': 0.5, 'text_to_image_r@1': 0.667,
        'text_to_image_chance_r@1': 0.5}
    """
    figures: dict[str, float] = {}
    matches = matches.to(image_points.device).unique(dim=0)
    sides = {
        "image_to_text": (image_points, text_points, matches),
        "text_to_image": (text_points, image_points, matches.flip(1)),
    }
    for name, (queries, candidates, pairs) in sides.items():
        ranks = best_ranks(queries, candidates, pairs, topology, chunk)
        count = torch.bincount(pairs[:, 0], minlength=len(queries))
        for k in ks:
            figures[f"{name}_r@{k}"] = ((ranks < k) & (count > 0)).cpu().double().mean().item()
            figures[f"{name}_chance_r@{k}"] = _chance(count, len(candidates), k)
    return figures


def best_ranks(
    queries: Tensor, candidates: Tensor, matches: Tensor, topology: Topology, chunk: int | None = None
) -> Tensor:
    """How many candidates stand before each query's best match, (N,); all of them where a query has no match.

    Args:
        matches: (P, 2), pairs of a query and a candidate, no pair twice.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.evaluate.retrieval import best_ranks
        >>> topology = parse_topology("sphere(2)")
        >>> texts = topology.project(torch.tensor([[[1.0, 0.1]], [[1.0, 0.2]]]))
        >>> images = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> best_ranks(texts, images, torch.tensor([[0, 0], [1, 1]]), topology).tolist()
        [0, 1]
    """
    held = len(candidates) * topology.held_a_pair
    chunk = chunk or max(1, SCORES // max(1, held))
    matches = matches[matches[:, 0].argsort()]
    starts = range(0, len(queries), chunk)
    ends = torch.searchsorted(matches[:, 0].contiguous(), torch.tensor(starts, device=matches.device) + chunk)
    ranks = []
    for start, own_matches in zip(starts, matches.tensor_split(ends[:-1].cpu()), strict=True):
        scores = topology.similarity(queries[start : start + chunk], candidates)
        rows, columns = own_matches.unbind(1)
        rows = rows - start
        own = scores[rows, columns]
        best = scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, rows, own, "amax")
        # The best match and those equal to it do not stand before it. No number is below, or above, one that is none.
        matched = torch.bincount(rows[~(own < best[rows])], minlength=len(scores))
        # In place, as ones and zeros whose sum is exact in float32 up to 2**24 candidates.
        below = scores.lt_(best[:, None]).sum(1, dtype=torch.float32).long()
        ranks.append(len(candidates) - below - matched)
    return torch.cat(ranks)


def group_matches(image_groups: Tensor, text_groups: Tensor) -> Tensor:
    """Pairs (P, 2) of an image and a text whose groups, any integers (N,) and (M,), are equal.

    Examples:
        >>> import torch
        >>> from oblique_clip.evaluate.retrieval import group_matches
        >>> group_matches(torch.tensor([7, 9]), torch.tensor([9, 7, 9])).tolist()
        [[0, 1], [1, 0], [1, 2]]
    """
    ordered, order = text_groups.sort()
    first = torch.searchsorted(ordered, image_groups)
    count = torch.searchsorted(ordered, image_groups, right=True) - first
    images = torch.arange(len(image_groups), device=count.device).repeat_interleave(count)
    # Numbers 0, 1, ... within each image's run of equal groups.
    within = torch.arange(len(images), device=count.device) - (count.cumsum(0) - count)[images]
    return torch.stack([images, order[first[images] + within]], 1)


def _chance(matches: Tensor, candidates: int, k: int) -> float:
    """Expected recall@k of a random order: 1 - C(n - p, k) / C(n, k) for p matches among n."""
    matches = matches.cpu()  # float64, which not every device has
    miss = torch.ones(len(matches), dtype=torch.float64)
    for i in range(min(k, candidates)):
        miss *= (candidates - matches - i).clamp(min=0).double() / (candidates - i)
    return (1 - miss).mean().item()
