"""Small data in the layouts of the real ones, from the shipped set, for a dry run: pictures that a model could read.

- `shards/00000.tar`, ...: as img2dataset writes them (`000000000.jpg`, `.txt`, `.json`), `00000_stats.json` beside;
- `imagenet/n02391049/*.jpg`: a folder a class, by WordNet codes;
- `suite/wds_*`: CLIP_benchmark's; `coco/`: caption JSON and a folder of pictures.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.zero_shot.layouts import write_classification, write_coco, write_retrieval
from oblique_clip.config import write_json
from oblique_clip.data.emoji import EmojiSet, load_emoji

# Classes of ImageNet that are names in the shipped set.
CLASSES = {
    "n02391049": "zebra", "n04507155": "umbrella", "n04536866": "violin", "n07753592": "banana", "n07873807": "pizza",
    "n09472597": "volcano",
}  # fmt: skip
SHARDS, PER_SHARD = 2, 16
# img2dataset's default, for the side of a picture and for the quality of its JPEG.
SIDE, QUALITY = 256, 95
KEY_OF_SHARD = 10_000


@dataclass(frozen=True)
class Small:
    """Where the data of a dry run lie."""

    root: Path

    @property
    def shards(self) -> str:
        return str(self.root / "shards" / f"{{00000..{SHARDS - 1:05}}}.tar")

    @property
    def imagenet(self) -> Path:
        return self.root / "imagenet"

    @property
    def suite(self) -> Path:
        return self.root / "suite"

    @property
    def captions(self) -> Path:
        return self.root / "coco" / "captions_val.json"

    @property
    def images(self) -> Path:
        return self.root / "coco" / "val"


def write_small(root: Path) -> Small:
    """Write what `root` does not hold yet."""
    small, done = Small(root), root / "done"
    if not done.exists():
        judged, trained = split(load_emoji())
        (root / "shards").mkdir(parents=True, exist_ok=True)
        for number, part in enumerate(np.split(np.arange(SHARDS * PER_SHARD), SHARDS)):
            write_shard(root / "shards" / f"{number:05}.tar", trained, part.tolist(), number)
        write_imagenet(small.imagenet, judged)
        for name, write in {"wds_classes": write_classification, "wds_captions": write_retrieval}.items():
            if not (small.suite / name).exists():
                write(small.suite / name, judged)
        write_coco(root / "coco", judged)
        done.touch()
    return small


def split(emoji: EmojiSet) -> tuple[EmojiSet, EmojiSet]:
    """Pictures to judge by, and as many others as the shards hold."""
    asked = np.array([record.concept in CLASSES.values() for record in emoji.records])
    others = np.flatnonzero(~asked)
    chosen = np.zeros(len(emoji), bool)
    chosen[others[:: len(others) // (SHARDS * PER_SHARD)][: SHARDS * PER_SHARD]] = True
    return emoji.select(asked), emoji.select(chosen)


def write_shard(path: Path, emoji: EmojiSet, rows: list[int], number: int) -> None:
    """One shard and its statistics, as img2dataset's writer does."""
    import webdataset

    with webdataset.TarWriter(str(path)) as shard:
        for sample in _samples(emoji, rows, number):
            shard.write(sample)
    stats = {
        "count": len(rows), "successes": len(rows), "failed_to_download": 0, "failed_to_resize": 0,
        "status_dict": {"success": len(rows)},
    }  # fmt: skip
    write_json(path.with_name(f"{path.stem}_stats.json"), stats)


def _samples(emoji: EmojiSet, rows: list[int], number: int) -> Iterator[dict[str, str | bytes]]:
    for place, row in enumerate(rows):
        key, caption = f"{number * KEY_OF_SHARD + place:09}", emoji.records[row].caption
        size = {"width": SIDE, "height": SIDE, "original_width": SIDE, "original_height": SIDE}
        facts = {"caption": caption, "url": "", "key": key, "status": "success", "error_message": None, **size}
        yield {"__key__": key, "jpg": _jpeg(emoji, row), "txt": caption, "json": json.dumps(facts, indent=4)}


def write_imagenet(root: Path, emoji: EmojiSet) -> None:
    """A folder a class, by its WordNet code."""
    for code, name in CLASSES.items():
        (root / code).mkdir(parents=True, exist_ok=True)
        for row, record in enumerate(emoji.records):
            if record.concept == name:
                (root / code / f"ILSVRC2012_val_{row:08}.JPEG").write_bytes(_jpeg(emoji, row))


def _jpeg(emoji: EmojiSet, row: int) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(emoji.pixels[emoji.rows[row]])
    picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
