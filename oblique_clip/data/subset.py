"""A part of a source of pairs, drawn by a seed."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .batches import PairSource
from .order import Rows


class Subset:
    """A share of the pairs of a source, as a source of its own; a smaller share is a part of a larger one.

    Args:
        share: in (0, 1]; at least two pairs are kept.
        seed: which ones.

    Examples:
        >>> from oblique_clip.config import DataConfig
        >>> from oblique_clip.data.sources import open_pairs
        >>> from oblique_clip.data.subset import Subset
        >>> pairs = open_pairs(DataConfig(), image_size=32)
        >>> quarter, half = (Subset(pairs, share, seed=0) for share in (0.25, 0.5))
        >>> len(quarter), len(half)
        (2416, 4831)
        >>> {quarter.name(row) for row in range(2416)} <= {half.name(row) for row in range(4831)}
        True
    """

    def __init__(self, source: PairSource, share: float, seed: int) -> None:
        self._source = source
        order = np.random.default_rng((seed, 5)).permutation(len(source))
        self._rows: Rows = np.sort(order[: max(2, round(share * len(source)))])
        self.left_out, self.skipped = source.left_out, source.skipped

    def __len__(self) -> int:
        return len(self._rows)

    def captions(self, row: int) -> tuple[str, ...]:
        return self._source.captions(int(self._rows[row]))

    def groups(self) -> Rows:
        return self._source.groups()[self._rows]

    def image_key(self, row: int) -> str:
        return self._source.image_key(int(self._rows[row]))

    def name(self, row: int) -> str:
        return self._source.name(int(self._rows[row]))

    def cause(self, row: int) -> str:
        return self._source.cause(int(self._rows[row]))

    def fetch(self, rows: Rows) -> tuple[Tensor, list[int]]:
        return self._source.fetch(self._rows[rows])
