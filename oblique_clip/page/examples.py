"""Retrieval both ways, for pictures and names drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .family import Seen

SHOWN = 5
"""How many of the most similar ones are shown."""


@dataclass(frozen=True)
class OfPicture:
    """A picture and the names found for it."""

    row: int
    """Of the picture, in the test set."""
    name: str
    """Its own."""
    found: tuple[tuple[str, bool], ...]
    """The most similar names, the best first, and whether each is its own."""
    rank: int
    """Place of its own name, 1 for the first."""


@dataclass(frozen=True)
class OfName:
    """A name and the pictures found for it."""

    name: str
    found: tuple[tuple[int, bool], ...]
    """Rows of the most similar pictures, the best first, and whether each bears the name."""
    rank: int
    """Place of the first picture that bears it."""


@dataclass(frozen=True)
class Retrieval:
    """What was asked, and what was found."""

    pictures: tuple[OfPicture, ...]
    names: tuple[OfName, ...]


def draw_examples(seen: Seen, count: int = 8, seed: int = 0) -> Retrieval:
    """Ask for names of `count` pictures and for pictures of `count` names, drawn at random by `seed`, not chosen.

    Ranks count ties against the model.

    Examples:
        >>> import numpy as np, torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.data.emoji import load_emoji
        >>> from oblique_clip.page.examples import draw_examples
        >>> from oblique_clip.page.family import Seen
        >>> test = load_emoji().select(np.arange(16150) < 2)
        >>> topology = parse_topology("sphere(2)")
        >>> names = topology.project(torch.eye(2)[:, None])
        >>> found = draw_examples(Seen(test, topology, names[[1, 1]], names), count=1)  # both look like the second
        >>> found.pictures[0].found
        (('2nd place medal', True), ('1st place medal', False))
    """
    random = np.random.default_rng(seed)
    pictures = random.choice(len(seen.test), min(count, len(seen.test)), False)
    names = random.choice(len(seen.names), min(count, len(seen.names)), False)
    return Retrieval(
        tuple(_of_picture(seen, int(row)) for row in pictures), tuple(_of_name(seen, int(place)) for place in names)
    )


def _of_picture(seen: Seen, row: int) -> OfPicture:
    scores, label = seen.similarity[row], int(seen.labels[row])
    best = scores.topk(min(SHOWN, len(scores))).indices.tolist()
    return OfPicture(
        row, seen.names[label], tuple((seen.names[place], place == label) for place in best),
        int((scores >= scores[label]).sum()),
    )  # fmt: skip


def _of_name(seen: Seen, place: int) -> OfName:
    scores, right = seen.similarity[:, place], seen.labels == place
    best = scores.topk(min(SHOWN, len(scores))).indices
    first = torch.where(right, scores, -torch.inf).max()
    # Other pictures that bear the name stand before none of its own.
    rank = 1 + int(((scores >= first) & ~right).sum())
    return OfName(seen.names[place], tuple(zip(best.tolist(), right[best].tolist(), strict=True)), rank)
