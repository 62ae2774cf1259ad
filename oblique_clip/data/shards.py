"""WebDataset shards, read as a stream: `key.png` (or jpg, webp) with `key.txt`, or with a caption in `key.json`."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import UserError
from .faults import BadSample, Lost, cause_of, clean_caption
from .images import READ_ERRORS, decode_square
from .tar import Member, read_members

PICTURES = ("jpg", "jpeg", "png", "webp")


def expand_shards(pattern: str) -> list[str]:
    """The local files or addresses that a brace pattern names.

    Raises:
        UserError: where a local shard is missing, or braces do not close.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip.data.shards import expand_shards
        >>> folder = Path(tempfile.mkdtemp())
        >>> for number in range(3):
        ...     (folder / f"x-{number:03}.tar").touch()
        >>> [Path(shard).name for shard in expand_shards(f"{folder}/x-{{000..002}}.tar")]
        ['x-000.tar', 'x-001.tar', 'x-002.tar']
    """
    from webdataset.shardlists import expand_urls

    try:
        urls: list[str] = expand_urls(pattern)
    except (ValueError, AssertionError) as error:  # the latter for a variable that is not set
        raise UserError(f"cannot expand the shards {pattern!r}: {error}") from error
    missing = [url for url in urls if _is_local(url) and not Path(url).is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(urls)} shards are missing, such as {missing[0]}")
    return urls


def shards_fingerprint(urls: list[str]) -> dict[str, Any]:
    """A few JSON values that are others where shards have other names, or local ones other sizes.

    Examples:
        >>> from oblique_clip.data.shards import shards_fingerprint
        >>> one, two = (shards_fingerprint([f"pipe:cat {name}.tar"]) for name in "ab")
        >>> one["shards"], one == two
        (1, False)
    """
    sizes = [Path(url).stat().st_size if _is_local(url) else None for url in urls]
    listed = json.dumps([(Path(url).name, size) for url, size in zip(urls, sizes, strict=True)])
    return {"shards": len(urls), "digest": hashlib.blake2b(listed.encode(), digest_size=16).hexdigest()}


def _is_local(url: str) -> bool:
    return "://" not in url and not url.startswith("pipe:")


class Pair(NamedTuple):
    """A picture, not yet decoded, with its caption, and its shard and key."""

    name: str
    picture: bytes
    caption: str


@dataclass(frozen=True)
class Sample:
    """One decoded pair of a stream.

    Examples:
        >>> import torch
        >>> from oblique_clip.data.shards import Sample
        >>> sample = Sample(torch.zeros(3, 32, 32, dtype=torch.uint8), "a black square")
        >>> sample.square.shape, sample.caption
        (torch.Size([3, 32, 32]), 'a black square')
    """

    square: Tensor
    caption: str


def read_shards(urls: list[str], side: int, lost: Lost) -> Iterator[Sample]:
    """Decoded pairs of WebDataset shards once through, in order; what is damaged is counted in `lost`.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import webdataset
        >>> from PIL import Image
        >>> from oblique_clip.data.faults import Lost
        >>> from oblique_clip.data.shards import read_shards
        >>> path = Path(tempfile.mkdtemp()) / "x-000.tar"
        >>> with webdataset.TarWriter(str(path)) as shard:
        ...     _ = shard.write({"__key__": "0", "png": Image.new("RGB", (64, 64), "red"), "txt": "a red square"})
        ...     _ = shard.write({"__key__": "1", "txt": "a caption alone"})
        >>> lost = Lost()
        >>> [(sample.caption, sample.square.shape) for sample in read_shards([str(path)], 32, lost)], lost.examples
        ([('a red square', torch.Size([3, 32, 32]))], {'no image': 'x-000.tar/1'})
    """
    for pair in pairs_of(read_records(urls, lost), lost):
        try:
            yield Sample(decode_square(pair.picture, side), pair.caption)
        except READ_ERRORS as error:
            lost.add(cause_of(error), pair.name)


def read_records(urls: list[str], lost: Lost) -> Iterator[dict[str, Any]]:
    """Samples of WebDataset shards, the bytes of each file by its extension in lower case.

    A sample is made of neighbours of one key, as webdataset cuts names. Of samples and files that repeat a key in a
    shard the first counts; a sample with a file that `read_members` refuses is refused.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import webdataset
        >>> from oblique_clip.data.faults import Lost
        >>> from oblique_clip.data.shards import read_records
        >>> path = Path(tempfile.mkdtemp()) / "x-000.tar"
        >>> with webdataset.TarWriter(str(path)) as shard:
        ...     _ = shard.write({"__key__": "0", "txt": "a red square"})
        >>> [(record["__key__"], record["txt"]) for record in read_records([str(path)], Lost())]
        [('0', b'a red square')]
    """
    for url in urls:
        seen: set[str] = set()
        for key, files in itertools.groupby(_keyed(read_members(url, lost)), lambda entry: entry[0]):
            members = [(extension, member) for _, extension, member in files]
            copies = max(Counter(extension for extension, _ in members).values())
            files_of = {extension: member.data for extension, member in reversed(members)}
            record = {**files_of, "__key__": key, "__url__": url}
            name, refused = name_of(record), next((member.cause for _, member in members if member.cause), None)
            for _ in range(copies if key in seen else copies - 1):
                lost.add("duplicate key", name)
            if key in seen:
                continue
            seen.add(key)
            if refused:
                lost.add(refused, name)
            else:
                yield record


def _keyed(members: Iterable[Member]) -> Iterator[tuple[str, str, Member]]:
    """Members with their keys and extensions; those of no sample, such as hidden files, are passed over."""
    from webdataset.tariterators import base_plus_ext

    for member in members:
        key, extension = base_plus_ext(member.name)
        if member.cause and key is None:
            yield member.name, "", member
        elif key is not None and not re.match(r"__[^/]*__($|[./])", member.name):
            yield key, extension.lower(), member


def name_of(record: dict[str, Any]) -> str:
    """Shard and key of a record, for people; bytes of a key that are no text are spelt out."""
    return f"{Path(record['__url__']).name}/{record['__key__']}".encode(errors="backslashreplace").decode()


def pairs_of(records: Iterable[dict[str, Any]], lost: Lost) -> Iterator[Pair]:
    """Records with a picture and a caption; the others are counted."""
    for record in records:
        try:
            yield Pair(name_of(record), picture_of(record), caption_of(record))
        except BadSample as error:
            lost.add(error.cause, name_of(record))


def picture_of(record: dict[str, Any]) -> bytes:
    """The file of a record that holds its picture.

    Raises:
        BadSample: where there is none.
    """
    picture: bytes | None = next((record[extension] for extension in PICTURES if extension in record), None)
    if picture is None:
        raise BadSample("no image")
    return picture


def caption_of(record: dict[str, Any]) -> str:
    """The text file of a record, else the caption in its JSON.

    Raises:
        BadSample: where there is none, or `clean_caption` refuses it.
    """
    if "txt" in record:
        return clean_caption(record["txt"])
    try:
        caption = json.loads(record["json"])["caption"]
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise BadSample("no caption", error) from error
    return clean_caption(caption)
