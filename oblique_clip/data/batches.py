"""From pairs to batches: which rows, in which order, with which captions. Every order is a function of its seed."""

from __future__ import annotations

import hashlib
import itertools
import queue
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import UserError
from ..tokenizer import Tokenizer, cut_to_longest

Rows = npt.NDArray[np.int64]
# A pair alone has no negatives.
MIN_BATCH = 2


@dataclass(frozen=True)
class Batch:
    """B pairs on the CPU.

    Examples:
        >>> import torch
        >>> from oblique_clip.data.batches import Batch
        >>> ids = torch.tensor([[5, 4095, 0], [5, 9, 4095]])
        >>> batch = Batch(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), ids, torch.tensor([17, 23]), step=0)
        >>> len(batch.squares), batch.ids.shape
        (2, torch.Size([2, 3]))
    """

    squares: Tensor
    """Pictures, uint8 (B, 3, H, H)."""
    ids: Tensor
    """Captions as token ids (B, L), cut to the longest of the batch."""
    groups: Tensor
    """(B,) integers, equal where captions are the same."""
    step: int
    """Number of the batch since the start of the run; seeds its augmentation."""

    def pinned(self) -> Batch:
        """The same in page-locked memory, which a GPU copies from without anyone waiting."""
        return Batch(self.squares.pin_memory(), self.ids.pin_memory(), self.groups.pin_memory(), self.step)


class TrainingData(Protocol):
    """Endless batches for the training loop."""

    @property
    def skipped(self) -> Counter[str]:
        """Samples left out so far, by cause."""
        ...

    @property
    def pairs(self) -> int | None:
        """Pairs an epoch; None for a stream of unknown length."""
        ...

    def batches(self) -> Iterator[Batch]: ...


def caption_key(caption: str) -> str:
    """Captions that differ in case, spacing or Unicode form alone are the same caption.

    Examples:
        >>> from oblique_clip.data.batches import caption_key
        >>> caption_key("  Red   APPLE ")
        'red apple'
    """
    return " ".join(unicodedata.normalize("NFKC", caption).lower().split())


def caption_group(caption: str) -> int:
    """A stable 63-bit number, equal for equal captions.

    Examples:
        >>> from oblique_clip.data.batches import caption_group
        >>> caption_group("Red apple") == caption_group("red  apple"), caption_group("dog") == caption_group("cat")
        (True, False)
    """
    digest = hashlib.blake2b(caption_key(caption).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def epoch_batches(groups: Rows, batch_size: int, seed: int, epoch: int, twins: Literal["avoid", "allow"]) -> list[Rows]:
    """Rows of each full batch of an epoch, shuffled by (seed, epoch).

    With `twins="avoid"` no batch holds two rows of one group: a row that would be a twin waits for a later batch.
    Rows left at the end that fill no batch are dropped.

    Examples:
        >>> import numpy as np
        >>> from oblique_clip.data.batches import epoch_batches
        >>> groups = np.array([7, 7, 8, 9])  # the first two bear one caption
        >>> batches = epoch_batches(groups, batch_size=2, seed=0, epoch=0, twins="avoid")
        >>> len(batches), any(set(rows.tolist()) == {0, 1} for rows in batches)
        (2, False)
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(groups))
    if twins == "allow":
        return [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)]
    return [np.array(rows) for rows in without_twins(((int(groups[i]), int(i)) for i in order), batch_size)]


Item = TypeVar("Item")


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
        >>> from oblique_clip.data.batches import without_twins
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


def noise_permutation(count: int, share: float, seed: int) -> Rows:
    """Where each of `count` pairs takes its caption from: a share of them cycled among themselves at random.

    Every chosen pair gets another pair's caption (a random cycle has no fixed point), the rest keep theirs; a share
    that comes to a single pair leaves it its own.

    Raises:
        UserError: for a share outside [0, 1].

    Examples:
        >>> import numpy as np
        >>> from oblique_clip.data.batches import noise_permutation
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


class PairSource(Protocol):
    """Pairs that can be read in any order."""

    @property
    def skipped(self) -> Counter[str]:
        """Rows left out so far, by cause."""
        ...

    def __len__(self) -> int: ...

    def captions(self, row: int) -> tuple[str, ...]:
        """The ways a row may be captioned in training; a batch takes one at random."""
        ...

    def groups(self) -> Rows:
        """(N,) caption groups."""
        ...

    def image_key(self, row: int) -> str:
        """A text that tells the row's picture from others: rows of one picture share it."""
        ...

    def fetch(self, rows: Rows) -> tuple[Tensor, list[int]]:
        """Pictures uint8 (B', 3, H, H) of the rows that can be read, and which of `rows` they are (positions)."""
        ...


class MapBatches:
    """Endless batches of a `PairSource`, one shuffled epoch behind the other.

    Args:
        noise: share of captions shuffled within the source; the permutation is `caption_rows`.

    Examples:
        >>> from oblique_clip.config import DataConfig
        >>> from oblique_clip.data.batches import MapBatches
        >>> from oblique_clip.data.sources import open_pairs
        >>> from oblique_clip.tokenizer import get_tokenizer
        >>> pairs = open_pairs(DataConfig(), image_size=32)
        >>> data = MapBatches(pairs, get_tokenizer("tiny", 32), batch_size=64, seed=0)
        >>> batch = next(data.batches())
        >>> batch.squares.shape, batch.groups.unique().numel()  # no caption twice in a batch
        (torch.Size([64, 3, 64, 64]), 64)
    """

    def __init__(
        self,
        source: PairSource,
        tokenizer: Tokenizer,
        batch_size: int,
        seed: int,
        twins: Literal["avoid", "allow"] = "avoid",
        noise: float = 0.0,
    ) -> None:
        self._source, self._batch_size, self._seed = source, batch_size, seed
        self._twins: Literal["avoid", "allow"] = twins
        self.pairs: int | None = len(source)
        self.caption_rows = noise_permutation(len(source), noise, seed)
        self._groups = source.groups()[self.caption_rows]
        self._tokens = [
            _tokenize(tokenizer, style) for style in zip(*map(source.captions, range(len(source))), strict=True)
        ]
        if not len(source) or not epoch_batches(self._groups, batch_size, seed, 0, twins):
            distinct = len(set(self._groups.tolist())) if twins == "avoid" else len(source)
            raise UserError(f"--batch-size {batch_size} is larger than the data: {distinct} pairs can share a batch")

    @property
    def skipped(self) -> Counter[str]:
        return self._source.skipped

    def batches(self) -> Iterator[Batch]:
        step = 0
        for epoch in itertools.count():
            before = step
            for rows in epoch_batches(self._groups, self._batch_size, self._seed, epoch, self._twins):
                squares, kept = self._source.fetch(rows)
                if len(kept) >= MIN_BATCH:
                    yield self._batch(squares, rows[kept], step)
                    step += 1
            if step == before:
                raise UserError(f"no batch of an epoch has {MIN_BATCH} images that can be read")

    def _batch(self, squares: Tensor, rows: Rows, step: int) -> Batch:
        origin = self.caption_rows[rows]
        style = np.random.default_rng((self._seed, step, 2)).integers(len(self._tokens), size=len(origin))
        ids = torch.stack([self._tokens[s][i] for s, i in zip(style, origin, strict=True)])
        return Batch(squares, cut_to_longest(ids), torch.from_numpy(self._groups[rows]), step)


def _tokenize(tokenizer: Tokenizer, captions: tuple[str, ...]) -> Tensor:
    unique = list(dict.fromkeys(captions))
    place = {caption: i for i, caption in enumerate(unique)}
    return tokenizer(unique)[torch.tensor([place[caption] for caption in captions])]


def prefetch(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """The same items, made ahead of time in a thread; an exception there is raised here.

    Examples:
        >>> from oblique_clip.data.batches import prefetch
        >>> list(prefetch(iter(range(3))))
        [0, 1, 2]
    """
    line: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(entry: tuple[Item | None, BaseException | None]) -> bool:
        while not closed.is_set():
            try:
                line.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item, error = line.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item
    finally:
        closed.set()
