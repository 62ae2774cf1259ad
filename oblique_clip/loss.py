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

Over W ranks (`peers`), each scores its own images against the captions of all. So its row sums are whole, and only
the column sums, a number a caption, are reduced before the slopes; these give the gradient of its images, and a part
of that of every caption, which is summed on its way home. Images stay where they are: half of the products and of the
traffic of scoring own captions too, as open_clip's local loss does. With `peers.ring` not even the captions of all are
held: each rank's go round the ranks, once for the sums and once, with their gradient, for the slopes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError
from .peers import ALONE, Peers
from .tiles import Block, Captions, Gathered, Ring, Share, Tile, tiles
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
    peers: Peers = ALONE,
) -> Tensor:
    """Symmetric InfoNCE of B pairs, in nats; row i of both is a pair.

    Over ranks, B counts this rank's pairs and the loss is that of the pairs of all, on every rank. So are the gradients
    of the points given. Those of scale, bias and the topology's parameters are this rank's part of them: the sum over
    ranks is the whole. Every rank has to ask for the same gradients and to go backward from the loss in the same way.

    Args:
        image_points: (B, *topology.point_shape).
        text_points: the same, row by row the image's caption.
        scale: 1/tau, > 0.
        bias: added to every logit; cancels in both softmaxes.
        groups: (B,) integers, equal where captions are; None makes each row its own group.
        tile: side of a tile, >= 1; None chooses it from the batch and the memory that a similarity takes.
        peers: the ranks that share the batch, each with any number of its pairs; a process alone where it is left out.

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
    return _tiled(_InfoNCE, image_points, text_points, topology, scale, bias, groups, tile, peers)


def sigmoid_loss(
    image_points: Tensor,
    text_points: Tensor,
    topology: Topology,
    scale: Tensor | float,
    *,
    bias: Tensor | None = None,
    groups: Tensor | None = None,
    tile: int | None = None,
    peers: Peers = ALONE,
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
    return _tiled(_Sigmoid, image_points, text_points, topology, scale, bias, groups, tile, peers)


LOSSES = {"info_nce": info_nce, "sigmoid": sigmoid_loss}


class _Positives:
    """Which pairs belong together; `groups` are those of all ranks, `own` the places of this rank's pairs in them."""

    def __init__(self, groups: Tensor | None, own: slice) -> None:
        self.groups, self.own = groups, own

    def mask(self, tile: Tile) -> Tensor | None:
        """True where a pair of the tile is positive; None where no pair can be."""
        if self.groups is not None:
            return self.groups[self.own][tile.rows, None] == self.groups[tile.columns]
        images, captions = tile.logits.shape
        # Columns from the first caption of the tile to that of its first image.
        ahead = self.own.start + tile.rows.start - tile.columns.start
        if not -images < ahead < captions:
            return None
        mask = torch.zeros(images, captions, dtype=torch.bool, device=tile.logits.device)
        mask.diagonal(ahead).fill_(True)
        return mask

    def weights(self, like: Tensor) -> Tensor:
        """1/|group| of every row, as in T."""
        if self.groups is None:
            return like.new_ones(len(like))
        # Not by `unique`, which would wait for a GPU to count its groups.
        ordered, own = self.groups.sort().values, self.groups[self.own]
        sizes = torch.searchsorted(ordered, own, right=True) - torch.searchsorted(ordered, own)
        return sizes.to(like.dtype).reciprocal()


class _Rule(Protocol):
    """One loss, a tile at a time."""

    needs_all: bool
    """Whether a slope is known only after `finish`."""
    factor: float
    """Of every slope, left out of `slope`."""

    def __init__(self, positives: _Positives, points: Tensor, share: Share) -> None:
        """`points` are those of this rank's images."""

    def watch(self, tile: Tile) -> None:
        """Add a tile to the value; its logits stay as they are."""

    def finish(self) -> Tensor:
        """The loss of all tiles that all ranks have watched."""

    def slope(self, tile: Tile) -> Tensor:
        """The loss's derivative by every logit, over `factor`; it may take the place of the logits."""


class _InfoNCE:
    needs_all = True

    def __init__(self, positives: _Positives, points: Tensor, share: Share) -> None:
        self.positives, self.weights = positives, positives.weights(points)
        # Largest logit, and sum of exp(logit - largest), of every row of this rank and of every column.
        self.rows, self.columns = (
            (self.weights.new_full((count,), -math.inf), self.weights.new_zeros(count))
            for count in (len(points), share.pairs)
        )
        self.positive = torch.zeros_like(self.weights)
        self.peers, self.pairs, self.factor = share.peers, share.pairs, 1 / (2 * share.pairs)

    def watch(self, tile: Tile) -> None:
        for (most, sums), part, axis in ((self.rows, tile.rows, 1), (self.columns, tile.columns, 0)):
            before = most[part].clone()
            torch.maximum(before, tile.logits.amax(axis), out=most[part])
            sums[part] *= (before - most[part]).exp_()
            sums[part] += _exp_(tile.logits - most[part].unsqueeze(axis)).sum(axis)
        if (mask := self.positives.mask(tile)) is not None:
            # Targets are symmetric: both directions weigh the same logits.
            self.positive[tile.rows] += torch.where(mask, tile.logits, 0).sum(1) * self.weights[tile.rows]

    def finish(self) -> Tensor:
        (row_most, row_sums), (most, sums) = self.rows, self.columns
        if self.peers.world > 1:
            before = most.clone()
            sums *= (before - self.peers.largest_(most)).exp_()
            self.peers.sum_(sums)
        column_most, column_sums = most[self.positives.own], sums[self.positives.own]
        # The largest logit often is the positive: so the difference is taken before anything is added to it.
        nats = (row_most - self.positive) + row_sums.log() + (column_most - self.positive) + column_sums.log()
        return self.peers.sum_(nats.sum()) / self.pairs / 2

    def slope(self, tile: Tile) -> Tensor:
        # Not exp(l - log-sum), whose rounding grows with the logits.
        (row_most, row_sums), (column_most, column_sums) = self.rows, self.columns
        slope = _exp_(tile.logits - row_most[tile.rows, None]).div_(row_sums[tile.rows, None])
        slope += _exp_(tile.logits.sub_(column_most[tile.columns])).div_(column_sums[tile.columns])
        mask = self.positives.mask(tile)
        return slope if mask is None else slope.sub_(torch.where(mask, 2 * self.weights[tile.rows, None], 0))


class _Sigmoid:
    needs_all = False

    def __init__(self, positives: _Positives, points: Tensor, share: Share) -> None:
        self.positives = positives
        # By rows: one number would take thousands of sums, and their rounding, of a large batch.
        self.total = points.new_zeros(len(points))
        self.peers, self.factor = share.peers, 1 / share.pairs

    def watch(self, tile: Tile) -> None:
        mask = self.positives.mask(tile)
        signed = tile.logits if mask is None else torch.where(mask, -tile.logits, tile.logits)
        # -log sigmoid(-l); beyond the threshold, exp(-40) below it in float64, it is taken to be l.
        self.total[tile.rows] += F.softplus(signed, threshold=40).sum(1)

    def finish(self) -> Tensor:
        return self.peers.sum_(self.total.sum()) * self.factor

    def slope(self, tile: Tile) -> Tensor:
        mask = self.positives.mask(tile)
        slope = tile.logits.sigmoid()
        # Not sigmoid(l) - 1, which has no digits left where a positive is near its bound.
        return slope if mask is None else slope.where(~mask, -(-tile.logits).sigmoid())


def _exp_(exponents: Tensor) -> Tensor:
    """In place exp of numbers up to 0, none below the smallest normal one: subnormal ones take 30 times as long."""
    return exponents.clamp_(min=math.log(torch.finfo(exponents.dtype).tiny)).exp_()


def _check(x: Tensor, y: Tensor, groups: Tensor | None, topology: Topology) -> None:
    for name, points in (("images", x), ("captions", y)):
        if tuple(points.shape[1:]) != topology.point_shape:
            n, m = topology.point_shape
            raise UserError(f"{name} must be points (B, {n}, {m}) of {topology.spec}, not {tuple(points.shape)}")
    if groups is not None and groups.ndim != 1:
        raise UserError(f"groups must be (B,) integers, not {tuple(groups.shape)}")
    counts = {"images": len(x), "captions": len(y)} | ({} if groups is None else {"groups": len(groups)})
    if len(set(counts.values())) > 1:
        raise UserError(f"row i of all is a pair, but there are {', '.join(f'{n} {k}' for k, n in counts.items())}")


def _tiled(
    kind: type[_Rule], x: Tensor, y: Tensor, topology: Topology, scale: Tensor | float, bias: Tensor | None,
    groups: Tensor | None, tile: int | None, peers: Peers,
) -> Tensor:  # fmt: skip
    _check(x, y, groups, topology)
    share = Share(peers, peers.sizes(len(x)))
    if not share.pairs:
        raise UserError("a loss of no pairs is asked for")
    shape = _tile_shape(len(x), share.pairs, topology, x.device, tile)
    rule = kind(_Positives(None if groups is None else peers.gather(groups, share.sizes), share.own), x, share)
    scale = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
    bias = scale.new_zeros(()) if bias is None else bias.to(scale)
    enabled = torch.is_grad_enabled()
    # Autocast would run the products of the gradients in bfloat16, as it would the similarity's.
    with torch.autocast(x.device.type, enabled=False):
        loss: Tensor = _TiledLoss.apply(
            rule, share, topology, shape, enabled, x, y, scale, bias, *topology.parameters()
        )
    return loss


def _tile_shape(
    images: int, captions: int, topology: Topology, device: torch.device, tile: int | None
) -> tuple[int, int]:
    """Rows and columns of a tile."""
    if tile is not None:
        if tile < 1:
            raise UserError(f"the side of a tile must be at least 1, not {tile}")
        return tile, tile
    numbers = topology.held_a_pair
    if numbers * images * captions <= WHOLE:
        return max(images, 1), max(captions, 1)
    budget = (CPU_TILE if device.type == "cpu" else GPU_TILE) // numbers
    side = max(math.isqrt(budget), 1)
    # Where there are few images, there is room for more captions.
    return (side, side) if images >= side else (images, budget // images)


class _TiledLoss(torch.autograd.Function):
    """The value of a rule; its gradients are computed along with it, while the tiles are there."""

    @staticmethod
    def forward(
        ctx: Any, rule: _Rule, share: Share, topology: Topology, shape: tuple[int, int], enabled: bool, *inputs: Tensor
    ) -> Tensor:
        """`inputs`: both points, scale, bias, and the parameters that the topology's similarity may read by itself."""
        wanted = [enabled and needed for needed in ctx.needs_input_grad[5:]]
        x, y, scale, bias = (
            tensor.detach().requires_grad_(needed) for tensor, needed in zip(inputs[:4], wanted, strict=False)
        )
        x_sum, *sums = (_sum_for(inputs[place]) if wanted[place] else None for place in (0, *range(2, len(inputs))))
        captions: Captions = (Ring if share.peers.ring else Gathered)(y.detach(), wanted[1], share)
        every = partial(tiles, topology, Block(0, x.detach(), x_sum), captions, scale, bias, shape=shape)
        add = partial(_add_gradients, sums, (scale, bias, *inputs[4:]), rule)

        # The slopes of the only tile are known once it has been watched: it is kept.
        single = captions.count == 1 and shape[0] >= len(x) and shape[1] >= share.pairs
        kept: list[Tile] = []
        for tile in every(graph=any(wanted) and (single or not rule.needs_all)):
            rule.watch(tile)
            if not rule.needs_all:
                add(tile)
            elif single:
                kept.append(tile)
        value = rule.finish()
        if any(wanted) and rule.needs_all:
            for tile in kept if single else every(graph=True):
                add(tile)
        ctx.save_for_backward(x_sum, captions.gradient(), *sums)
        ctx.factor = rule.factor
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the losses have first derivatives only: leave out create_graph=True")
        gradients = (
            None if total is None else (total * (grad * ctx.factor)).to(grad.dtype) for total in ctx.saved_tensors
        )
        return None, None, None, None, None, *gradients


def _sum_for(tensor: Tensor) -> Tensor:
    """Zero, for a gradient to be added up in: a single number gets one term a tile, thousands of them of a large batch,
    which often cancel, and is kept in float64 where the device has it."""
    exact = tensor.ndim == 0 and tensor.device.type != "mps"
    return torch.zeros_like(tensor, dtype=torch.float64 if exact else tensor.dtype)


def _add_gradients(sums: Sequence[Tensor | None], numbers: Sequence[Tensor], rule: _Rule, tile: Tile) -> None:
    """Add what a tile with a graph gives to the gradient of its points, and in `sums` of the numbers it comes from."""
    if not tile.logits.requires_grad:
        return
    totals, sources = (tile.x.total, tile.y.total, *sums), (tile.x.points, tile.y.points, *numbers)
    pairs = [(total, source) for total, source in zip(totals, sources, strict=True) if total is not None]
    found = torch.autograd.grad(tile.logits, [source for _, source in pairs], rule.slope(tile), allow_unused=True)
    for (total, _), gradient in zip(pairs, found, strict=True):
        # A parameter that acts in `project` alone has none here.
        if gradient is not None:
            total += gradient
