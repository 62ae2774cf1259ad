"""`oblique-clip embed`: pictures encoded once, into a Parquet file that search and any vector database can read.

Columns: `id`, `caption` and `split` (texts, null where unknown) and `vector`, a fixed number of float32. Under the key
`oblique_clip` of the file's metadata stands JSON: the model, its `fingerprint`, its topology, `kind` and what was
skipped. `kind` is `flat` where `Topology.flat` gives unit vectors, whose cosines rank as the topology does; where it
has none it is `points`, the numbers of each point in a row, which no tool that knows only cosines can compare.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor

from .checkpoint import Loaded, data_of, fingerprint, home_of, load
from .config import DataConfig, check_file, check_ranges
from .data.emoji import EmojiSet, load_emoji
from .data.faults import BadSample, Lost, cause_of
from .data.folders import is_picture
from .data.images import READ_ERRORS, decode_square
from .data.shards import caption_of, expand_shards, name_of, picture_of, read_records
from .data.sources import EMOJI_NAME, SHARDS_NAME, TABLE_NAME, Kind, is_emoji, is_shards, is_table, open_as
from .data.splits import split_emoji
from .data.tables import FilePairs, open_table
from .device import pick_device
from .errors import UserError
from .evaluate.encode import encode_images
from .topology import Topology

KEY = b"oblique_clip"
FORMAT_VERSION = 1
CHUNK = 256
GROUP = 32 * CHUNK
"""Rows of the file that are held until they are written together."""


@dataclass(frozen=True)
class EmbedConfig:
    """Encode pictures once, into a Parquet file of vectors.

    Examples:
        >>> from pathlib import Path
        >>> from oblique_clip.embed import EmbedConfig
        >>> config = EmbedConfig("pairs.csv", model="runs/mine", out=Path("mine.parquet"))
        >>> config.image_column, config.caption_column
        ('image', 'caption')
    """

    data: Annotated[str, tyro.conf.Positional]
    """`emoji` (every shipped picture), a folder of pictures, a CSV, TSV or Parquet file, or .tar shards."""
    model: str = "tiny-oblique"
    """A run folder, a checkpoint file, a shipped model, or from elsewhere open_clip:NAME/TAG, clip-mtob:FILE or
    hf:USER/NAME."""
    out: Path = Path("points.parquet")
    """Parquet file to write."""
    image_column: str = "image"
    """Column with the image path (table)."""
    caption_column: str = "caption"
    """Column with the caption (table)."""
    image_root: Path | None = None
    """Folder that image paths start at and may not lead out of (table; default: its own)."""
    workers: int = 2
    """Threads that decode the files of a folder or a table."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


class Item(NamedTuple):
    """What is known of a picture besides its pixels."""

    id: str
    caption: str | None = None
    split: str | None = None


Batches = Iterator[tuple[Tensor, list[Item]]]
"""uint8 squares (B, 3, H, H), each with its item."""


def embed(config: EmbedConfig) -> dict[str, Any]:
    """Write `config.out`, complete or not at all, and give what its metadata says.

    Raises:
        UserError: for a model or data that cannot be read, or where no picture can.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip.embed import EmbedConfig, embed
        >>> folder = Path(tempfile.mkdtemp())
        >>> for colour in ("red", "blue"):
        ...     Image.new("RGB", (64, 64), colour).save(folder / f"{colour}.png")
        >>> info = embed(EmbedConfig(str(folder), "tiny-oblique", folder / "points.parquet", device="cpu"))
        >>> info["pictures"], info["topology"], info["kind"], info["skipped"]
        (2, 'oblique(16,8)', 'flat', {})
    """
    import_arrow()
    check_ranges(config)
    check_file(config.out)
    loaded = load(config.model, pick_device(config.device))
    skipped = Lost()
    batches = open_as(KINDS, config.data, config, loaded.preprocess.image_size, skipped)
    topology = loaded.model.topology
    info: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": config.model,
        "fingerprint": fingerprint(loaded.model),
        "topology": topology.spec,
        "embed_dim": topology.embed_dim,
        "kind": "flat" if topology.flat_is_exact else "points",
        "data": config.data,
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = config.out.with_name(config.out.name + ".part")
    try:
        info["pictures"] = _write(unfinished, loaded, batches, info, skipped)
        unfinished.replace(config.out)
    finally:
        unfinished.unlink(missing_ok=True)
    return info


def to_vectors(topology: Topology, points: Tensor) -> Tensor:
    """Points to what is stored of them, (B, numbers in a point); see the top of this file.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.embed import to_vectors
        >>> points = torch.tensor([[[0.6, 0.8], [0.0, 1.0]]])
        >>> to_vectors(parse_topology("oblique(2,2)"), points).norm().double().round(decimals=3).item()  # for a cosine
        1.0
        >>> to_vectors(parse_topology("oblique(2,2)/geodesic"), points).tolist() == points.flatten(1).tolist()
        True
    """
    return topology.flat(points) if topology.flat_is_exact else points.flatten(1)


def to_points(topology: Topology, vectors: Tensor) -> Tensor:
    """The inverse of `to_vectors`, to the last digits.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.embed import to_points, to_vectors
        >>> topology = parse_topology("oblique(2,2)")
        >>> points = topology.project(torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]))
        >>> torch.allclose(to_points(topology, to_vectors(topology, points)), points)
        True
    """
    rows = vectors.unflatten(1, topology.point_shape)
    return topology.project(rows) if topology.flat_is_exact else rows


def _write(path: Path, loaded: Loaded, batches: Batches, info: dict[str, Any], skipped: Lost) -> int:
    """The file, and the number of its rows; the metadata comes last, as only then it is known what was skipped."""
    arrow, parquet = import_arrow()
    topology = loaded.model.topology
    width = topology.point_shape[0] * topology.point_shape[1]
    texts = [(name, arrow.string()) for name in Item._fields]
    schema = arrow.schema([*texts, ("vector", arrow.list_(arrow.float32(), width))])
    count = 0
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(batches, GROUP // CHUNK)):
            items = [item for _, part in group for item in part]
            points = encode_images(loaded.model, (squares for squares, _ in group), loaded.preprocess)
            numbers = to_vectors(topology, points).float().flatten().numpy()
            columns = [arrow.array(column, arrow.string()) for column in zip(*items, strict=True)]
            vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(numbers), width)
            writer.write_table(arrow.Table.from_arrays([*columns, vectors], schema=schema))
            count += len(items)
        if not count:
            raise UserError("no picture could be read")
        info.update(skipped=dict(skipped), pictures=count)
        writer.add_key_value_metadata({KEY: json.dumps(info).encode()})
    return count


def _open_shards(config: EmbedConfig, side: int, skipped: Lost) -> Batches:
    return _shard_batches(expand_shards(config.data), side, skipped)


def _open_folder(config: EmbedConfig, side: int, skipped: Lost) -> Batches:
    """Every picture in a folder and below it, without captions."""
    root = Path(config.data)
    paths = sorted(path for path in root.rglob("*") if is_picture(path) and path.is_file())
    if not paths:
        raise UserError(f"no picture in {root} or below it; looked for files such as .jpg, .png and .webp")
    return _file_batches(FilePairs(paths, [""] * len(paths), side, config.workers), root, skipped)


def _open_table(config: EmbedConfig, side: int, skipped: Lost) -> Batches:
    table = DataConfig(
        data=config.data,
        image_column=config.image_column,
        caption_column=config.caption_column,
        image_root=config.image_root,
        workers=config.workers,
    )
    path = Path(config.data)
    return _file_batches(open_table(path, table, side), config.image_root or path.parent, skipped)


# What cannot be read is counted in the last argument.
KINDS: tuple[Kind[Batches], ...] = (
    Kind(EMOJI_NAME, is_emoji, lambda config, side, skipped: _emoji_batches(config.model)),
    Kind(SHARDS_NAME, is_shards, _open_shards),
    Kind("a folder of pictures", lambda data: Path(data).is_dir(), _open_folder),
    Kind(TABLE_NAME, is_table, _open_table),
)


def _emoji_batches(model: str) -> Batches:
    """Every shipped picture, by its source and place in it, with the part that it is in for this model."""
    emoji, splits = load_emoji(), _splits_for(model)
    seen: Counter[str] = Counter()
    items = []
    for row, record in enumerate(emoji.records):
        items.append(Item(f"{record.source}/{seen[record.source]}", record.caption, splits.get(row)))
        seen[record.source] += 1
    for start in range(0, len(emoji), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(emoji)))
        yield emoji.images(rows), items[start : start + CHUNK]


def _splits_for(model: str) -> dict[int, str]:
    """`train`, `val`, `test` or `concepts` (see `EmojiSplits`) by row; nothing for a model trained on other data."""
    if home_of(model):
        return {}
    try:
        data = data_of(model)
    except UserError:
        return {}
    if data.data != "emoji":
        return {}
    splits = split_emoji(data)
    parts: dict[str, EmojiSet] = {
        "train": splits.train,
        "val": splits.val,
        "test": splits.test,
        "concepts": splits.concepts,
    }
    return {int(row): name for name, part in parts.items() for row in part.rows}


def _shard_batches(urls: list[str], side: int, skipped: Lost) -> Batches:
    """Every picture of the shards, by shard and key, with its caption where it has one."""
    pairs = _shard_pictures(urls, side, skipped)
    while batch := list(islice(pairs, CHUNK)):
        squares, items = zip(*batch, strict=True)
        yield torch.stack(squares), list(items)


def _shard_pictures(urls: list[str], side: int, skipped: Lost) -> Iterator[tuple[Tensor, Item]]:
    for record in read_records(urls, skipped):
        try:
            square = decode_square(picture_of(record), side)
        except READ_ERRORS as error:
            skipped.add(cause_of(error), name_of(record))
            continue
        yield square, Item(name_of(record), _caption(record))


def _caption(record: dict[str, Any]) -> str | None:
    try:
        return caption_of(record)
    except BadSample:
        return None


def _file_batches(pairs: FilePairs, root: Path, skipped: Lost) -> Batches:
    """Each image file once, with the caption of its first row, by its path below `root`."""
    first: dict[str, int] = {}
    for row in range(len(pairs)):
        first.setdefault(pairs.image_key(row), row)
    keys, single = list(first), np.array(list(first.values()))
    for start in range(0, len(single), CHUNK):
        squares, kept = pairs.fetch(single[start : start + CHUNK])
        items = [
            Item(_below(root, keys[start + place]), pairs.captions(int(single[start + place]))[0] or None)
            for place in kept
        ]
        if items:
            yield squares, items
    skipped.update(pairs.skipped)


def _below(root: Path, key: str) -> str:
    path, folder = Path(key), root.resolve()
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else key
    # A file's name may hold bytes that are no text, which Parquet would refuse.
    return os.fsencode(name).decode("utf-8", "replace")


def import_arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("embed and search need pyarrow: pip install 'oblique-clip[search]'") from error
    return pyarrow, pyarrow.parquet
