"""The logits of a batch, tile by tile: some of this rank's images with some of the captions of all ranks.

Captions come in blocks: all of them at once, gathered, or one rank's after the other, as they go round the ranks. What
is done with a tile is none of this module's business; see loss.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .peers import Peers
from .topology import Topology


class Block(NamedTuple):
    """Points at the places `first`, `first` + 1, ..., and where their gradient is added up; None where nobody asks."""

    first: int
    points: Tensor
    total: Tensor | None

    @property
    def places(self) -> slice:
        return slice(self.first, self.first + len(self.points))

    def cut(self, side: int) -> Iterator[Block]:
        """Blocks of `side` points, the last of what is left; leaves of a graph where a gradient is asked for."""
        for start in range(0, len(self.points), side):
            part = slice(start, start + side)
            points = self.points[part].detach().requires_grad_(self.total is not None)
            yield Block(self.first + start, points, None if self.total is None else self.total[part])


class Tile(NamedTuple):
    """Logits of a block of images, by their places on this rank, with a block of captions, by their places in all."""

    x: Block
    y: Block
    logits: Tensor

    @property
    def rows(self) -> slice:
        return self.x.places

    @property
    def columns(self) -> slice:
        return self.y.places


class Share(NamedTuple):
    """How the pairs of a batch lie on the ranks: those of rank 0 first."""

    peers: Peers
    sizes: Sequence[int]
    """Pairs of each rank."""

    @property
    def pairs(self) -> int:
        """Of all ranks."""
        return sum(self.sizes)

    def first(self, rank: int) -> int:
        """Place of a rank's first pair."""
        return sum(self.sizes[:rank])

    @property
    def own(self) -> slice:
        """Places of this rank's pairs."""
        first = self.first(self.peers.rank)
        return slice(first, first + self.sizes[self.peers.rank])


class Captions(Protocol):
    """The captions of all ranks, in `count` blocks."""

    count: int

    def blocks(self, slopes: bool) -> Iterator[Block]:
        """Each block once; `slopes` says whether gradients are added up on the way."""

    def gradient(self) -> Tensor | None:
        """Of this rank's captions, added up over ranks in the last such pass; None where nobody asks."""


class Gathered:
    """All captions at once."""

    count = 1

    def __init__(self, y: Tensor, wanted: bool, share: Share) -> None:
        self._share = share
        self._y = share.peers.gather(y, share.sizes)
        self._total = torch.zeros_like(self._y) if wanted else None

    def blocks(self, slopes: bool) -> Iterator[Block]:
        yield Block(0, self._y, self._total)

    def gradient(self) -> Tensor | None:
        return None if self._total is None else self._share.peers.scatter_sum(self._total, self._share.sizes)


class Ring:
    """One rank's captions at a time, with their gradient where there is one: both go from rank to rank until home.

    As in ring attention (Liu et al. 2023, arXiv 2310.01889), a block is on its way while the one before is scored.
    """

    def __init__(self, y: Tensor, wanted: bool, share: Share) -> None:
        self._y, self._wanted, self._share = y, wanted, share
        self._total: Tensor | None = None
        self.count = share.peers.world

    def blocks(self, slopes: bool) -> Iterator[Block]:
        peers, sizes, y = self._share.peers, self._share.sizes, self._y
        total = torch.zeros_like(y) if slopes and self._wanted else None
        for turn in range(self.count):
            owner, following = ((peers.rank - turns) % self.count for turns in (turn, turn + 1))
            arriving = peers.shift(y, sizes[following]) if turn + 1 < self.count else None
            yield Block(self._share.first(owner), y, total)
            if arriving is not None:
                y = arriving()
            if total is not None:
                total = peers.shift(total, sizes[following])()
        self._total = total

    def gradient(self) -> Tensor | None:
        return self._total


def tiles(
    topology: Topology,
    images: Block,
    captions: Captions,
    scale: Tensor,
    bias: Tensor,
    *,
    shape: tuple[int, int],
    graph: bool,
) -> Iterator[Tile]:
    """Every tile of `shape` or less in turn, with the graph of its logits where `graph` says so."""
    rows, columns = shape
    for block in captions.blocks(slopes=graph):
        for x, y in itertools.product(images.cut(rows), block.cut(columns)):
            with torch.set_grad_enabled(graph):
                logits = scale * topology.similarity(x.points, y.points) + bias
            yield Tile(x, y, logits)
