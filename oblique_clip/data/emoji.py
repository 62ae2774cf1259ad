"""The shipped set: 16,150 real pairs of emoji and clip art at 64 x 64, with families and concepts to hold out.

`assets/` has one WebP sheet a source, 50 pictures a row, and `meta.json.gz` with a record a picture in the same order.
The sheets are decoded once into a memory-mapped file in the user's cache. NOTICE lists sources and licences.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError

SIDE = 64
PER_ROW = 50
# Sources that share artwork are one family: to hold out one of them is to hold out all.
FAMILIES = {
    "noto": "emoji-noto",
    "noto-v1": "emoji-noto",
    "twemoji": "emoji-twemoji",
    "fluent-color": "emoji-fluent",
    "fluent-flat": "emoji-fluent",
    "fluent-3d": "emoji-fluent",
    "emojione": "emoji-emojione",
    "fxemoji": "emoji-fxemoji",
    "streamline-emojis": "emoji-streamline",
    "openclipart": "openclipart",
}
Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Record:
    """What is known of one picture.

    Examples:
        >>> from oblique_clip.data.emoji import Record
        >>> record = Record("noto", "red apple", ("apple", "fruit", "red"), "food-drink", "food-fruit")
        >>> record.family, record.split
        ('emoji-noto', 'train')
        >>> record.described(hidden=frozenset({"apple"}))
        'red apple, fruit, red'
    """

    source: str
    caption: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str

    @property
    def family(self) -> str:
        return FAMILIES[self.source]

    @property
    def concept(self) -> str:
        """What a zero-shot class names: the caption in lower case."""
        return self.caption.lower()

    @property
    def split(self) -> Split:
        return concept_split(self.concept)

    def described(self, hidden: frozenset[str] = frozenset()) -> str:
        """The caption followed by its keywords, but for those in `hidden` (lower case)."""
        words = dict.fromkeys(word for word in self.keywords if word.lower() not in {self.concept, *hidden})
        return ", ".join([self.caption, *words])


def concept_split(concept: str) -> Split:
    """The fixed split of concepts, 80/10/10 by the MD5 of the name: the same in every source and version.

    Examples:
        >>> from oblique_clip.data.emoji import concept_split
        >>> [concept_split(concept) for concept in ("red apple", "dog face", "house", "octopus")]
        ['train', 'test', 'train', 'train']
    """
    bucket = int(hashlib.md5(concept.encode(), usedforsecurity=False).hexdigest(), 16) % 10
    return "test" if bucket == 0 else "val" if bucket == 1 else "train"


@dataclass(frozen=True)
class EmojiSet:
    """Records and their pictures; `select` gives views that share the memory map.

    Examples:
        >>> import numpy as np
        >>> from oblique_clip.data.emoji import load_emoji
        >>> emoji = load_emoji()
        >>> apples = emoji.select(np.array([record.concept == "red apple" for record in emoji.records]))
        >>> len(apples), apples.images().shape
        (9, torch.Size([9, 3, 64, 64]))
        >>> sorted({record.family for record in apples.records})
        ['emoji-emojione', 'emoji-fluent', 'emoji-fxemoji', 'emoji-noto', 'emoji-streamline', 'emoji-twemoji']
    """

    records: tuple[Record, ...]
    pixels: npt.NDArray[np.uint8]
    """(all pictures, 64, 64, 3), memory-mapped."""
    rows: npt.NDArray[np.int64]
    """Where each record's picture lies in `pixels`."""

    def __len__(self) -> int:
        return len(self.records)

    def images(self, rows: npt.NDArray[np.int64] | None = None) -> Tensor:
        """Pictures as uint8 (B, 3, 64, 64); all of them without `rows`."""
        where = self.rows if rows is None else self.rows[rows]
        return torch.from_numpy(self.pixels[where]).permute(0, 3, 1, 2)

    def select(self, keep: npt.NDArray[np.bool_]) -> EmojiSet:
        """The records where `keep` is true."""
        chosen = np.flatnonzero(keep)
        return EmojiSet(tuple(self.records[i] for i in chosen), self.pixels, self.rows[chosen])

    def of_families(self, families: tuple[str, ...]) -> EmojiSet:
        return self.select(np.array([record.family in families for record in self.records], bool))


@lru_cache(maxsize=1)
def load_emoji() -> EmojiSet:
    """The whole shipped set.

    Raises:
        UserError: where the decoded pictures cannot be cached.

    Examples:
        >>> from oblique_clip.data.emoji import load_emoji
        >>> emoji = load_emoji()
        >>> len(emoji), emoji.records[0].caption, emoji.images([0]).shape
        (16150, '1st place medal', torch.Size([1, 3, 64, 64]))
    """
    with resources.files("oblique_clip.data").joinpath("assets/meta.json.gz").open("rb") as raw, gzip.open(raw) as file:
        records = tuple(Record(s, caption, tuple(words), g, sub) for s, caption, words, g, sub in json.load(file))
    path = cache_folder() / f"emoji-{SIDE}-{_assets_digest()}.npy"
    if not path.exists():
        _decode_sheets(records, path)
    return EmojiSet(records, np.load(path, mmap_mode="r"), np.arange(len(records)))


def cache_folder() -> Path:
    """`$OBLIQUE_CLIP_CACHE`, else `oblique_clip` in the user's cache folder.

    Examples:
        >>> import os
        >>> from unittest.mock import patch
        >>> from oblique_clip.data.emoji import cache_folder
        >>> with patch.dict(os.environ, OBLIQUE_CLIP_CACHE="/tmp/pictures"):
        ...     print(cache_folder().as_posix())
        /tmp/pictures
    """
    named = os.environ.get("OBLIQUE_CLIP_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oblique_clip"
    return Path(named) if named else base


def _sheet(source: str) -> Path:
    return Path(str(resources.files("oblique_clip.data").joinpath(f"assets/{source}-{SIDE}.webp")))


def _assets_digest() -> str:
    sizes = ",".join(f"{source}:{_sheet(source).stat().st_size}" for source in FAMILIES)
    return hashlib.md5(sizes.encode(), usedforsecurity=False).hexdigest()[:8]


def _decode_sheets(records: tuple[Record, ...], path: Path) -> None:
    """Cut all sheets into one array, written beside `path` and moved there, so that a reader never sees half of it."""
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (len(records), SIDE, SIDE, 3))
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error}; set OBLIQUE_CLIP_CACHE to a folder") from error
    start = 0
    for source in dict.fromkeys(record.source for record in records):
        count = sum(record.source == source for record in records)
        pixels[start : start + count] = _cut(_sheet(source), count)
        start += count
    pixels.flush()
    unfinished.replace(path)


def _cut(sheet: Path, count: int) -> npt.NDArray[np.uint8]:
    with Image.open(sheet) as image:
        grid = np.asarray(image.convert("RGB"))
    tiles = grid.reshape(-1, SIDE, PER_ROW, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    return tiles[:count]
