"""`oblique-clip data check`: read a data source to its end and say what of it cannot be used, without training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .config import DataConfig, check_ranges
from .data.benchmarks import is_webdataset, open_webdataset, webdataset_shards, webdataset_type
from .data.captioned import of_json
from .data.emoji import load_emoji
from .data.faults import Lost, refuse_bad
from .data.folders import open_class_folder
from .data.shards import expand_shards, read_shards
from .data.sources import is_shards
from .data.tables import SUFFIXES, open_table
from .errors import UserError

# Decoding takes the time, whatever the pictures are cut to.
SIDE = 32
CHUNK = 256


@dataclass(frozen=True)
class CheckCommand:
    """Read a data source to its end and count what of it cannot be used."""

    data: Annotated[str, tyro.conf.Positional]
    """`emoji`, a CSV, TSV or Parquet file, .tar shards, a folder with one folder a class or in CLIP_benchmark's
    layout, or a caption JSON."""
    image_column: str = "image"
    """Column with the image path (table)."""
    caption_column: str = "caption"
    """Column with the caption (table)."""
    image_root: Path | None = None
    """Folder that image paths start at and may not lead out of (table, caption JSON; default: its own)."""
    workers: int = 2
    """Threads that decode the pictures of a table."""
    max_bad_fraction: float = 0.05
    """Share of samples that may be lost before the check fails, from 0 to 1."""


class Reading(NamedTuple):
    """A source that is being read."""

    good: Iterator[int]
    """Samples that could be read since the last number."""
    lost: Callable[[], Lost]
    """What was lost so far."""


class Found(NamedTuple):
    """What a source holds."""

    good: int
    lost: Lost


def check(command: CheckCommand) -> None:
    """Print how many samples can be read, and what was lost by cause, each with the name of one sample.

    Raises:
        UserError: for data that cannot be opened, that holds nothing, or of which more is lost than
            `max_bad_fraction` allows.
    """
    check_ranges(command)
    found = read_fully(command)
    total = found.good + found.lost.total()
    print(f"{command.data}: {total:,} samples, {found.lost.total():,} lost ({found.lost.total() / max(total, 1):.2%})")
    if found.lost:
        Console().print(_table(found.lost))
    if not total:
        raise UserError(f"{command.data} holds no sample")
    refuse_bad(found.lost, found.good, command.max_bad_fraction, command.data)


def read_fully(command: CheckCommand) -> Found:
    """Read a source to its end.

    Raises:
        UserError: for data that cannot be opened.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip.check import CheckCommand, read_fully
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (64, 64), "red").save(folder / "red.png")
        >>> (folder / "blue.png").touch()
        >>> with (folder / "pairs.csv").open("w") as table:
        ...     print("image,caption", "red.png,a red square", "blue.png,a blue square", sep=chr(10), file=table)
        >>> found = read_fully(CheckCommand(str(folder / "pairs.csv")))
        >>> found.good, found.lost.examples
        (1, {'empty file': 'blue.png'})
    """
    reading, good = _open(command), 0
    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,.0f} samples"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("reading", total=None)
        for count in reading.good:
            good += count
            progress.advance(task, count)
    return Found(good, reading.lost())


def _open(command: CheckCommand) -> Reading:
    path, lost = Path(command.data), Lost()
    if command.data == "emoji":
        return Reading(iter([len(load_emoji())]), Lost)
    if is_shards(command.data):
        return Reading((1 for _ in read_shards(expand_shards(command.data), SIDE, lost)), lambda: lost)
    if path.is_dir() and is_webdataset(path) and webdataset_type(path) == "retrieval":
        return Reading((1 for _ in read_shards(webdataset_shards(path), SIDE, lost)), lambda: lost)
    if path.is_dir():
        pictures = open_webdataset(path) if is_webdataset(path) else open_class_folder(path)
        return Reading((len(batch) for batch in pictures.squares(SIDE)), lambda: pictures.skipped)
    if not path.is_file():
        raise UserError(f"no such file or folder: {command.data}")
    if path.suffix.lower() in SUFFIXES:
        return _open_table(command)
    if path.suffix.lower() == ".json":
        captioned = of_json(path, command.image_root, SIDE)
        return Reading((len(squares) for squares, _ in captioned.batches), lambda: Lost(captioned.skipped()))
    raise UserError(
        f"cannot tell what {command.data!r} is: expected 'emoji', a {', '.join(SUFFIXES)} file, .tar shards, a folder "
        "of pictures by class, or a caption .json"
    )


def _open_table(command: CheckCommand) -> Reading:
    config = DataConfig(
        data=command.data,
        image_column=command.image_column,
        caption_column=command.caption_column,
        image_root=command.image_root,
        workers=command.workers,
    )
    pairs = open_table(Path(command.data), config, SIDE)
    chunks = (np.arange(start, min(start + CHUNK, len(pairs))) for start in range(0, len(pairs), CHUNK))
    return Reading((len(pairs.fetch(rows)[1]) for rows in chunks), lambda: pairs.skipped)


def _table(lost: Lost) -> Table:
    table = Table("lost for", "samples", "such as")
    for cause, count in lost.most_common():
        # A name comes from the data: no letter of it may steer the terminal.
        name = lost.examples.get(cause, "")
        table.add_row(cause, f"{count:,}", Text(name if name.isprintable() else ascii(name)))
    return table
