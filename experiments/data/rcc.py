"""Reads Qt resource archives (`.rcc`), in which GCompris packs its pictures.

Layout, big-endian: a header `qres`, version, offsets of tree, data and names; the tree's entries are folders
(number and index of their children) or files (offset into the data); names are UTF-16.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .packages import DataError

COMPRESSED, FOLDER, ZSTANDARD = 1, 2, 4


@dataclass(frozen=True)
class Archive:
    """The bytes of an archive and where its parts begin; entry_size: bytes an entry of the tree takes."""

    content: bytes
    tree: int
    data: int
    names: int
    entry_size: int

    def read(self, form: str, offset: int) -> tuple[int, ...]:
        """Big-endian integers at an offset, in the letters of `struct`."""
        return struct.unpack_from(f">{form}", self.content, offset)

    def name(self, offset: int) -> str:
        """The name at an offset from the beginning of the names: length, hash, text."""
        (length,) = self.read("H", self.names + offset)
        start = self.names + offset + 6
        return self.content[start : start + 2 * length].decode("utf-16-be")

    def file(self, offset: int, flags: int) -> bytes:
        """A file's content, unpacked; a compressed one has its size before it."""
        if flags & ZSTANDARD:
            raise DataError("a Qt resource is packed with Zstandard, which is not read here")
        start = self.data + offset + 4
        (length,) = self.read("I", self.data + offset)
        packed = self.content[start : start + length]
        return zlib.decompress(packed[4:]) if flags & COMPRESSED else packed

    def walk(self, index: int = 0, folder: str = "") -> Iterator[tuple[str, int, int]]:
        """Path, data offset and flags of every file below an entry."""
        entry = self.tree + index * self.entry_size
        name, flags = self.read("IH", entry)
        # The root has no name.
        path = f"{folder}{self.name(name)}" if index else ""
        if flags & FOLDER:
            count, first = self.read("II", entry + 6)
            for child in range(first, first + count):
                yield from self.walk(child, f"{path}/" if path else "")
        else:
            (offset,) = self.read("I", entry + 10)
            yield path, offset, flags


def open_archive(path: Path) -> Archive:
    """The archive in a file."""
    content = path.read_bytes()
    magic, version, tree, data, names = struct.unpack_from(">4sIIII", content)
    if magic != b"qres":
        raise DataError(f"{path.name} is not a Qt resource archive")
    # Since version 2 every entry ends with a time stamp.
    return Archive(content, tree, data, names, entry_size=22 if version >= 2 else 14)


def members(path: Path, folder: str) -> Iterator[tuple[str, bytes]]:
    """The files below a folder of an archive: their paths without it, and their content."""
    archive = open_archive(path)
    for name, offset, flags in archive.walk():
        if name.startswith(folder):
            yield name.removeprefix(folder), archive.file(offset, flags)
