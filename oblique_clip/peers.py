"""What the ranks that share a batch do together, and how one process alone does it.

The loss and the step speak to a `Peers`; distributed.py has the one over torch.distributed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class Peers:
    """Ranks 0 to W - 1, each with some of the pairs of a batch. This class is a process alone: W = 1, nothing is sent.

    Every rank has to make the same calls in the same order. Blocks differ between ranks in their first axis alone;
    `sizes` are the lengths of these axes, which may be 0.

    Examples:
        >>> import torch
        >>> from oblique_clip.peers import Peers
        >>> alone = Peers()
        >>> alone.rank, alone.world, alone.sizes(128)
        (0, 1, [128])
        >>> alone.gather(torch.tensor([7, 8]), [2]).tolist()
        [7, 8]
    """

    rank: int = 0
    world: int = 1
    ring: bool = False
    """Whether the loss passes captions around in a ring of ranks, instead of gathering all of them on each."""
    device: torch.device = torch.device("cpu")

    def sizes(self, count: int) -> list[int]:
        """The counts of all ranks, by rank."""
        return [count]

    def gather(self, block: Tensor, sizes: Sequence[int]) -> Tensor:
        """The blocks of all ranks, one behind the other."""
        return block

    def scatter_sum(self, whole: Tensor, sizes: Sequence[int]) -> Tensor:
        """This rank's block of the sum of every rank's `whole`: the transpose of `gather`."""
        return whole

    def largest_(self, numbers: Tensor) -> Tensor:
        """The largest over ranks, element by element, in place."""
        return numbers

    def sum_(self, numbers: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        return numbers

    def shift(self, block: Tensor, size: int) -> Callable[[], Tensor]:
        """Send a block to the next rank of the ring; what is returned waits for the last rank's, `size` long.

        The block must not change before then.
        """
        return lambda: block

    def from_first(self, value: Value) -> Value:
        """Rank 0's value, of what JSON can hold, on every rank."""
        return value

    def barrier(self, patience: float | None = None) -> None:
        """Wait until every rank is here, `patience` seconds at most; None for the time a collective may take."""


ALONE = Peers()


def everyone_says(peers: Peers, value: Value) -> list[Value]:
    """What each rank has to say, of what JSON can hold, by rank.

    Examples:
        >>> from oblique_clip.peers import ALONE, everyone_says
        >>> everyone_says(ALONE, {"lost": 3})
        [{'lost': 3}]
    """
    letters = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=peers.device)
    sizes = peers.sizes(len(letters))
    return [json.loads(bytes(part.tolist())) for part in peers.gather(letters, sizes).split(sizes)]
