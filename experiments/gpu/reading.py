"""How fast one process reads shards: the plan of `oblique-clip bench` takes for granted that a GPU never waits for it.

python -m experiments.gpu.reading "/data/cc3m/{00000..00003}.tar"

Tar, captions and putting a batch together are the work of one thread, whatever `--workers` says; between them all
workers decode its pictures. Seconds are of the processor, so that other work on the machine counts little.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

import torch
import tyro

from oblique_clip.cli import run_script
from oblique_clip.data.faults import Lost
from oblique_clip.data.images import decode_square
from oblique_clip.data.shards import Pair, expand_shards, pairs_of, read_records
from oblique_clip.errors import UserError
from oblique_clip.tokenizer import get_tokenizer

from .settings import COMMON

BATCH = 512
T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """Measure one process on a core."""

    data: Annotated[str, tyro.conf.Positional]
    """Shards."""
    pairs: int = 4096
    """Pairs that are read."""


def main(command: Reading) -> None:
    """Print the rates.

    Raises:
        UserError: for shards without a pair.
    """
    torch.set_num_threads(1)
    tokenizer = get_tokenizer("clip", int(COMMON["context_length"].value))
    side = int(COMMON["image_size"].value)
    pairs, reading = _timed(lambda: _read(command.data, command.pairs))
    if not pairs:
        raise UserError(f"{command.data} has no pair")
    batches = [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)]
    _, tokens = _timed(lambda: [tokenizer([pair.caption for pair in batch]) for batch in batches])
    squares, decoding = _timed(lambda: [decode_square(pair.picture, side) for pair in pairs[:BATCH]])
    _, stacking = _timed(lambda: torch.stack(squares))
    alone = 1 / ((reading + tokens) / len(pairs) + stacking / len(squares))
    decoded, workers = len(squares) / decoding, int(COMMON["workers"].value)
    print(
        f"tar {len(pairs) / reading:,.0f}, captions {len(pairs) / tokens:,.0f}, batches {len(squares) / stacking:,.0f}"
    )
    print(f"in one thread {alone:,.0f} pairs a second, decoded {decoded:,.0f} pictures a second of a core")
    print(f"{workers} workers, were they to scale: {rate(alone, decoded, workers):,.0f} pairs a second of a process")


def rate(alone: float, decoded: float, workers: int) -> float:
    """Pairs a second of a process, by those of its one thread and of one core that decodes."""
    return 1 / (1 / alone + 1 / (decoded * workers))


def _read(shards: str, count: int) -> list[Pair]:
    lost = Lost()
    return list(itertools.islice(pairs_of(read_records(expand_shards(shards), lost), lost), count))


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.process_time()
    return work(), time.process_time() - began


if __name__ == "__main__":
    run_script(main, Reading, "python -m experiments.gpu.reading")
