"""`oblique-clip data`: what a data set holds, counted, with some of its pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .config import DataConfig
from .data.emoji import load_emoji
from .data.faults import Lost
from .data.shards import expand_shards, read_shards
from .data.sources import TRAINING, is_shards, kind_of, open_pairs
from .data.splits import split_emoji
from .errors import UserError
from .report import print_skipped

SIDE = 64


@dataclass(frozen=True)
class DataCommand:
    """Describe a data set and show some of its pairs. `oblique-clip data check PATH` reads one to its end instead."""

    source: DataConfig = field(default_factory=DataConfig)
    show: int = 10
    """Pairs to show, drawn by the seed (shards: the first ones)."""
    out: Path | None = None
    """Folder for pairs.png, the shown pictures side by side in the order of their captions."""
    seed: int = 0
    """Seed of the draw."""


def describe(command: DataCommand) -> None:
    """Print counts and some pairs of a data set; write their pictures where `out` is given.

    Raises:
        UserError: for data that cannot be read.
    """
    config = command.source
    if config.data == "emoji":
        _print_emoji(config)
    pictures, captions, skipped = _sample(command)
    for caption in captions:
        print(f"  {caption}")
    print_skipped(dict(skipped))
    if command.out is not None and len(captions):
        command.out.mkdir(parents=True, exist_ok=True)
        strip = torch.cat(list(pictures), -1).permute(1, 2, 0).numpy()
        Image.fromarray(strip).save(command.out / "pairs.png")
        print(f"pictures: {command.out / 'pairs.png'}")


def _print_emoji(config: DataConfig) -> None:
    splits = split_emoji(config)
    table = Table("part", "pairs", "names", title="The shipped set", title_justify="left")
    parts = {"train": splits.train, "validation family": splits.val, "test family": splits.test}
    for name, part in {**parts, "held-out concepts": splits.concepts, "all": load_emoji()}.items():
        table.add_row(name, f"{len(part):,}", f"{len({record.concept for record in part.records}):,}")
    Console().print(table)
    sources = Counter(f"{record.family} ({record.source})" for record in load_emoji().records)
    print("sources:", ", ".join(f"{name} {count:,}" for name, count in sources.items()))


def _sample(command: DataCommand) -> tuple[Tensor, list[str], Counter[str]]:
    config = command.source
    if command.show < 0:
        raise UserError(f"--show must be at least 0, not {command.show}")
    kind_of(TRAINING, config.data)
    if is_shards(config.data):
        skipped = Lost()
        samples = list(islice(read_shards(expand_shards(config.data), SIDE, skipped), command.show))
        squares = [sample.square for sample in samples]
        return torch.stack(squares) if squares else torch.empty(0), [sample.caption for sample in samples], skipped
    pairs = open_pairs(config, SIDE)
    print(f"{config.data}: {len(pairs):,} pairs to train on, {len(set(pairs.groups().tolist())):,} distinct captions")
    rows = np.random.default_rng(command.seed).choice(len(pairs), min(command.show, len(pairs)), replace=False)
    pictures, kept = pairs.fetch(rows)
    return pictures, [pairs.captions(int(row))[0] for row in rows[kept]], pairs.skipped
