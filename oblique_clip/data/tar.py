"""Members of a tar archive as a stream, read so that no file, whatever it holds, can do more than be counted.

webdataset's own iteration takes a damaged header for the end of an archive and passes links by in silence; here both
have a cause. Nothing is ever written to disk.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import NamedTuple

from .faults import Lost

LARGEST_MEMBER = 2**28
# What an archive may say of a member besides its content, such as a long name.
LARGEST_EXTENSION = 2**20
_EXTENSIONS = frozenset(
    (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
)
_CHUNK = 2**20


class Member(NamedTuple):
    """A file of an archive, or why it was refused."""

    name: str
    data: bytes
    cause: str | None = None


def read_members(url: str, lost: Lost) -> Iterator[Member]:
    r"""The files of a tar (plain or compressed) that webdataset's `gopen` can open, in order.

    An archive that is damaged gives what lies before the damage, and is counted in `lost`: as `unreadable shard` where
    that is nothing, else as `damaged shard`, which a cut makes of it, a broken header, or data behind its end.
    Folders hold no data and are passed over. Links, devices, names that lead out of the archive and members beyond
    `LARGEST_MEMBER` come without data, with a cause.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import webdataset
        >>> from oblique_clip.data.faults import Lost
        >>> from oblique_clip.data.tar import read_members
        >>> path = Path(tempfile.mkdtemp()) / "x.tar"
        >>> with webdataset.TarWriter(str(path)) as shard:
        ...     _ = shard.write({"__key__": "0", "txt": "a red square"})
        >>> _ = path.write_bytes(path.read_bytes().rstrip(b"\0"))  # the end is missing
        >>> lost = Lost()
        >>> list(read_members(str(path), lost)), lost.examples
        ([Member(name='0.txt', data=b'a red square', cause=None)], {'damaged shard': ...x.tar'})
    """
    cause = "unreadable shard"
    with closing(_members(url)) as members:
        while True:
            try:
                member = next(members)
            except StopIteration:
                return
            except Exception:  # damaged archives make tarfile and its decompressors raise nearly anything
                lost.add(cause, url)
                return
            cause = "damaged shard"
            yield member


def _members(url: str) -> Generator[Member, None, None]:
    from webdataset.gopen import gopen

    with gopen(url) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as archive:
        for header in iter(archive.next, None):
            archive.members = []  # type: ignore[attr-defined]  # else it would remember every header
            if header.isdir():
                continue
            cause = _refusal(header)
            content = None if cause else archive.extractfile(header)
            yield Member(header.name, content.read() if content else b"", cause)
        # A hole of zeros in the middle looks like the end, and a pipe's process waits to be read to its own.
        while rest := archive.fileobj.read(_CHUNK):  # type: ignore[union-attr]
            if rest.strip(b"\0"):
                raise tarfile.ReadError("data behind the end of the archive")


def _refusal(header: tarfile.TarInfo) -> str | None:
    if header.name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", header.name):
        return "member path outside the shard"
    if not header.isreg():
        return "link or device in a shard"
    return None if 0 <= header.size <= LARGEST_MEMBER else "member too large"


class _Header(tarfile.TarInfo):
    """Headers that must be whole: behind the first, tarfile takes any other for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENSIONS and not 0 <= header.size <= LARGEST_EXTENSION:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
