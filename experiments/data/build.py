"""Builds WebDataset shards of image-text pairs from the fetched packages.

    python -m experiments.data.build --raw RAW --out SHARDS [--size 64] [--only noto,openclipart]

A sample is `<id>.png` (RGB, size x size), `<id>.txt` (the caption) and `<id>.json`
(its texts and where it is from).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from .captions import split_of
from .packages import DataError, Raw, read_json
from .render import Unusable, draw
from .sample import Sample, Skip
from .shards import ShardWriter
from .sources import SOURCES, Source

STATS = "stats.json"


@dataclass
class Tally:
    """Counts while a source is built; `skipped` by cause."""

    captions: set[str] = field(default_factory=set)
    concepts: set[str] = field(default_factory=set)
    pictures: set[str] = field(default_factory=set)
    pairs: int = 0
    without_skin: int = 0
    keywords: int = 0
    png_bytes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, record: dict[str, Any], png: bytes) -> None:
        """Counts a sample that was written."""
        self.captions.add(record["caption"].lower())
        self.concepts.add(record["concept"])
        self.pictures.add(record["md5"])
        self.pairs += 1
        self.without_skin += not record["skin"]
        self.keywords += len(record["keywords"])
        self.png_bytes += len(png)


@dataclass(frozen=True)
class SourceStats:
    """What `stats.json` says of a source; `captions`, `concepts` and `pictures` count distinct ones."""

    package: str
    version: str | None
    licence: str
    pairs: int
    without_skin: int
    captions: int
    concepts: int
    pictures: int
    keywords_a_pair: float
    png_bytes: int
    seconds: float
    skipped: dict[str, int]


def build_source(name: str, source: Source, raw: Raw, out: Path, size: int, per_shard: int) -> SourceStats:
    """Draws and writes the pairs of one source."""
    started = time.monotonic()
    tally = Tally()
    written: set[tuple[str, str]] = set()
    with ShardWriter(out, name, per_shard) as writer:
        for found in source.found(raw):
            if isinstance(found, Skip):
                tally.skipped[found.cause] += 1
                continue
            try:
                image = draw(found.picture, size, found.crop)
            except Unusable as error:
                tally.skipped[str(error)] += 1
                continue
            digest = hashlib.md5(image.tobytes()).hexdigest()
            if (digest, found.caption) in written:
                tally.skipped["same picture and caption as another"] += 1
                continue
            written.add((digest, found.caption))
            record = record_of(found, name, source, digest)
            png = encode_png(image)
            text = json.dumps(record, ensure_ascii=False)
            writer.write({"png": png, "txt": found.caption.encode(), "json": text.encode()})
            tally.add(record, png)
    return summary(tally, source, raw.version(source.package), time.monotonic() - started)


def summary(tally: Tally, source: Source, version: str | None, seconds: float) -> SourceStats:
    """The figures of a source that is complete."""
    return SourceStats(
        package=source.package,
        version=version,
        licence=source.licence,
        pairs=tally.pairs,
        without_skin=tally.without_skin,
        captions=len(tally.captions),
        concepts=len(tally.concepts),
        pictures=len(tally.pictures),
        keywords_a_pair=round(tally.keywords / max(1, tally.pairs), 2),
        png_bytes=tally.png_bytes,
        seconds=round(seconds, 1),
        skipped=dict(sorted(tally.skipped.items())),
    )


def record_of(sample: Sample, name: str, source: Source, digest: str) -> dict[str, Any]:
    """The content of `<id>.json`; `md5` is that of the drawn pixels."""
    return {
        "caption": sample.caption,
        "keywords": list(sample.keywords),
        "group": sample.group,
        "subgroup": sample.subgroup,
        "concept": sample.concept,
        "split": split_of(sample.concept),
        "source": name,
        "family": source.family,
        "licence": sample.licence or source.licence,
        "mono": source.mono,
        "skin": sample.skin,
        "description": sample.description,
        "key": sample.key,
        "md5": digest,
    }


def encode_png(image: Image.Image) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def read_stats(out: Path, size: int) -> dict[str, Any]:
    """The figures of earlier builds in the same folder; raises DataError when they were of another size."""
    path = out / STATS
    if not path.is_file():
        return {}
    stats: dict[str, Any] = read_json(path)
    if stats["size"] != size:
        raise DataError(f"{out} holds shards of size {stats['size']}: give another folder for size {size}")
    sources: dict[str, Any] = stats["sources"]
    return sources


def build(names: Iterable[str], raw: Raw, out: Path, size: int, per_shard: int) -> dict[str, Any]:
    """Builds the named sources into `out` and returns the figures of everything there, by source."""
    out.mkdir(parents=True, exist_ok=True)
    known = read_stats(out, size)
    print(f"{'source':18}    pairs  no skin captions pictures  PNG MB      s  skipped")
    for name in names:
        known[name] = asdict(build_source(name, SOURCES[name], raw, out, size, per_shard))
        stats = {"size": size, "sources": {key: known[key] for key in SOURCES if key in known}}
        # Written after each source, so that an interrupted build says what is complete.
        (out / STATS).write_text(json.dumps(stats, indent=1) + "\n", encoding="utf8")
        print(row(name, known[name]), flush=True)
    return known


def row(name: str, stats: dict[str, Any]) -> str:
    """One line of the printed table."""
    figures = (stats["pairs"], stats["without_skin"], stats["captions"], stats["pictures"])
    causes = ", ".join(f"{count} {cause}" for cause, count in stats["skipped"].items())
    megabytes = stats["png_bytes"] / 1e6
    return f"{name:18}" + "".join(f"{n:9}" for n in figures) + f"{megabytes:8.2f}{stats['seconds']:7.1f}  {causes}"


def chosen(only: str) -> list[str]:
    """The source names in a comma-separated list, or all; raises DataError for an unknown one."""
    if not only:
        return list(SOURCES)
    names = [name.strip() for name in only.split(",")]
    unknown = [name for name in names if name not in SOURCES]
    if unknown:
        raise DataError(f"no source is called {', '.join(unknown)}; there are {', '.join(SOURCES)}")
    return names


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.data.build", description="Builds WebDataset shards of image-text pairs."
    )
    parser.add_argument("--raw", type=Path, required=True, help="folder that `fetch` filled")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--size", type=positive, default=64, help="pixels a side (default 64)")
    parser.add_argument("--only", default="", metavar="A,B", help="only these sources (default: all)")
    parser.add_argument("--per-shard", type=positive, default=4000, help="samples a tar file (default 4000)")
    options = parser.parse_args(arguments)
    try:
        stats = build(chosen(options.only), Raw(options.raw), options.out, options.size, options.per_shard)
    except (DataError, OSError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 2
    total = sum(entry["pairs"] for entry in stats.values())
    print(f"{total} pairs from {len(stats)} sources in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
