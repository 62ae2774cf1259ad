"""Packs the pairs that ship inside the package: one WebP sheet a source, and their texts.

    python -m experiments.data.embed --shards SHARDS --out oblique_clip/data/assets

A sheet has 50 pictures a row, white after the last one. `meta.json.gz` is a list of
[source, caption, keywords, group, subgroup], the sheets one after the other, their pictures row by row.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from .packages import DataError
from .shards import read_samples

# The colour sources whose licences allow shipping with attribution at most.
EMBEDDED = (
    "noto",
    "noto-v1",
    "fxemoji",
    "fluent-color",
    "fluent-flat",
    "fluent-3d",
    "twemoji",
    "emojione",
    "streamline-emojis",
    "openclipart",
)
COLUMNS = 50
TEXTS = ("source", "caption", "keywords", "group", "subgroup")


def read_source(shards: Path, source: str) -> tuple[list[Image.Image], list[list[Any]]]:
    """The pictures of a source and the texts that ship with them, without skin-tone variants."""
    pictures: list[Image.Image] = []
    texts: list[list[Any]] = []
    for members in read_samples(shards, source):
        record = json.loads(members["json"])
        if not record["skin"]:
            pictures.append(Image.open(io.BytesIO(members["png"])).convert("RGB"))
            texts.append([record[name] for name in TEXTS])
    if not pictures:
        raise DataError(f"no shards of {source} in {shards}: run `python -m experiments.data.build` first")
    return pictures, texts


def sheet(pictures: list[Image.Image]) -> Image.Image:
    """Square pictures of one size, 50 a row, on white."""
    size = pictures[0].width
    rows = -(-len(pictures) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * size, rows * size), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        canvas.paste(picture, (column * size, row * size))
    return canvas


def embed(shards: Path, out: Path, quality: int, method: int) -> None:
    """Writes the sheets and the metadata, and prints their sizes."""
    out.mkdir(parents=True, exist_ok=True)
    everything: list[list[Any]] = []
    for source in EMBEDDED:
        pictures, texts = read_source(shards, source)
        path = out / f"{source}-{pictures[0].width}.webp"
        sheet(pictures).save(path, "WEBP", quality=quality, method=method)
        everything += texts
        print(f"{path.name:28}{len(pictures):6} pictures {path.stat().st_size:9} bytes", flush=True)
    path = out / "meta.json.gz"
    text = json.dumps(everything, ensure_ascii=False)
    # Without a time stamp, so that the same pairs give the same file.
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{path.name:28}{len(everything):6} pairs    {path.stat().st_size:9} bytes")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.data.embed", description="Packs the pairs that ship inside the package."
    )
    parser.add_argument("--shards", type=Path, required=True, help="folder that `build` filled")
    parser.add_argument("--out", type=Path, required=True, help="folder for the sheets and meta.json.gz")
    parser.add_argument("--quality", type=int, default=80, help="of the WebP sheets, 0 to 100")
    parser.add_argument("--method", type=int, default=4, help="effort of the WebP encoder, 0 to 6")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        embed(options.shards, options.out, options.quality, options.method)
    except (DataError, OSError) as error:
        print(f"embed: {error}", file=sys.stderr)
        return 2
    print(f"done in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
