"""The two contrastive losses, over any topology.

With logits l_ij = scale * similarity(x_i, y_j) + bias for B images x and B captions y, and target weights T_ij:

- `info_nce` (van den Oord et al. 2018; symmetric as in Radford et al. 2021, figure 3):
  -1/(2B) sum_ij T_ij [log softmax_j(l_i.)_j + log softmax_i(l_.j)_i]
- `sigmoid_loss` (Zhai et al. 2023, equation 1): -1/B sum_ij log sigmoid(z_ij l_ij), z_ij = +1 for positives, -1 else.

T is the identity, as in CLIP, or, where `groups` says which rows bear the same caption, 1/|group| on every pair within
a group (soft targets): exact duplicates are then positives of each other instead of hidden label noise.

Logits are scored in tiles of `tile` x `tile`, used and forgotten (as in Inf-CL, arXiv 2410.17243): the same numbers, in
memory that grows with B instead of B squared. With [ij] = 1 for positives, the slopes of the losses are

    info_nce: (softmax_j(l_i.)_j + softmax_i(l_.j)_i - 2 T_ij) / (2B)        sigmoid: (sigmoid(l_ij) - [ij]) / B

InfoNCE's need the sums of all rows and columns, so its tiles are scored twice, once for the sums and once for the
slopes: four matrix products. The sigmoid's need their own tile only, and a batch of one tile keeps it: three products.
The gradients are ready when the value is; the backward pass only scales them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError
from .topology import Topology

# Numbers in one temporary of a similarity. Up to 16 MiB of float32 a batch is one tile, which is scored once. Tiles are
# of 4 MiB on the CPU, whose caches hold them, and of 64 MiB elsewhere, which keep a GPU busy.
WHOLE = 2**22
CPU_TILE = 2**20
GPU_TILE = 2**24


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
        image_points: (B, *topology.point_shape).
        text_points: the same, row by row the image's caption.
        scale: 1/tau, > 0.
        bias: added to every logit; cancels in both softmaxes.
        groups: (B,) integers, equal where captions are; None makes each row its own group.
        tile: side of a tile, >= 1; None chooses it from the batch and the memory that a similarity takes.

    Raises:
        UserError: for a tile below 1, or where images, captions and groups are not of one number.
        RuntimeError: where second derivatives are asked for.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.loss import info_nce
        >>> topology = parse_topology("sphere(2)")
        >>> points = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> round(info_nce(points, points, topology, scale=1.0).item(), 4)  # log(1 + 1/e)
        0.3133
        >>> round(info_nce(points, points.flip(0), topology, scale=1.0).item(), 4)  # captions exchanged
        1.3133
        >>> round(info_nce(points, points, topology, scale=1.0, tile=1).item(), 4)  # in less memory
        0.3133
        >>> same_caption = torch.tensor([7, 7])
        >>> round(info_nce(points, points, topology, scale=1.0, groups=same_caption).item(), 4)
        0.8133
    """
    _check_counts(image_points, text_points, groups)
    return _tiled(_InfoNCE(_Positives(groups), image_points), image_points, text_points, topology, scale, bias, tile)


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
    """SigLIP's pairwise loss of B pairs, in nats a row; arguments as `info_nce`.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.loss import sigmoid_loss
        >>> topology = parse_topology("sphere(2)")
        >>> points = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> scale, bias = topology.initial_scale("sigmoid"), torch.tensor(topology.initial_bias())
        >>> round(sigmoid_loss(points, points, topology, scale, bias=bias).item(), 4)
        0.6932
    """
    _check_counts(image_points, text_points, groups)
    return _tiled(_Sigmoid(_Positives(groups), image_points), image_points, text_points, topology, scale, bias, tile)


LOSSES = {"info_nce": info_nce, "sigmoid": sigmoid_loss}


class _Tile(NamedTuple):
    """Logits of the images `rows` with the captions `columns`, and the blocks of points they come from."""

    rows: slice
    columns: slice
    x: Tensor
    y: Tensor
    logits: Tensor


class _Positives:
    """Which pairs belong together."""

    def __init__(self, groups: Tensor | None) -> None:
        self.groups = groups

    def mask(self, tile: _Tile) -> Tensor | None:
        """True where a pair of the tile is positive; None where no pair can be."""
        if self.groups is not None:
            return self.groups[tile.rows, None] == self.groups[tile.columns]
        if tile.rows != tile.columns:
            return None
        return torch.eye(len(tile.x), dtype=torch.bool, device=tile.x.device)

    def weights(self, like: Tensor) -> Tensor:
        """1/|group| of every row, as in T."""
        if self.groups is None:
            return like.new_ones(len(like))
        # Not by `unique`, which would wait for a GPU to count its groups.
        ordered = self.groups.sort().values
        sizes = torch.searchsorted(ordered, self.groups, right=True) - torch.searchsorted(ordered, self.groups)
        return sizes.to(like.dtype).reciprocal()


class _Rule(Protocol):
    """One loss, a tile at a time."""

    needs_all: bool
    """Whether a slope is known only when every tile has been watched."""
    share: float
    """Factor of every slope, left out of `slope`."""

    def watch(self, tile: _Tile) -> None:
        """Add a tile to the value; its logits stay as they are."""

    def slope(self, tile: _Tile) -> Tensor:
        """The loss's derivative by every logit, over `share`; it may take the place of the logits."""

    def value(self) -> Tensor:
        """The loss of all tiles watched."""


class _InfoNCE:
    needs_all = True

    def __init__(self, positives: _Positives, points: Tensor) -> None:
        self.positives, self.weights = positives, positives.weights(points)
        # Largest logit, and sum of exp(logit - largest), of every row and of every column.
        self.rows, self.columns = (
            (torch.full_like(self.weights, -math.inf), torch.zeros_like(self.weights)) for _ in range(2)
        )
        self.positive = torch.zeros_like(self.weights)
        self.share = 1 / (2 * len(points))

    def watch(self, tile: _Tile) -> None:
        for (most, sums), part, axis in ((self.rows, tile.rows, 1), (self.columns, tile.columns, 0)):
            before = most[part].clone()
            torch.maximum(before, tile.logits.amax(axis), out=most[part])
            sums[part] *= (before - most[part]).exp_()
            sums[part] += _exp_(tile.logits - most[part].unsqueeze(axis)).sum(axis)
        if (mask := self.positives.mask(tile)) is not None:
            # Targets are symmetric: both directions weigh the same logits.
            self.positive[tile.rows] += torch.where(mask, tile.logits, 0).sum(1) * self.weights[tile.rows]

    def slope(self, tile: _Tile) -> Tensor:
        # Not exp(l - log-sum), whose rounding grows with the logits.
        (row_most, row_sums), (column_most, column_sums) = self.rows, self.columns
        slope = _exp_(tile.logits - row_most[tile.rows, None]).div_(row_sums[tile.rows, None])
        slope += _exp_(tile.logits.sub_(column_most[tile.columns])).div_(column_sums[tile.columns])
        mask = self.positives.mask(tile)
        return slope if mask is None else slope.sub_(torch.where(mask, 2 * self.weights[tile.rows, None], 0))

    def value(self) -> Tensor:
        (row_most, row_sums), (column_most, column_sums) = self.rows, self.columns
        # The largest logit often is the positive: so the difference is taken before anything is added to it.
        nats = (row_most - self.positive) + row_sums.log() + (column_most - self.positive) + column_sums.log()
        return nats.mean() / 2


class _Sigmoid:
    needs_all = False

    def __init__(self, positives: _Positives, points: Tensor) -> None:
        self.positives = positives
        self.total = points.new_zeros(())
        self.share = 1 / len(points)

    def watch(self, tile: _Tile) -> None:
        mask = self.positives.mask(tile)
        signed = tile.logits if mask is None else torch.where(mask, -tile.logits, tile.logits)
        # -log sigmoid(-l); beyond the threshold, exp(-40) below it in float64, it is taken to be l.
        self.total += F.softplus(signed, threshold=40).sum()

    def slope(self, tile: _Tile) -> Tensor:
        mask = self.positives.mask(tile)
        slope = tile.logits.sigmoid()
        # Not sigmoid(l) - 1, which has no digits left where a positive is near its bound.
        return slope if mask is None else slope.where(~mask, -(-tile.logits).sigmoid())

    def value(self) -> Tensor:
        return self.total * self.share


def _exp_(exponents: Tensor) -> Tensor:
    """In place exp of numbers up to 0, none below the smallest normal one: subnormal ones take 30 times as long."""
    return exponents.clamp_(min=math.log(torch.finfo(exponents.dtype).tiny)).exp_()


def _check_counts(x: Tensor, y: Tensor, groups: Tensor | None) -> None:
    counts = {"images": len(x), "captions": len(y)} | ({} if groups is None else {"groups": len(groups)})
    if len(set(counts.values())) > 1:
        raise UserError(f"row i of all is a pair, but there are {', '.join(f'{n} {k}' for k, n in counts.items())}")


def _tiled(
    rule: _Rule, x: Tensor, y: Tensor, topology: Topology, scale: Tensor | float, bias: Tensor | None, tile: int | None
) -> Tensor:
    side = _tile_side(len(x), topology, x.device, tile)
    scale = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
    bias = scale.new_zeros(()) if bias is None else bias.to(scale)
    enabled = torch.is_grad_enabled()
    # Autocast would run the products of the gradients in bfloat16, as it would the similarity's.
    with torch.autocast(x.device.type, enabled=False):
        loss: Tensor = _TiledLoss.apply(rule, topology, side, enabled, x, y, scale, bias, *topology.parameters())
    return loss


def _tile_side(batch: int, topology: Topology, device: torch.device, tile: int | None) -> int:
    if tile is not None:
        if tile < 1:
            raise UserError(f"the side of a tile must be at least 1, not {tile}")
        return tile
    numbers = topology.held_a_pair
    if numbers * batch**2 <= WHOLE:
        return batch
    return max(math.isqrt((CPU_TILE if device.type == "cpu" else GPU_TILE) // numbers), 1)


class _TiledLoss(torch.autograd.Function):
    """The value of a rule; its gradients are computed along with it, while the tiles are there."""

    @staticmethod
    def forward(ctx: Any, rule: _Rule, topology: Topology, side: int, enabled: bool, *inputs: Tensor) -> Tensor:
        """`inputs`: both points, scale, bias, and the parameters that the topology's similarity may read by itself."""
        wanted = [enabled and needed for needed in ctx.needs_input_grad[4:]]
        leaves = [tensor.detach().requires_grad_(needed) for tensor, needed in zip(inputs[:4], wanted, strict=False)]
        sums = [torch.zeros_like(tensor) if needed else None for tensor, needed in zip(inputs, wanted, strict=True)]
        # The slopes of the only tile are known once it has been watched.
        at_once = not rule.needs_all or side >= len(inputs[0])
        for tile in _tiles(topology, *leaves, side=side, graph=any(wanted) and at_once):
            rule.watch(tile)
            _add_gradients(sums, (*leaves, *inputs[4:]), rule, tile)
        if any(wanted) and not at_once:
            for tile in _tiles(topology, *leaves, side=side, graph=True):
                _add_gradients(sums, (*leaves, *inputs[4:]), rule, tile)
        ctx.save_for_backward(*sums)
        ctx.share = rule.share
        return rule.value()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the losses have first derivatives only: leave out create_graph=True")
        gradients = (None if total is None else total * (grad * ctx.share) for total in ctx.saved_tensors)
        return None, None, None, None, *gradients


def _tiles(
    topology: Topology, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, *, side: int, graph: bool
) -> Iterator[_Tile]:
    """Every tile in turn, with the graph of its logits where `graph` says so."""
    parts = [slice(start, min(start + side, len(x))) for start in range(0, len(x), side)]
    for rows, columns in itertools.product(parts, parts):
        with torch.set_grad_enabled(graph):
            x_block, y_block = x[rows], y[columns]
            logits = scale * topology.similarity(x_block, y_block) + bias
        yield _Tile(rows, columns, x_block, y_block, logits)


def _add_gradients(sums: list[Tensor | None], inputs: tuple[Tensor, ...], rule: _Rule, tile: _Tile) -> None:
    """Add what a tile with a graph gives to the gradient of every input that has a sum."""
    if not tile.logits.requires_grad:
        return
    x_sum, y_sum, *others = sums
    totals = (None if x_sum is None else x_sum[tile.rows], None if y_sum is None else y_sum[tile.columns], *others)
    sources = (tile.x, tile.y, *inputs[2:])
    pairs = [(total, source) for total, source in zip(totals, sources, strict=True) if total is not None]
    found = torch.autograd.grad(tile.logits, [source for _, source in pairs], rule.slope(tile), allow_unused=True)
    for (total, _), gradient in zip(pairs, found, strict=True):
        # A parameter that acts in `project` alone has none here.
        if gradient is not None:
            total += gradient
