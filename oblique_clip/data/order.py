"""Which samples make which batch. Every order is a function of its seed, so that any place in it can be found again."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import UserError

Rows = npt.NDArray[np.int64]
Item = TypeVar("Item")


class Position(NamedTuple):
    """A place between two batches of an endless stream.

    Of a table and of the shipped set it is the same for any number of processes; of shards it is each process's own.

    Examples:
        >>> from oblique_clip.data.order import Position
        >>> Position(**Position(epoch=2, batch=5, step=105)._asdict())  # as it comes back from JSON
        Position(epoch=2, batch=5, step=105)
    """

    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that lie behind, with those given up for want of readable pictures."""
    step: int = 0
    """Batches given since the start of the run."""


class Share(NamedTuple):
    """The part of each batch that one of several processes takes.

    Examples:
        >>> from oblique_clip.data.order import Share
        >>> Share(rank=1, world=4).part(128)
        slice(32, 64, None)
    """

    rank: int = 0
    world: int = 1

    def part(self, count: int) -> slice:
        """Where this process's samples lie among `count`.

        Raises:
            UserError: where they cannot be dealt out evenly.
        """
        if count % self.world:
            raise UserError(f"--batch-size {count} must be a multiple of the {self.world} processes that share it")
        size = count // self.world
        return slice(self.rank * size, (self.rank + 1) * size)


ALONE = Share()
START = Position()


def epoch_batches(groups: Rows, batch_size: int, seed: int, epoch: int, twins: Literal["avoid", "allow"]) -> list[Rows]:
    """Rows of each full batch of an epoch, shuffled by (seed, epoch).

    With `twins="avoid"` no batch holds two rows of one group: a row that would be a twin waits for a later batch.
    Rows left at the end that fill no batch are dropped.

    Examples:
        >>> import numpy as np
        >>> from oblique_clip.data.order import epoch_batches
        >>> groups = np.array([7, 7, 8, 9])  # the first two bear one caption
        >>> batches = epoch_batches(groups, batch_size=2, seed=0, epoch=0, twins="avoid")
        >>> len(batches), any(set(rows.tolist()) == {0, 1} for rows in batches)
        (2, False)
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(groups))
    if twins == "allow":
        return [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)]
    return [np.array(rows) for rows in without_twins(((int(groups[i]), int(i)) for i in order), batch_size)]


def without_twins(
    stream: Iterable[tuple[int, Item]],
    batch_size: int,
    longest_line: int | None = None,
    skipped: Counter[str] | None = None,
) -> Iterator[list[Item]]:
    """Batches of a stream of (group, item) in which each group occurs once; twins wait in line for the next batch.

    Items of fewer than `batch_size` groups are left at the end.

    Args:
        longest_line: twins that find so many waiting are left out and counted in `skipped`; None for any number.

    Examples:
        >>> from oblique_clip.data.order import without_twins
        >>> stream = [(7, "red apple"), (7, "Red Apple"), (8, "dog"), (9, "house")]
        >>> list(without_twins(stream, batch_size=2))
        [['red apple', 'dog'], ['Red Apple', 'house']]
    """
    skipped = Counter() if skipped is None else skipped
    waiting: list[tuple[int, Item]] = []
    source = iter(stream)
    while True:
        batch: dict[int, Item] = {}
        still: list[tuple[int, Item]] = []
        for group, item in waiting:
            if group in batch or len(batch) == batch_size:
                still.append((group, item))
            else:
                batch[group] = item
        waiting = still
        for group, item in source:
            if group in batch:
                if longest_line is None or len(waiting) < longest_line:
                    waiting.append((group, item))
                else:
                    skipped["too many of one caption"] += 1
                continue
            batch[group] = item
            if len(batch) == batch_size:
                break
        if len(batch) < batch_size:
            return
        yield list(batch.values())


def shuffled_windows(items: Iterable[Item], window: int, seed: tuple[int, ...]) -> Iterator[Item]:
    """The items, shuffled within each `window` of them by a generator of (seed, number of the window).

    A buffer that is drawn from and refilled mixes a little further, but what it holds depends on all draws before:
    here any window can be made again from its own items.

    Examples:
        >>> from oblique_clip.data.order import shuffled_windows
        >>> order = list(shuffled_windows(range(6), window=3, seed=(0, 1)))
        >>> sorted(order[:3]), sorted(order[3:])
        ([0, 1, 2], [3, 4, 5])
    """
    source = iter(items)
    for number in itertools.count():
        held = list(itertools.islice(source, window))
        if not held:
            return
        for place in np.random.default_rng((*seed, number)).permutation(len(held)):
            yield held[place]


def noise_permutation(count: int, share: float, seed: int) -> Rows:
    """Where each of `count` pairs takes its caption from: a share of them cycled among themselves at random.

    Every chosen pair gets another pair's caption (a random cycle has no fixed point), the rest keep theirs; a share
    that comes to a single pair leaves it its own.

    Raises:
        UserError: for a share outside [0, 1].

    Examples:
        >>> import numpy as np
        >>> from oblique_clip.data.order import noise_permutation
        >>> source = noise_permutation(1000, share=0.3, seed=0)
        >>> int((source != np.arange(1000)).sum()), sorted(source.tolist()) == list(range(1000))
        (300, True)
    """
    if not 0 <= share <= 1:
        raise UserError(f"--caption-noise must lie between 0 and 1, not {share}")
    # Three words, so that no epoch's order, drawn from (seed, epoch), is the same draw.
    chosen = np.random.default_rng((seed, 0, 1)).permutation(count)[: round(share * count)]
    source = np.arange(count)
    source[chosen] = np.roll(chosen, 1)
    return source
