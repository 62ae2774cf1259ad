"""The two contrastive losses, over any topology.

With logits l_ij = scale * similarity(x_i, y_j) + bias for B images x and B captions y, and target weights T_ij:

- `info_nce` (van den Oord et al. 2018; symmetric as in Radford et al. 2021, figure 3):
  -1/(2B) sum_ij T_ij [log softmax_j(l_i.)_j + log softmax_i(l_.j)_i]
- `sigmoid_loss` (Zhai et al. 2023, equation 1): -1/B sum_ij log sigmoid(z_ij l_ij), z_ij = +1 for positives, -1 else.

T is the identity, as in CLIP, or, where `groups` says which rows bear the same caption, 1/|group| on every pair within
a group (soft targets): exact duplicates are then positives of each other instead of hidden label noise.

Large batches are scored in tiles of `tile` x `tile` logits, which are forgotten and computed again in the backward pass
(as in Inf-CL, arXiv 2410.17243): the same numbers, in memory that grows with B instead of B squared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .errors import UserError
from .topology import Topology

# Up to 64 MiB of float32 logits are kept whole; beyond, tiles of 16 MiB.
DENSE_UP_TO = 4096
USUAL_TILE = 2048


def info_nce(
    image_points: Tensor,
    text_points: Tensor,
    topology: Topology,
    scale: Tensor | float,
    *,
    bias: Tensor | None = None,
    groups: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:
    """Symmetric InfoNCE of B pairs, in nats; row i of both is a pair.

    Args:
        image_points, text_points: (B, *topology.point_shape).
        scale: 1/tau, > 0.
        bias: added to every logit; cancels in both softmaxes.
        groups: (B,) integers, equal where captions are; None makes each row its own group.
        tile: side of a tile, >= 1; None computes up to `DENSE_UP_TO` pairs in one piece and more in `USUAL_TILE`.

    Raises:
        UserError: for a tile below 1.
    """
    side = _tile_side(len(image_points), tile)
    if side < len(image_points):
        return _tiled_info_nce(image_points, text_points, topology, scale, bias, groups, side)
    logits = _logits(image_points, text_points, topology, scale, bias)
    if groups is None:
        rows = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
    same = _same(groups, groups).to(logits.dtype)
    targets = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def sigmoid_loss(
    image_points: Tensor,
    text_points: Tensor,
    topology: Topology,
    scale: Tensor | float,
    *,
    bias: Tensor | None = None,
    groups: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:
    """SigLIP's pairwise loss of B pairs, in nats a row; arguments as `info_nce`."""

    def tile_loss(x: Tensor, y: Tensor, own: Tensor, other: Tensor) -> Tensor:
        logits = _logits(x, y, topology, scale, bias)
        signs = 2 * _same(own, other).to(logits.dtype) - 1
        return -F.logsigmoid(signs * logits).sum()

    groups = torch.arange(len(image_points), device=image_points.device) if groups is None else groups
    side = _tile_side(len(image_points), tile)
    if side >= len(image_points):
        return tile_loss(image_points, text_points, groups, groups) / len(image_points)
    parts = [part for _, _, part in _tiles(tile_loss, image_points, text_points, groups, side)]
    return torch.stack(parts).sum() / len(image_points)


LOSSES = {"info_nce": info_nce, "sigmoid": sigmoid_loss}


def _logits(x: Tensor, y: Tensor, topology: Topology, scale: Tensor | float, bias: Tensor | None) -> Tensor:
    logits = scale * topology.similarity(x, y)
    return logits if bias is None else logits + bias


def _same(groups: Tensor, others: Tensor) -> Tensor:
    return groups[:, None] == others[None, :]


def _tile_side(batch: int, tile: int | None) -> int:
    if tile is None:
        return batch if batch <= DENSE_UP_TO else USUAL_TILE
    if tile < 1:
        raise UserError(f"the side of a tile must be at least 1, not {tile}")
    return tile


def _tiles(
    function: Callable[..., Tensor], x: Tensor, y: Tensor, groups: Tensor, side: int
) -> Iterator[tuple[int, int, Tensor]]:
    """Place (i, j) and `function(x_i, y_j, groups_i, groups_j)` of every tile, computed again in the backward pass."""
    # One split for all tiles: the gradients of a block add up before they are put together, in memory of B once.
    blocks = list(zip(x.split(side), groups.split(side), strict=True))
    for j, (y_block, other) in enumerate(zip(y.split(side), groups.split(side), strict=True)):
        for i, (x_block, own) in enumerate(blocks):
            yield (
                i,
                j,
                checkpoint(function, x_block, y_block, own, other, use_reentrant=False, preserve_rng_state=False),
            )


def _tiled_info_nce(
    x: Tensor,
    y: Tensor,
    topology: Topology,
    scale: Tensor | float,
    bias: Tensor | None,
    groups: Tensor | None,
    side: int,
) -> Tensor:
    def statistics(x: Tensor, y: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """Log-sums of a tile's rows and columns, and its sums of positive logits a row, side by side."""
        logits = _logits(x, y, topology, scale, bias)
        positive = logits.masked_fill(~_same(own, other), 0).sum(1)
        return torch.cat([logits.logsumexp(1), logits.logsumexp(0), positive])

    groups = torch.arange(len(x), device=x.device) if groups is None else groups
    count = -(-len(x) // side)
    rows: list[list[Tensor]] = [[] for _ in range(count)]
    columns: list[list[Tensor]] = [[] for _ in range(count)]
    positives: list[list[Tensor]] = [[] for _ in range(count)]
    for i, j, part in _tiles(statistics, x, y, groups, side):
        height, width = (min(side, len(x) - k * side) for k in (i, j))
        row, column, positive = part.split([height, width, height])
        rows[i].append(row)
        columns[j].append(column)
        positives[i].append(positive)
    row_sums = torch.cat([torch.stack(parts).logsumexp(0) for parts in rows])
    column_sums = torch.cat([torch.stack(parts).logsumexp(0) for parts in columns])
    # Targets are symmetric, so both directions weigh the same logits: each row by one over its group.
    _, place, sizes = groups.unique(return_inverse=True, return_counts=True)
    positive_means = torch.cat([torch.stack(parts).sum(0) for parts in positives]) / sizes[place]
    return (row_sums + column_sums - 2 * positive_means).mean() / 2
