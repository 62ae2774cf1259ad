"""What `--data` and `--val-data` may name: the shipped set, a table of files, or WebDataset shards."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..config import DataConfig
from ..errors import UserError
from ..tokenizer import Tokenizer, cut_to_longest
from .batches import Batch, MapBatches, PairSource, Rows, TrainingData, caption_group, without_twins
from .emoji import EmojiSet, load_emoji
from .images import decode_square

# Files are kept a little larger than the model's input, so that a random crop has something to crop.
CROP_MARGIN = 8 / 7
SHUFFLE_BUFFER = 2000
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
READ_ERRORS = (OSError, ValueError)


@dataclass(frozen=True)
class EmojiSplits:
    """The shipped set cut as a `DataConfig` says; no picture is in two of the parts that it is judged by."""

    train: EmojiSet
    val: EmojiSet
    """Every picture of the validation families."""
    test: EmojiSet
    """Every picture of the test families."""
    concepts: EmojiSet
    """Pictures of the training families whose concepts (`held_out_concepts`) were kept out of training."""


def split_emoji(config: DataConfig) -> EmojiSplits:
    """Cut the shipped set.

    Raises:
        UserError: for a family or a split of concepts that does not exist, a family named for both validation and
            test, or where nothing is left to train on.
    """
    whole = load_emoji()
    known = sorted({record.family for record in whole.records})
    for family in (*config.test_families, *config.val_families):
        if family not in known:
            raise UserError(f"the shipped set has no family {family!r}; there is {', '.join(known)}")
    for family in config.test_families:
        if family in config.val_families:
            raise UserError(f"{family} cannot be both a test and a validation family: name another --val-families")
    for name in config.held_out_concepts:
        if name not in ("val", "test"):
            raise UserError(f"--held-out-concepts takes val and test, not {name!r}")
    held_families = {*config.test_families, *config.val_families}
    own = np.array([record.family not in held_families for record in whole.records])
    held = np.array([record.split in config.held_out_concepts for record in whole.records])
    train = whole.select(own & ~held)
    if not len(train):
        raise UserError("every family is held out: nothing is left to train on")
    return EmojiSplits(
        train, whole.of_families(config.val_families), whole.of_families(config.test_families), whole.select(own & held)
    )


class EmojiPairs:
    """The shipped set as a `PairSource`."""

    def __init__(self, emoji: EmojiSet, captions: Literal["name", "keywords", "mixed"]) -> None:
        self._emoji, self._style = emoji, captions
        self.skipped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._emoji)

    def captions(self, row: int) -> tuple[str, ...]:
        record = self._emoji.records[row]
        return {
            "name": (record.caption,),
            "keywords": (record.described,),
            "mixed": (record.caption, record.described),
        }[self._style]

    def groups(self) -> Rows:
        return np.array([caption_group(record.caption) for record in self._emoji.records])

    def fetch(self, rows: Rows) -> tuple[Tensor, list[int]]:
        return self._emoji.images(rows), list(range(len(rows)))


class FilePairs:
    """Image files and captions named by a table; files that cannot be read are skipped and counted."""

    def __init__(self, paths: list[Path], captions: list[str], side: int, workers: int) -> None:
        self._paths, self._captions, self._side = paths, captions, side
        self._pool = ThreadPoolExecutor(max(1, workers))
        self.skipped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._paths)

    def captions(self, row: int) -> tuple[str, ...]:
        return (self._captions[row],)

    def groups(self) -> Rows:
        return np.array([caption_group(caption) for caption in self._captions])

    def fetch(self, rows: Rows) -> tuple[Tensor, list[int]]:
        decoded = list(self._pool.map(self._read, rows))
        self.skipped.update(cause for cause in decoded if isinstance(cause, str))
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
        UserError: for a missing file or column, an empty table, or when none of the first files exists.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    columns, rows = _read_parquet(path) if path.suffix == ".parquet" else _read_delimited(path)
    for column in (config.image_column, config.caption_column):
        if column not in columns:
            raise UserError(f"{path} has no column {column!r}; it has {', '.join(columns)}")
    wanted = [(row.get(config.image_column), row.get(config.caption_column)) for row in rows]
    good = [(path.parent / str(image), str(text)) for image, text in wanted if image and text and str(text).strip()]
    if not good:
        raise UserError(f"{path} has no row with both an image and a caption")
    if not any(image.is_file() for image, _ in good[:32]):
        raise UserError(
            f"{path}: none of the first images exists, such as {good[0][0]}; paths start at the table's folder"
        )
    pairs = FilePairs([image for image, _ in good], [text for _, text in good], side, config.workers)
    pairs.skipped.update({"row without image or caption": len(wanted) - len(good)} if len(good) < len(wanted) else {})
    return pairs


def _read_delimited(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
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


def expand_shards(pattern: str) -> list[str]:
    """The local files or addresses that a brace pattern names.

    Raises:
        UserError: where a local shard is missing, or braces do not close.
    """
    from webdataset.shardlists import expand_urls

    try:
        urls: list[str] = expand_urls(pattern)
    except ValueError as error:
        raise UserError(f"cannot expand the shards {pattern!r}: {error}") from error
    missing = [url for url in urls if "://" not in url and not url.startswith("pipe:") and not Path(url).is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(urls)} shards are missing, such as {missing[0]}")
    return urls


@dataclass(frozen=True)
class Sample:
    """One decoded pair of a stream."""

    square: Tensor
    caption: str


def read_shards(urls: list[str], side: int, skipped: Counter[str], seed: int | None = None) -> Iterator[Sample]:
    """Decoded pairs of WebDataset shards once through, shuffled within a buffer where there is a seed."""
    import webdataset

    def lenient(error: Exception) -> bool:
        skipped[f"shard: {type(error).__name__}"] += 1
        return True

    shuffle = False if seed is None else len(urls)
    stream: Iterable[dict[str, Any]] = webdataset.WebDataset(
        urls, shardshuffle=shuffle, seed=seed, handler=lenient, empty_check=False, nodesplitter=None
    )
    if seed is not None:
        stream = stream.shuffle(SHUFFLE_BUFFER, seed=seed)  # type: ignore[attr-defined]
    for record in stream:
        sample = _decode_record(record, side, skipped)
        if sample is not None:
            yield sample


def _decode_record(record: dict[str, Any], side: int, skipped: Counter[str]) -> Sample | None:
    picture = next((record[key] for key in ("jpg", "jpeg", "png", "webp") if key in record), None)
    if picture is None:
        skipped["no image"] += 1
        return None
    try:
        caption = record["txt"].decode() if "txt" in record else json.loads(record["json"])["caption"]
        caption.encode()  # JSON can spell half a surrogate pair, which is no text
        blank = not caption.strip()
    except (KeyError, ValueError, TypeError, AttributeError):
        blank = True
    if blank:
        skipped["no caption"] += 1
        return None
    try:
        return Sample(decode_square(picture, side), caption)
    except READ_ERRORS:
        skipped["unreadable image"] += 1
        return None


class ShardBatches:
    """Endless batches from WebDataset shards, read in a stream; each pass has its own order by (seed, pass).

    What fills no batch at the end of a pass is dropped, as it is at the end of an epoch of `MapBatches`.
    """

    pairs: int | None = None

    def __init__(self, pattern: str, tokenizer: Tokenizer, batch_size: int, seed: int, side: int, twins: str) -> None:
        self._urls, self._tokenizer = expand_shards(pattern), tokenizer
        self._batch_size, self._seed, self._side, self._twins = batch_size, seed, side, twins
        self.skipped: Counter[str] = Counter()

    def batches(self) -> Iterator[Batch]:
        step = 0
        for passed in itertools.count():
            distinct: set[int] = set()
            before = step
            stream = self._one_pass(passed, distinct)
            for samples in without_twins(stream, self._batch_size, SHUFFLE_BUFFER, self.skipped):
                ids = cut_to_longest(self._tokenizer([sample.caption for sample in samples]))
                groups = torch.tensor([caption_group(sample.caption) for sample in samples])
                yield Batch(torch.stack([sample.square for sample in samples]), ids, groups, step)
                step += 1
            if step == before:
                raise UserError(
                    f"--batch-size {self._batch_size} is larger than the data: {len(distinct)} pairs can share a batch"
                )

    def _one_pass(self, passed: int, distinct: set[int]) -> Iterator[tuple[int, Sample]]:
        """Samples with their groups, which are noted in `distinct` until they could fill a batch."""
        order = int(np.random.default_rng((self._seed, passed)).integers(2**31))
        for number, sample in enumerate(read_shards(self._urls, self._side, self.skipped, order)):
            # Where twins are allowed, every sample is a group of its own.
            group = caption_group(sample.caption) if self._twins == "avoid" else number
            if len(distinct) < self._batch_size:
                distinct.add(group)
            yield group, sample


def open_training_data(
    config: DataConfig, tokenizer: Tokenizer, batch_size: int, image_size: int, seed: int
) -> TrainingData:
    """The batches that `config.data` names.

    Raises:
        UserError: for data that is missing or unreadable, a batch larger than the data, or noise asked of a stream.
    """
    if batch_size < 2:
        raise UserError(f"--batch-size must be at least 2, not {batch_size}: the other pairs are the negatives")
    if is_shards(config.data):
        if config.caption_noise:
            raise UserError("--caption-noise needs data that can be read in any order; shards are a stream")
        side = round(image_size * CROP_MARGIN)
        return ShardBatches(config.data, tokenizer, batch_size, seed, side, config.twins)
    source = open_pairs(config, image_size)
    return MapBatches(source, tokenizer, batch_size, seed, config.twins, config.caption_noise)


def open_pairs(config: DataConfig, image_size: int) -> PairSource:
    """The shipped set's training part, or a table."""
    if config.data == "emoji":
        return EmojiPairs(split_emoji(config).train, config.captions)
    if Path(config.data).suffix in TABLE_SUFFIXES:
        return open_table(Path(config.data), config, round(image_size * CROP_MARGIN))
    raise UserError(
        f"cannot tell what --data {config.data!r} is: expected 'emoji', a .csv, .tsv or .parquet file, or .tar shards"
    )


def is_shards(data: str) -> bool:
    return ".tar" in data and Path(data).suffix not in TABLE_SUFFIXES
