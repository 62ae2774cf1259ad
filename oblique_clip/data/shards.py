"""WebDataset shards, read as a stream: `key.png` (or jpg, webp) with `key.txt`, or with a caption in `key.json`."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..tokenizer import Tokenizer, cut_to_longest
from .batches import Batch, caption_group, without_twins
from .images import READ_ERRORS, decode_square

SHUFFLE_BUFFER = 2000
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
    except ValueError as error:
        raise UserError(f"cannot expand the shards {pattern!r}: {error}") from error
    missing = [url for url in urls if "://" not in url and not url.startswith("pipe:") and not Path(url).is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(urls)} shards are missing, such as {missing[0]}")
    return urls


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


def read_shards(urls: list[str], side: int, skipped: Counter[str], seed: int | None = None) -> Iterator[Sample]:
    """Decoded pairs of WebDataset shards once through, shuffled within a buffer where there is a seed.

    Examples:
        >>> import tempfile
        >>> from collections import Counter
        >>> from pathlib import Path
        >>> import webdataset
        >>> from PIL import Image
        >>> from oblique_clip.data.shards import read_shards
        >>> path = Path(tempfile.mkdtemp()) / "x-000.tar"
        >>> with webdataset.TarWriter(str(path)) as shard:
        ...     _ = shard.write({"__key__": "0", "png": Image.new("RGB", (64, 64), "red"), "txt": "a red square"})
        ...     _ = shard.write({"__key__": "1", "txt": "a caption alone"})
        >>> skipped = Counter()
        >>> [(sample.caption, sample.square.shape) for sample in read_shards([str(path)], 32, skipped)], skipped
        ([('a red square', torch.Size([3, 32, 32]))], Counter({'no image': 1}))
    """
    for record in read_records(urls, skipped, seed):
        sample = _decode_record(record, side, skipped)
        if sample is not None:
            yield sample


def read_records(urls: list[str], skipped: Counter[str], seed: int | None = None) -> Iterator[dict[str, Any]]:
    """Samples of WebDataset shards, the bytes of each file by its extension; damaged ones are counted in `skipped`.

    Examples:
        >>> import tempfile
        >>> from collections import Counter
        >>> from pathlib import Path
        >>> import webdataset
        >>> from oblique_clip.data.shards import read_records
        >>> path = Path(tempfile.mkdtemp()) / "x-000.tar"
        >>> with webdataset.TarWriter(str(path)) as shard:
        ...     _ = shard.write({"__key__": "0", "txt": "a red square"})
        >>> [(record["__key__"], record["txt"]) for record in read_records([str(path)], Counter())]
        [('0', b'a red square')]
    """
    import webdataset

    def lenient(error: Exception) -> bool:
        skipped[f"shard: {type(error).__name__}"] += 1
        return True

    shuffle = False if seed is None else len(urls)
    stream: Iterable[dict[str, Any]] = webdataset.WebDataset(
        urls, shardshuffle=shuffle, seed=seed, handler=lenient, empty_check=False, nodesplitter=None
    )
    if seed is not None:
        stream = stream.shuffle(SHUFFLE_BUFFER, seed=seed)  # type: ignore[attr-defined]
    yield from stream


def _decode_record(record: dict[str, Any], side: int, skipped: Counter[str]) -> Sample | None:
    picture = next((record[key] for key in PICTURES if key in record), None)
    if picture is None:
        skipped["no image"] += 1
        return None
    try:
        caption = record["txt"].decode() if "txt" in record else json.loads(record["json"])["caption"]
        caption.encode()  # JSON can spell half a surrogate pair, which is no text
        blank = not caption.strip()
    except (KeyError, ValueError, TypeError, AttributeError):
        blank = True
    if blank:
        skipped["no caption"] += 1
        return None
    try:
        return Sample(decode_square(picture, side), caption)
    except READ_ERRORS:
        skipped["unreadable image"] += 1
        return None


class ShardBatches:
    """Endless batches from WebDataset shards, read in a stream; each pass has its own order by (seed, pass).

    What fills no batch at the end of a pass is dropped, as it is at the end of an epoch of `MapBatches`.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import webdataset
        >>> from PIL import Image
        >>> from oblique_clip.data.shards import ShardBatches
        >>> from oblique_clip.tokenizer import get_tokenizer
        >>> path = Path(tempfile.mkdtemp()) / "x-000.tar"
        >>> with webdataset.TarWriter(str(path)) as shard:
        ...     for colour in ("red", "green", "blue", "white"):
        ...         square = Image.new("RGB", (64, 64), colour)
        ...         _ = shard.write({"__key__": colour, "png": square, "txt": f"a {colour} square"})
        >>> data = ShardBatches(str(path), get_tokenizer("tiny", 32), batch_size=2, seed=0, side=32, twins="avoid")
        >>> batches = data.batches()
        >>> [tuple(next(batches).squares.shape) for _ in range(3)], data.pairs is None  # a stream has no length
        ([(2, 3, 32, 32), (2, 3, 32, 32), (2, 3, 32, 32)], True)
    """

    pairs: int | None = None

    def __init__(self, pattern: str, tokenizer: Tokenizer, batch_size: int, seed: int, side: int, twins: str) -> None:
        self._urls, self._tokenizer = expand_shards(pattern), tokenizer
        self._batch_size, self._seed, self._side, self._twins = batch_size, seed, side, twins
        self.skipped: Counter[str] = Counter()

    def batches(self) -> Iterator[Batch]:
        step = 0
        for passed in itertools.count():
            distinct: set[int] = set()
            before = step
            stream = self._one_pass(passed, distinct)
            for samples in without_twins(stream, self._batch_size, SHUFFLE_BUFFER, self.skipped):
                ids = cut_to_longest(self._tokenizer([sample.caption for sample in samples]))
                groups = torch.tensor([caption_group(sample.caption) for sample in samples])
                yield Batch(torch.stack([sample.square for sample in samples]), ids, groups, step)
                step += 1
            if step == before:
                raise UserError(
                    f"--batch-size {self._batch_size} is larger than the data: {len(distinct)} pairs can share a batch"
                )

    def _one_pass(self, passed: int, distinct: set[int]) -> Iterator[tuple[int, Sample]]:
        """Samples with their groups, which are noted in `distinct` until they could fill a batch."""
        order = int(np.random.default_rng((self._seed, passed)).integers(2**31))
        # What is wrong in a shard is wrong in every pass, and is counted in the first.
        skipped = self.skipped if passed == 0 else Counter[str]()
        for number, sample in enumerate(read_shards(self._urls, self._side, skipped, order)):
            # Where twins are allowed, every sample is a group of its own.
            group = caption_group(sample.caption) if self._twins == "avoid" else number
            if len(distinct) < self._batch_size:
                distinct.add(group)
            yield group, sample
