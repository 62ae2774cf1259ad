"""Image-text retrieval: recall@k both ways, with any number of captions an image and images a caption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..topology import Topology

KS = (1, 5, 10)


@torch.no_grad()
def retrieval(
    image_points: Tensor,
    text_points: Tensor,
    image_groups: Tensor,
    text_groups: Tensor,
    topology: Topology,
    ks: Sequence[int] = KS,
    chunk: int = 1024,
) -> dict[str, float]:
    """recall@k in [0, 1]: the share of queries with a match among the k most similar candidates.

    An image and a text match where their groups are equal. A candidate that is no match but exactly as similar as the
    best match counts as ranked before it, so ties never help; nor do similarities that are no numbers. A query without
    any match is a miss for every k.

    Args:
        image_points (N, ...), text_points (M, ...): points of `topology`.
        image_groups (N,), text_groups (M,): integers.

    Returns:
        `image_to_text_r@k` and `text_to_image_r@k`, with `*_chance_r@k` for a random order.
    """
    figures: dict[str, float] = {}
    sides = {
        "image_to_text": (image_points, text_points, image_groups, text_groups),
        "text_to_image": (text_points, image_points, text_groups, image_groups),
    }
    for name, (queries, candidates, query_groups, candidate_groups) in sides.items():
        ranks = best_ranks(queries, candidates, query_groups, candidate_groups, topology, chunk)
        matches = _count(query_groups, candidate_groups)
        for k in ks:
            figures[f"{name}_r@{k}"] = ((ranks < k) & (matches > 0)).double().mean().item()
            figures[f"{name}_chance_r@{k}"] = _chance(matches, len(candidates), k)
    return figures


def best_ranks(
    queries: Tensor, candidates: Tensor, query_groups: Tensor, candidate_groups: Tensor, topology: Topology, chunk: int
) -> Tensor:
    """How many candidates stand before each query's best match, (N,); all of them where a query has no match."""
    ranks = []
    for rows in torch.arange(len(queries)).split(chunk):
        scores = topology.similarity(queries[rows], candidates)
        match = query_groups[rows, None] == candidate_groups
        best = scores.masked_fill(~match, -torch.inf).amax(1, keepdim=True)
        ranks.append((~(scores < best) & ~match).sum(1))
    return torch.cat(ranks)


def _count(queries: Tensor, candidates: Tensor) -> Tensor:
    """How many of `candidates` equal each of `queries`."""
    ordered = candidates.sort().values
    return torch.searchsorted(ordered, queries, right=True) - torch.searchsorted(ordered, queries)


def _chance(matches: Tensor, candidates: int, k: int) -> float:
    """Expected recall@k of a random order: 1 - C(n - p, k) / C(n, k) for p matches among n."""
    miss = torch.ones(len(matches), dtype=torch.float64)
    for i in range(min(k, candidates)):
        miss *= (candidates - matches - i).clamp(min=0).double() / (candidates - i)
    return (1 - miss).mean().item()
