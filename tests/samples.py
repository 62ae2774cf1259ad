"""Small pictures, shards and tables, for tests of what reads them."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Members = dict[str, bytes]


def png(number: int) -> bytes:
    """A picture whose grey tells its number."""
    return encoded(Image.new("RGB", (12, 12), (number, number, number)), "PNG")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(side: int = 64) -> Image.Image:
    """A picture that does not compress, so that its file can be cut or damaged in the middle."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def write_table(path: Path, rows: list[tuple[str, ...]]) -> Path:
    """A CSV of pictures and captions."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    return path


def write_shard(path: Path, samples: dict[str, Members]) -> Path:
    """A tar of samples: the files of each by their extensions."""
    return write_members(
        path, [(f"{key}.{extension}", data) for key, files in samples.items() for extension, data in files.items()]
    )


def write_members(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    """A tar of files, or of headers of any other kind."""
    with tarfile.open(path, "w") as archive:
        for header, data in members:
            member = tarfile.TarInfo(header) if isinstance(header, str) else header
            if member.isreg():
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
