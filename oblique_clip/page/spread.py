"""How similar pictures are to their own name, and to all others: the two distributions that training pulls apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .family import CHUNK, Seen

BINS = 50


@dataclass(frozen=True)
class Spread:
    """Two histograms over one interval, in units of the topology's range: 0 is its lower end and 1 its upper."""

    bounded: bool
    """Whether there is such a range; if not, `low` is the smallest similarity that occurs."""
    low: float
    high: float
    """The ends in the topology's own units."""
    own: tuple[float, ...]
    others: tuple[float, ...]
    """Share of the pairs in each bin."""
    own_mean: float
    others_mean: float
    """In units of the range."""
    above: float
    """Share of the other names, on average over pictures, that are less similar than the own one."""


def spread(seen: Seen, bins: int = BINS) -> Spread:
    """Histograms over the pictures of the test families.

    Examples:
        >>> import numpy as np, torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.data.emoji import load_emoji
        >>> from oblique_clip.page.family import Seen
        >>> from oblique_clip.page.spread import spread
        >>> test = load_emoji().select(np.arange(16150) < 2)
        >>> topology = parse_topology("sphere(2)")
        >>> names = topology.project(torch.eye(2)[:, None])
        >>> found = spread(Seen(test, topology, names, names), bins=4)  # right at 1, wrong at 0, of -1 to 1
        >>> found.own, found.others, found.above
        ((0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 0.0), 1.0)
    """
    low, high = seen.topology.range
    bounded = math.isfinite(high - low)
    if not bounded:
        low, high = float(seen.similarity.min()), float(seen.similarity.max())
    width = max(high - low, 1e-9)
    places, own = _histogram((seen.own - low) / width, bins), (seen.own - low) / width
    others, total, above = torch.zeros(bins, dtype=torch.float64), 0.0, 0.0
    for rows in torch.arange(len(seen.labels)).split(CHUNK):
        units = (seen.similarity[rows] - low) / width
        others += _histogram(units, bins)
        total += float(units.sum(dtype=torch.float64))
        above += float((units < own[rows, None]).sum())
    pairs = seen.similarity.numel() - len(own)
    return Spread(
        bounded, low, high, _shares(places), _shares(others - places), float(own.mean()),
        (total - float(own.sum(dtype=torch.float64))) / max(pairs, 1), above / max(pairs, 1),
    )  # fmt: skip


def _histogram(units: Tensor, bins: int) -> Tensor:
    """Counts (bins,); rounding may put a similarity a little outside its range."""
    places = (units * bins).long().clamp(0, bins - 1)
    return torch.bincount(places.flatten(), minlength=bins).double()


def _shares(counts: Tensor) -> tuple[float, ...]:
    return tuple((counts / counts.sum().clamp(min=1)).tolist())
