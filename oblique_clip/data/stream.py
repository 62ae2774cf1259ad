"""Batches from WebDataset shards, which are read in a stream, in an order that can be computed again."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..tokenizer import Tokenizer, cut_to_longest
from .batches import Batch, caption_group, endless, smallest_batch
from .faults import Lost, cause_of
from .images import READ_ERRORS, decode_square
from .order import ALONE, START, Position, Share, shuffled_windows, without_twins
from .shards import Pair, expand_shards, pairs_of, read_records, shards_fingerprint

SHUFFLE_WINDOW = 2000
"""Pairs that are shuffled among themselves; they are held as the bytes of their files."""


class ShardBatches:
    """Endless batches from WebDataset shards.

    The order of a pass is a function of (seed, pass): its shards are permuted, and the pairs within each
    `SHUFFLE_WINDOW` of them. What fills no batch at the end of a pass is dropped, as it is at the end of an epoch of
    `MapBatches`. To go on within a pass costs reading it again up to there, but no picture is decoded for that.

    Args:
        batch_size: pairs of all processes together.
        share: a process reads every `world`-th shard of a pass, or, where there are fewer shards than processes,
            takes every `world`-th sample of all.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import webdataset
        >>> from PIL import Image
        >>> from oblique_clip.data.stream import ShardBatches
        >>> from oblique_clip.tokenizer import get_tokenizer
        >>> path = Path(tempfile.mkdtemp()) / "x-000.tar"
        >>> with webdataset.TarWriter(str(path)) as shard:
        ...     for colour in ("red", "green", "blue", "white"):
        ...         square = Image.new("RGB", (64, 64), colour)
        ...         _ = shard.write({"__key__": colour, "png": square, "txt": f"a {colour} square"})
        >>> data = ShardBatches(str(path), get_tokenizer("tiny", 32), batch_size=2, seed=0, side=32, twins="avoid")
        >>> batches = data.batches()
        >>> [tuple(next(batches).squares.shape) for _ in range(3)], data.pairs is None  # a stream has no length
        ([(2, 3, 32, 32), (2, 3, 32, 32), (2, 3, 32, 32)], True)
    """

    pairs: int | None = None

    def __init__(
        self,
        pattern: str,
        tokenizer: Tokenizer,
        batch_size: int,
        seed: int,
        side: int,
        twins: str,
        workers: int = 1,
        share: Share = ALONE,
    ) -> None:
        self._urls, self._tokenizer, self._pool = expand_shards(pattern), tokenizer, ThreadPoolExecutor(max(1, workers))
        self._seed, self._side, self._twins, self._share = seed, side, twins, share
        part = share.part(batch_size)
        self._first, self._batch_size = part.start, part.stop - part.start
        self.left_out: Counter[str] = Counter()
        self.shards = len(self._urls)

    def batches(self, start: Position = START) -> Iterator[Batch]:
        return endless(self._plan, self._read, start, smallest_batch(self._share))

    def fingerprint(self) -> dict[str, Any]:
        return shards_fingerprint(self._urls)

    def _plan(self, epoch: int, lost: Lost) -> Iterator[list[Pair]]:
        """The batches of a pass, not decoded."""
        distinct: set[int] = set()
        yield from without_twins(self._grouped(epoch, lost, distinct), self._batch_size, SHUFFLE_WINDOW, lost)
        if len(distinct) < self._batch_size:
            raise UserError(
                f"--batch-size {self._batch_size * self._share.world} is larger than the data: "
                f"{len(distinct) * self._share.world} pairs can share a batch"
            )

    def _grouped(self, epoch: int, lost: Lost, distinct: set[int]) -> Iterator[tuple[int, Pair]]:
        """Pairs with their groups, which are noted in `distinct` until they could fill a batch."""
        pairs = pairs_of(self._records(epoch, lost), lost)
        for number, pair in enumerate(shuffled_windows(pairs, SHUFFLE_WINDOW, (self._seed, epoch, 5))):
            # Where twins are allowed, every pair is a group of its own.
            group = caption_group(pair.caption) if self._twins == "avoid" else number
            if len(distinct) < self._batch_size:
                distinct.add(group)
            yield group, pair

    def _records(self, epoch: int, lost: Lost) -> Iterable[dict[str, Any]]:
        """This process's samples of a pass."""
        rank, world = self._share
        order = np.random.default_rng((self._seed, epoch, 4)).permutation(len(self._urls))
        urls = [self._urls[i] for i in order]
        if len(urls) >= world:
            return read_records(urls[rank::world], lost)
        # All read every shard, so that one of them has to say what is wrong with the shards.
        return itertools.islice(read_records(urls, lost if rank == 0 else Lost()), rank, None, world)

    def _read(self, pairs: list[Pair], step: int, lost: Lost) -> Batch:
        squares: list[Tensor] = []
        places: list[int] = []
        for place, decoded in enumerate(self._pool.map(self._decode, pairs)):
            if isinstance(decoded, str):
                lost.add(decoded, pairs[place].name)
            else:
                squares.append(decoded)
                places.append(place)
        kept = [pairs[place] for place in places]
        shape = (0, 3, int(self._side), int(self._side))
        return Batch(
            torch.stack(squares) if squares else torch.empty(shape, dtype=torch.uint8),
            cut_to_longest(self._tokenizer([pair.caption for pair in kept])),
            torch.tensor([caption_group(pair.caption) for pair in kept], dtype=torch.int64),
            step,
            tuple(self._first + place for place in places),
            tuple(pair.name for pair in kept),
        )

    def _decode(self, pair: Pair) -> Tensor | str:
        """The picture, or why there is none."""
        try:
            return decode_square(pair.picture, self._side)
        except READ_ERRORS as error:
            return cause_of(error)
