"""Which names a model takes for which: single names, names that draw many pictures, and whole groups."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from .family import Seen

PAIRS, DRAWS, PICTURES = 10, 8, 3
"""How many confusions, names that draw pictures, and pictures of each are shown."""


@dataclass(frozen=True)
class Pair:
    """Pictures of one name taken for another."""

    name: str
    taken_for: str
    count: int
    of: int
    """Pictures that the name has."""
    rows: tuple[int, ...]
    """Some of the confused pictures, the surest mistakes first."""


@dataclass(frozen=True)
class Draw:
    """A name that pictures of others are taken for."""

    name: str
    count: int
    names: int
    """How many names they bear."""


@dataclass(frozen=True)
class Groups:
    """CLDR groups of pictures by those of the names they are taken for."""

    names: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...]
    """Of the pictures of a group (row), the share taken for a name of each group (column), in [0, 1]."""
    counts: tuple[int, ...]
    """Pictures of each group."""


@dataclass(frozen=True)
class Confusion:
    """All of it."""

    pairs: tuple[Pair, ...]
    draws: tuple[Draw, ...]
    groups: Groups


def confusion(seen: Seen) -> Confusion:
    """Where a model goes wrong when it names each picture among all names.

    Confusions of equal count are ordered by how much more similar the wrong name is than the right one, on average.

    Examples:
        >>> import numpy as np, torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.data.emoji import load_emoji
        >>> from oblique_clip.page.confusion import confusion
        >>> from oblique_clip.page.family import Seen
        >>> test = load_emoji().select(np.arange(16150) < 2)
        >>> topology = parse_topology("sphere(2)")
        >>> names = topology.project(torch.eye(2)[:, None])
        >>> found = confusion(Seen(test, topology, names[[1, 1]], names))  # both look like the second
        >>> [(pair.name, pair.taken_for, pair.count) for pair in found.pairs]
        [('1st place medal', '2nd place medal', 1)]
    """
    wrong: dict[tuple[int, int], list[int]] = {}
    for row in (~seen.right).nonzero()[:, 0].tolist():
        wrong.setdefault((int(seen.labels[row]), int(seen.predicted[row])), []).append(row)
    ahead = (seen.similarity.max(1).values - seen.own).tolist()

    def surest(pair: tuple[int, int]) -> tuple[float, ...]:
        rows = wrong[pair]
        return (-len(rows), -sum(ahead[row] for row in rows) / len(rows), *pair)

    pictures = torch.bincount(seen.labels, minlength=len(seen.names)).tolist()
    pairs = tuple(
        Pair(
            seen.names[pair[0]], seen.names[pair[1]], len(wrong[pair]), pictures[pair[0]],
            tuple(sorted(wrong[pair], key=lambda row: -ahead[row])[:PICTURES]),
        )
        for pair in sorted(wrong, key=surest)[:PAIRS]
    )  # fmt: skip
    return Confusion(pairs, _draws(seen, wrong), _groups(seen))


def _draws(seen: Seen, wrong: dict[tuple[int, int], list[int]]) -> tuple[Draw, ...]:
    count, names = Counter[int](), Counter[int]()
    for (_, taken_for), rows in wrong.items():
        count[taken_for] += len(rows)
        names[taken_for] += 1
    ordered = sorted(count, key=lambda place: (-count[place], place))
    return tuple(Draw(seen.names[place], count[place], names[place]) for place in ordered[:DRAWS])


def _groups(seen: Seen) -> Groups:
    """A name belongs to the group that most of its pictures have."""
    records = seen.test.records
    votes: dict[str, Counter[str]] = {}
    for record in records:
        votes.setdefault(record.concept, Counter())[record.group] += 1
    group_of = {name: own.most_common(1)[0][0] for name, own in votes.items()}
    cells = Counter(
        (record.group, group_of[seen.names[place]])
        for record, place in zip(records, seen.predicted.tolist(), strict=True)
    )
    counts = Counter(record.group for record in records)
    names = tuple(sorted(counts))
    shares = tuple(tuple(cells[row, column] / counts[row] for column in names) for row in names)
    return Groups(names, shares, tuple(counts[name] for name in names))
