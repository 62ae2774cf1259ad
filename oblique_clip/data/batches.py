"""From pairs to batches, one shuffled epoch behind another, from any place on."""

from __future__ import annotations

import hashlib
import itertools
import json
import queue
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..tokenizer import Tokenizer, cut_to_longest
from .faults import Lost
from .order import ALONE, START, Position, Rows, Share, epoch_batches, noise_permutation

# A pair alone has no negatives.
MIN_BATCH = 2
Item = TypeVar("Item")


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
    places: tuple[int, ...] | None = None
    """Where its B pairs stood in the batch of all processes as it was planned; None where they are all of it."""
    keys: tuple[str, ...] = ()
    """Names of its B samples, for people: a file, a shard and a key, or a source and a caption."""
    next: Position = START
    """Where the stream goes on behind it."""
    failed: Counter[str] = field(default_factory=Counter)
    """Samples lost since the batch before, by cause: in the first epoch alone, as they are lost in each."""
    missing: int = 0
    """How many were lost since the batch before, in any epoch."""

    def pinned(self) -> Batch:
        """The same in page-locked memory, which a GPU copies from without anyone waiting."""
        squares, ids, groups = (tensor.pin_memory() for tensor in (self.squares, self.ids, self.groups))
        return replace(self, squares=squares, ids=ids, groups=groups)


class TrainingData(Protocol):
    """Endless batches for the training loop."""

    @property
    def left_out(self) -> Counter[str]:
        """Samples left out when the source was opened, by cause; those lost later are said by `Batch.failed`."""
        ...

    @property
    def pairs(self) -> int | None:
        """Pairs an epoch; None for a stream of unknown length."""
        ...

    @property
    def shards(self) -> int:
        """Files that hold many samples each; 0 where every sample has its own."""
        ...

    def batches(self, start: Position = START) -> Iterator[Batch]:
        """The batches from `start` on: bit for bit those of a stream that was never interrupted."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """A few JSON values that are others where the samples are."""
        ...


Planned = TypeVar("Planned")


def endless(
    plan: Callable[[int, Lost], Iterable[Planned]],
    read: Callable[[Planned, int, Lost], Batch],
    start: Position,
    smallest: int,
) -> Iterator[Batch]:
    """The batches of one epoch behind another.

    Args:
        plan: the planned batches of an epoch, the same whenever it is asked; what lies before `start` is not read.
        read: a planned batch at a step. Both count what they lose.
        smallest: a batch of fewer readable pairs is given up.

    Raises:
        UserError: where an epoch has no batch to give.

    Examples:
        >>> import torch
        >>> from oblique_clip.data.batches import Batch, endless
        >>> from oblique_clip.data.order import Position
        >>> def read(rows, step, lost):
        ...     return Batch(torch.zeros(2, 3, 8, 8), torch.zeros(2, 1), torch.tensor(rows), step)
        >>> start = Position(epoch=4, batch=1, step=9)
        >>> batches = endless(lambda epoch, lost: [[0, 1], [2, 3]], read, start, smallest=2)
        >>> for batch in (next(batches), next(batches)):
        ...     print(batch.groups.tolist(), batch.next)
        [2, 3] Position(epoch=4, batch=2, step=10)
        [0, 1] Position(epoch=5, batch=1, step=11)
    """
    step, lost, again = start.step, Lost(), Lost()
    for epoch in itertools.count(start.epoch):
        behind, before = start.batch if epoch == start.epoch else 0, step
        counted = lost if epoch == 0 else again
        for number, planned in enumerate(plan(epoch, counted)):
            if number < behind:
                counted.clear()  # that batch has said it
                continue
            batch = read(planned, step, counted)
            if len(batch.squares) >= smallest:
                step += 1
                missing = counted.total()
                yield replace(batch, next=Position(epoch, number + 1, step), failed=Counter(lost), missing=missing)
                lost.clear()
                again.clear()
        if step == before and not behind:
            raise UserError(f"no batch of an epoch has {smallest} images that can be read")


def smallest_batch(share: Share) -> int:
    """Pairs below which a batch is given up.

    Several processes must take the same steps, but none knows what the others could read: they give up none.
    """
    return MIN_BATCH if share.world == 1 else 0


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


class PairSource(Protocol):
    """Pairs that can be read in any order."""

    @property
    def left_out(self) -> Lost:
        """Rows left out when the source was opened, by cause."""
        ...

    @property
    def skipped(self) -> Lost:
        """Rows left out so far: those of `left_out`, and those that could not be fetched."""
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

    def name(self, row: int) -> str:
        """What a person finds the row by."""
        ...

    def fetch(self, rows: Rows) -> tuple[Tensor, list[int]]:
        """Pictures uint8 (B', 3, H, H) of the rows that can be read, and which of `rows` they are (positions)."""
        ...

    def cause(self, row: int) -> str:
        """Why `fetch` has not given the row."""
        ...


class MapBatches:
    """Endless batches of a `PairSource`, one shuffled epoch behind the other.

    Args:
        batch_size: pairs of all processes together.
        noise: share of captions shuffled within the source; the permutation is `caption_rows`.
        share: each process plans the same batches and reads its own rows of them.

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
        >>> again = next(data.batches(batch.next))
        >>> again.step, again.keys[0]
        (1, ...)
    """

    def __init__(
        self,
        source: PairSource,
        tokenizer: Tokenizer,
        batch_size: int,
        seed: int,
        twins: Literal["avoid", "allow"] = "avoid",
        noise: float = 0.0,
        share: Share = ALONE,
    ) -> None:
        self._source, self._batch_size, self._seed = source, batch_size, seed
        self._part, self._smallest = share.part(batch_size), smallest_batch(share)
        self._twins: Literal["avoid", "allow"] = twins
        self.pairs: int | None = len(source)
        self.shards = 0
        self.caption_rows = noise_permutation(len(source), noise, seed)
        self._groups = source.groups()[self.caption_rows]
        if not len(source) or not epoch_batches(self._groups, batch_size, seed, 0, twins):
            distinct = len(set(self._groups.tolist())) if twins == "avoid" else len(source)
            raise UserError(f"--batch-size {batch_size} is larger than the data: {distinct} pairs can share a batch")
        styles = zip(*map(source.captions, range(len(source))), strict=True)
        # (ways to caption, N, L)
        self._tokens = torch.stack([_tokenize(tokenizer, style) for style in styles])

    @property
    def left_out(self) -> Counter[str]:
        return self._source.left_out

    def batches(self, start: Position = START) -> Iterator[Batch]:
        return endless(self._plan, self._read, start, self._smallest)

    def fingerprint(self) -> dict[str, Any]:
        digest = hashlib.blake2b(digest_size=16)
        for row in range(len(self._source)):
            digest.update(json.dumps([self._source.name(row), *self._source.captions(row)]).encode())
        return {"pairs": self.pairs, "digest": digest.hexdigest()}

    def _plan(self, epoch: int, lost: Lost) -> list[Rows]:
        return epoch_batches(self._groups, self._batch_size, self._seed, epoch, self._twins)

    def _read(self, rows: Rows, step: int, lost: Lost) -> Batch:
        # Drawn for the rows of all processes, so that each pair has the caption that it has in one process.
        styles = np.random.default_rng((self._seed, step, 2)).integers(len(self._tokens), size=len(rows))
        rows, styles = rows[self._part], styles[self._part]
        squares, kept = self._source.fetch(rows)
        for row in np.delete(rows, kept).tolist():
            lost.add(self._source.cause(row), self._source.name(row))
        rows, styles = rows[kept], styles[kept]
        ids = self._tokens[torch.from_numpy(styles), torch.from_numpy(self.caption_rows[rows])]
        names = tuple(self._source.name(row) for row in rows.tolist())
        places = tuple(self._part.start + place for place in kept)
        return Batch(squares, cut_to_longest(ids), torch.from_numpy(self._groups[rows]), step, places, names)


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
