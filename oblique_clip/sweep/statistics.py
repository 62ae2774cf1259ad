"""Intervals of a mean, over seeds and over concepts, and what they say of a difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import UserError

LEVEL = 0.95
DRAWS = 10_000
Sign = Literal["ahead", "behind", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % interval, which are infinite where one value says nothing of the spread.

    Examples:
        >>> from oblique_clip.sweep.statistics import Interval
        >>> Interval(2.0, 1.0, 3.0).sign, Interval(2.0, -1.0, 5.0).sign
        ('ahead', 'undecided')
    """

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    @property
    def sign(self) -> Sign:
        """Whether the whole interval lies on one side of zero."""
        return "ahead" if self.low > 0 else "behind" if self.high < 0 else "undecided"


def t_interval(values: Sequence[float]) -> Interval:
    """Mean of independent values, such as one a seed, and its 95 % interval by Student's t.

    Raises:
        UserError: without values.

    Examples:
        >>> from oblique_clip.sweep.statistics import t_interval
        >>> found = t_interval([1.0, 2.0, 3.0])
        >>> round(found.mean, 3), round(found.half, 3)  # 4.303 standard errors at two degrees of freedom
        (2.0, 2.484)
    """
    from scipy.stats import t

    if not values:
        raise UserError("an interval needs at least one value")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Interval:
    """How far one arm is ahead of another, run by run: the t interval of their differences at the seeds they share.

    Two runs of one seed see the same pairs in the same order, so that what a seed gives to both is not counted.

    Args:
        first: a figure of each run of one arm, by its seed.
        second: the same of the other.

    Raises:
        UserError: where they share no seed.

    Examples:
        >>> from oblique_clip.sweep.statistics import paired
        >>> paired({0: 3.0, 1: 5.0, 2: 4.0}, {0: 1.0, 1: 3.0, 9: 7.0})
        Interval(mean=2.0, low=2.0, high=2.0)
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise UserError("the two arms have no seed in common")
    return t_interval([first[seed] - second[seed] for seed in shared])


def over_classes(
    right: npt.NDArray[np.float64], pictures: npt.NDArray[np.float64], draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Bootstrap over classes of a difference in accuracy: classes are drawn anew, each with all its pictures.

    The seeds stay as they are; `paired` says how far they vary. Percentile interval (Efron and Tibshirani 1993, 13.3).

    Args:
        right: (seeds, classes), how many more pictures of a class one arm has right than the other.
        pictures: (classes,), how many there are.
        draws: bootstrap samples.

    Examples:
        >>> import numpy as np
        >>> from oblique_clip.sweep.statistics import over_classes
        >>> found = over_classes(np.array([[1.0, 1.0, 0.0, 1.0]]), np.array([2.0, 2.0, 2.0, 2.0]))
        >>> found.mean, found.low, found.high  # 3 pictures of 8; a sample of four classes may miss the others
        (0.375, 0.125, 0.5)
    """
    ahead = right.mean(0)
    shares = [(times @ ahead) / (times @ pictures) for times in _drawn(len(pictures), draws, seed)]
    low, high = np.quantile(np.concatenate(shares), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(ahead.sum() / pictures.sum()), float(low), float(high))


@lru_cache(maxsize=8)
def _drawn(classes: int, draws: int, seed: int) -> list[npt.NDArray[np.uint16]]:
    """How often each class is in each bootstrap sample: the same for every difference, and slow to draw."""
    random, even = np.random.default_rng(seed), np.full(classes, 1 / classes)
    # In pieces, since all draws of many classes at once would be large.
    sizes = [min(1000, draws - start) for start in range(0, draws, 1000)]
    return [random.multinomial(classes, even, size=size).astype(np.uint16) for size in sizes]
