"""What the sources give: a picture that is not drawn yet, with its texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One pair before drawing.

    key: the picture's name in its package
    picture: SVG markup (str) or an encoded raster (bytes)
    caption, keywords, description: its texts
    concept: what a zero-shot class would name
    group, subgroup: its place in the package's own order
    skin: a skin-tone variant
    crop: cut away the transparent border before drawing
    licence: only where it differs from the source's
    """

    key: str
    picture: str | bytes
    caption: str
    concept: str
    keywords: tuple[str, ...] = ()
    group: str = ""
    subgroup: str = ""
    description: str = ""
    skin: bool = False
    crop: bool = False
    licence: str = ""


@dataclass(frozen=True)
class Skip:
    """A picture that gave no sample, and why."""

    cause: str


Found = Iterator[Sample | Skip]


def unique(texts: Iterable[str]) -> tuple[str, ...]:
    """The texts without repetitions, in order of first appearance."""
    return tuple(dict.fromkeys(texts))
