"""The list of YFCC15M for img2dataset: OpenAI's lines of YFCC100M's metadata, an address and a caption each.

bzcat yfcc100m_dataset.bz2 | python -m experiments.gpu.yfcc yfcc100m_subset_data.tsv > yfcc15m.tsv

Columns of the metadata, from 0: line number, 2 hash, 8 title, 9 description, both with + for a space and %XX (as
facebookresearch/SLIP, make_dataset.py, reads them). OpenAI's list has the first three (openai/CLIP, data/yfcc100m.md).
Multimedia Commons keeps the picture of a hash by its first letters.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote_plus

import tyro

from oblique_clip.cli import run_script

IMAGES = "https://multimedia-commons.s3-us-west-2.amazonaws.com/data/images"
TAG = re.compile(r"<[^<>]*>")
ADDRESS = re.compile(r"(?:https?://|www\.)\S+")


@dataclass(frozen=True)
class Listing:
    """Read the metadata from standard input, and write the list to standard output."""

    subset: Annotated[Path, tyro.conf.Positional]
    """OpenAI's yfcc100m_subset_data.tsv."""


def main(command: Listing) -> None:
    """Write a row a photograph; say how many had no caption."""
    with command.subset.open(encoding="utf-8") as lines:
        listed = {int(line.split("\t", 1)[0]) for line in lines}
    sys.stdin.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    written = csv.writer(sys.stdout, dialect="excel-tab", lineterminator="\n")
    written.writerow(("url", "caption"))
    count = 0
    for row in rows(sys.stdin, listed):
        written.writerow(row)
        count += 1
    print(f"{count:,} of {len(listed):,} photographs have a caption", file=sys.stderr)


def rows(metadata: Iterable[str], listed: set[int]) -> Iterator[tuple[str, str]]:
    """Address and caption of every photograph that is listed and has either a title or a description.

    One of the two is drawn, by the parity of the line: a shard holds one caption a picture.
    """
    for line in metadata:
        number, _, photo, *_ = cells = line.rstrip("\n").split("\t")
        if int(number) in listed:
            title, description = map(cleaned, cells[8:10])
            first, other = (description, title) if int(number) % 2 else (title, description)
            if caption := first or other:
                yield f"{IMAGES}/{photo[:3]}/{photo[3:6]}/{photo}.jpg", caption


def cleaned(text: str) -> str:
    """A title or description without tags and addresses, on one line."""
    return " ".join(ADDRESS.sub(" ", TAG.sub(" ", unquote_plus(text))).split())


if __name__ == "__main__":
    run_script(main, Listing, "python -m experiments.gpu.yfcc")
