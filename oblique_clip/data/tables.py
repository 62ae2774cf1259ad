"""Pairs named by a table: CSV, TSV or Parquet with a column of image paths and one of captions."""

from __future__ import annotations

import csv
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import DataConfig
from ..errors import UserError
from .batches import Rows, caption_group
from .images import READ_ERRORS, decode_square

SUFFIXES = (".csv", ".tsv", ".parquet")


class FilePairs:
    """Image files and captions named by a table; files that cannot be read are skipped and counted.

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

    def __init__(self, paths: list[Path], captions: list[str], side: int, workers: int) -> None:
        self._paths, self._captions, self._side = paths, captions, side
        self._pool = ThreadPoolExecutor(max(1, workers))
        self.left_out: Counter[str] = Counter()
        self._unread: dict[int, str] = {}

    @property
    def skipped(self) -> Counter[str]:
        """Rows left out, by cause: each once, however often it was tried."""
        return self.left_out + Counter(self._unread.values())

    def __len__(self) -> int:
        return len(self._paths)

    def captions(self, row: int) -> tuple[str, ...]:
        return (self._captions[row],)

    def groups(self) -> Rows:
        return np.array([caption_group(caption) for caption in self._captions])

    def image_key(self, row: int) -> str:
        return str(self._paths[row].resolve())

    def fetch(self, rows: Rows) -> tuple[Tensor, list[int]]:
        decoded = list(self._pool.map(self._read, rows))
        self._unread.update(
            (int(row), cause) for row, cause in zip(rows, decoded, strict=True) if isinstance(cause, str)
        )
        kept = [i for i, square in enumerate(decoded) if isinstance(square, Tensor)]
        squares = [square for square in decoded if isinstance(square, Tensor)]
        return torch.stack(squares) if squares else torch.empty(0, 3, self._side, self._side, dtype=torch.uint8), kept

    def _read(self, row: int) -> Tensor | str:
        """The picture, or why there is none."""
        try:
            return decode_square(self._paths[row], self._side)
        except FileNotFoundError:
            return "missing image"
        except READ_ERRORS:
            return "unreadable image"


def open_table(path: Path, config: DataConfig, side: int) -> FilePairs:
    """The pairs of a CSV, TSV or Parquet file; rows without an image or a caption are skipped and counted.

    Raises:
        UserError: for a missing file or column, an empty table, or when none of the images exists.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip.config import DataConfig
        >>> from oblique_clip.data.tables import open_table
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (64, 64), "red").save(folder / "red.png")
        >>> with (folder / "pairs.csv").open("w") as table:
        ...     print("image,caption", "red.png,a red square", "blue.png,a blue square", sep=chr(10), file=table)
        >>> pairs = open_table(folder / "pairs.csv", DataConfig(), side=32)
        >>> squares, kept = pairs.fetch([0, 1])
        >>> len(pairs), squares.shape, kept, pairs.skipped  # there is no blue.png
        (2, torch.Size([1, 3, 32, 32]), [0], Counter({'missing image': 1}))
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    columns, rows = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_delimited(path)
    for column in (config.image_column, config.caption_column):
        if column not in columns:
            raise UserError(f"{path} has no column {column!r}; it has {', '.join(columns)}")
    wanted = [(row.get(config.image_column), row.get(config.caption_column)) for row in rows]
    good = [(path.parent / str(image), str(text)) for image, text in wanted if image and text and str(text).strip()]
    if not good:
        raise UserError(f"{path} has no row with both an image and a caption")
    if not any(image.is_file() for image, _ in good):
        raise UserError(f"{path}: none of its images exists, such as {good[0][0]}; paths start at the table's folder")
    pairs = FilePairs([image for image, _ in good], [text for _, text in good], side, config.workers)
    pairs.left_out.update({"row without image or caption": len(wanted) - len(good)} if len(good) < len(wanted) else {})
    return pairs


def _read_delimited(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            return list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a readable table in UTF-8: {error}") from error


def _read_parquet(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError("Parquet needs pyarrow: pip install 'oblique-clip[parquet]'") from error
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {error}") from error
    return table.column_names, table.to_pylist()
