"""Pairs named by a table: CSV, TSV or Parquet with a column of image paths and one of captions."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import DataConfig
from ..errors import UserError
from .batches import caption_group
from .faults import BadSample, Lost, by_cause, cause_of, clean_caption
from .images import READ_ERRORS, decode_square
from .order import Rows

SUFFIXES = (".csv", ".tsv", ".parquet")
OUTSIDE = "path outside the data folder"

# A row: where it stands, and what it has for an image and for a caption.
TableRow = tuple[str, Any, Any]


class FilePairs:
    """Image files and captions named by a table; files that cannot be read are skipped and counted.

    Args:
        names: of the rows, for people; the paths where None.
        left_out: rows that are not among the paths.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip.data.tables import FilePairs
        >>> path = Path(tempfile.mkdtemp()) / "red.png"
        >>> Image.new("RGB", (64, 64), "red").save(path)
        >>> pairs = FilePairs([path], ["a red square"], side=32, workers=1)
        >>> squares, kept = pairs.fetch([0])
        >>> squares.shape, pairs.captions(0)
        (torch.Size([1, 3, 32, 32]), ('a red square',))
    """

    def __init__(
        self,
        paths: list[Path],
        captions: list[str],
        side: int,
        workers: int,
        names: list[str] | None = None,
        left_out: Lost | None = None,
    ) -> None:
        self._paths, self._captions, self._side, self._names = paths, captions, side, names
        self._pool = ThreadPoolExecutor(max(1, workers))
        self.left_out = Lost() if left_out is None else left_out
        self._causes: dict[int, str] = {}

    @property
    def skipped(self) -> Lost:
        """Rows left out, by cause: each once, however often it was tried."""
        lost = Lost(self.left_out)
        for row, cause in sorted(self._causes.items()):
            lost.add(cause, self.name(row))
        return lost

    def __len__(self) -> int:
        return len(self._paths)

    def captions(self, row: int) -> tuple[str, ...]:
        return (self._captions[row],)

    def groups(self) -> Rows:
        return np.array([caption_group(caption) for caption in self._captions])

    def image_key(self, row: int) -> str:
        return str(self._paths[row].resolve())

    def name(self, row: int) -> str:
        return str(self._paths[row]) if self._names is None else self._names[row]

    def cause(self, row: int) -> str:
        return self._causes[int(row)]

    def fetch(self, rows: Rows) -> tuple[Tensor, list[int]]:
        decoded = list(self._pool.map(self._read, rows))
        kept = [i for i, square in enumerate(decoded) if square is not None]
        squares = [square for square in decoded if square is not None]
        return torch.stack(squares) if squares else torch.empty(0, 3, self._side, self._side, dtype=torch.uint8), kept

    def _read(self, row: int) -> Tensor | None:
        try:
            return decode_square(self._paths[row], self._side)
        except READ_ERRORS as error:
            self._causes[int(row)] = cause_of(error)
            return None


def open_table(path: Path, config: DataConfig, side: int) -> FilePairs:
    """The pairs of a CSV, TSV or Parquet file; rows that are damaged or lack an image or a caption are counted.

    Paths start at `config.image_root`, the table's folder where None, and may not lead out of it.

    Raises:
        UserError: for a missing file or column, a table of which no row is left, or when none of the images exists.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip.config import DataConfig
        >>> from oblique_clip.data.tables import open_table
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (64, 64), "red").save(folder / "red.png")
        >>> rows = ("red.png,a red square", "blue.png,a blue square", "../red.png,a red square")
        >>> with (folder / "pairs.csv").open("w") as table:
        ...     print("image,caption", *rows, sep=chr(10), file=table)
        >>> pairs = open_table(folder / "pairs.csv", DataConfig(), side=32)
        >>> squares, kept = pairs.fetch([0, 1])
        >>> len(pairs), kept, dict(pairs.skipped)  # there is no blue.png
        (2, [0], {'path outside the data folder': 1, 'missing image': 1})
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    read = _parquet_rows if path.suffix.lower() == ".parquet" else _delimited_rows
    root = path.parent if config.image_root is None else config.image_root
    lost = Lost()
    rows = read(path, (config.image_column, config.caption_column), lost)
    return file_pairs(path, rows, root, side, config.workers, lost)


def below(root: Path, image: object) -> Path:
    """Where an image lies whose path starts at `root`. A symbolic link may lead out of it: it is the user's own.

    Raises:
        BadSample: for no path at all, or one that leads out of `root`.

    Examples:
        >>> from pathlib import Path
        >>> from oblique_clip.data.tables import below
        >>> below(Path("data"), "more/../red.png").as_posix()
        'data/red.png'
        >>> below(Path("data"), "../red.png")
        Traceback (most recent call last):
            ...
        oblique_clip.data.faults.BadSample: path outside the data folder: ../red.png
    """
    if not isinstance(image, str) or not image:
        raise BadSample("no image")
    if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in image):
        raise BadSample("path not UTF-8")
    here, path = (Path(os.path.normpath(place)) for place in (root.absolute(), root.absolute() / image))
    if not path.is_relative_to(here):
        raise BadSample(OUTSIDE, image)
    return root / path.relative_to(here)


def file_pairs(path: Path, rows: Iterable[TableRow], root: Path, side: int, workers: int, lost: Lost) -> FilePairs:
    """The rows, read from `path`, that have an image below `root` and a clean caption; the others go to `lost`.

    Raises:
        UserError: where no row is left, or none of the images exists.
    """
    paths: list[Path] = []
    captions: list[str] = []
    names: list[str] = []
    for row, image, caption in rows:
        try:
            image_path, text = below(root, image), clean_caption(caption)
        except BadSample as error:
            lost.add(error.cause, f"{path.name} {row}")
            continue
        paths.append(image_path)
        captions.append(text)
        names.append(str(image))
    folder = f"paths start at {root}; name another folder with --image-root (evaluate: --data-root)"
    if not paths:
        why = (f": {by_cause(lost)}" if lost else "") + (f"; {folder}" if lost[OUTSIDE] else "")
        raise UserError(f"{path} has no row with both an image and a caption{why}")
    if not any(_is_file(image) for image in dict.fromkeys(paths)):
        raise UserError(f"{path}: none of its images exists, such as {paths[0]}; {folder}")
    return FilePairs(paths, captions, side, workers, names, lost)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than a file's may be
        return False


def _delimited_rows(path: Path, columns: tuple[str, str], lost: Lost) -> Iterator[TableRow]:
    """Rows of a CSV or TSV. Bytes that are no UTF-8 become half surrogates, so that they spoil their own row alone."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise UserError(f"{path} is not a readable table: {error}") from error
        image, caption = _places(path, header, columns)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error:
                lost.add("unreadable row", f"{path.name} line {reader.line_num}")
                continue
            if cells and len(cells) != len(header):
                lost.add("row with the wrong number of fields", f"{path.name} line {reader.line_num}")
            elif cells:
                yield f"line {reader.line_num}", cells[image], cells[caption]


def _parquet_rows(path: Path, columns: tuple[str, str], lost: Lost) -> Iterator[TableRow]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError("Parquet needs pyarrow: pip install 'oblique-clip[parquet]'") from error
    try:
        _places(path, parquet.read_schema(path).names, columns)
        table = parquet.read_table(path, columns=list(dict.fromkeys(columns)))
        images, captions = (table[column].to_pylist() for column in columns)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {error}") from error
    for number, (image, caption) in enumerate(zip(images, captions, strict=True), 1):
        numeric = isinstance(caption, int | float)
        yield f"row {number}", image, str(caption) if numeric else caption


def _places(path: Path, header: Sequence[str], columns: tuple[str, str]) -> list[int]:
    for column in columns:
        if column not in header:
            raise UserError(f"{path} has no column {column!r}; it has {', '.join(header)}")
    return [list(header).index(column) for column in columns]
