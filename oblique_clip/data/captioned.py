"""Pictures with their captions, for retrieval: from a table, shards, or the caption JSON of COCO and Flickr.

Everything comes as batches of uint8 squares (B, 3, H, H) with the captions of each picture.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .batches import PairSource
from .faults import Lost
from .shards import read_shards
from .tables import file_pairs

CHUNK = 256
SPLIT = "test"
WORKERS = 2

Captioned = tuple[Tensor, list[list[str]]]


@dataclass
class CaptionedPictures:
    """Distinct pictures, read once, and what was left out so far.

    Examples:
        >>> from collections import Counter
        >>> import torch
        >>> from oblique_clip.data.captioned import CaptionedPictures
        >>> batch = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), [["a dog", "a puppy"], ["a house"]]
        >>> pictures = CaptionedPictures(iter([batch]), Counter)
        >>> [len(captions) for squares, texts in pictures.batches for captions in texts]
        [2, 1]
    """

    batches: Iterator[Captioned]
    skipped: Callable[[], Counter[str]]


def of_pairs(pairs: PairSource) -> CaptionedPictures:
    """The distinct pictures of a table, each with the captions of all its rows.

    A picture is read at one of its rows, and counted once in `skipped` where that fails.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip.data.captioned import of_pairs
        >>> from oblique_clip.data.tables import FilePairs
        >>> path = Path(tempfile.mkdtemp()) / "red.png"
        >>> Image.new("RGB", (64, 64), "red").save(path)
        >>> pairs = FilePairs([path, path], ["a red square", "red"], side=32, workers=1)
        >>> [(squares.shape, captions) for squares, captions in of_pairs(pairs).batches]  # one picture, two captions
        [(torch.Size([1, 3, 32, 32]), [['a red square', 'red']])]
    """
    captions: dict[str, list[str]] = {}
    row_of: dict[str, int] = {}
    for row in range(len(pairs)):
        key = pairs.image_key(row)
        captions.setdefault(key, []).append(pairs.captions(row)[0])
        row_of[key] = row
    keys = list(row_of)

    def batches() -> Iterator[Captioned]:
        for start in range(0, len(keys), CHUNK):
            part = keys[start : start + CHUNK]
            squares, kept = pairs.fetch(np.array([row_of[key] for key in part]))
            if kept:
                yield squares, [captions[part[i]] for i in kept]

    return CaptionedPictures(batches(), lambda: pairs.skipped)


def of_shards(urls: list[str], side: int, by_line: bool = False) -> CaptionedPictures:
    """The samples of WebDataset shards, each a picture of its own; `by_line` takes every line as a caption.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import webdataset
        >>> from PIL import Image
        >>> from oblique_clip.data.captioned import of_shards
        >>> path = Path(tempfile.mkdtemp()) / "x-000.tar"
        >>> with webdataset.TarWriter(str(path)) as shard:
        ...     _ = shard.write({"__key__": "0", "png": Image.new("RGB", (64, 64), "red"), "txt": "a red square"})
        >>> [captions for squares, captions in of_shards([str(path)], side=32).batches]
        [[['a red square']]]
    """
    lost = Lost()

    def batches() -> Iterator[Captioned]:
        samples = read_shards(urls, side, lost)
        while batch := list(islice(samples, CHUNK)):
            texts = [sample.caption.strip().splitlines() if by_line else [sample.caption] for sample in batch]
            yield torch.stack([sample.square for sample in batch]), texts

    return CaptionedPictures(batches(), lambda: lost)


def of_json(path: Path, root: Path | None, side: int) -> CaptionedPictures:
    """The captions of a JSON file as COCO's (`images`, `annotations`) or Karpathy's Flickr and COCO splits.

    Of Karpathy's, whose images hold `sentences`, those with `split: test` count, or all where none has a split.

    Args:
        root: folder that the file names of the images start at; the JSON's own where None.

    Raises:
        UserError: for a file that is neither, has no captions, or none of whose images exists.

    Examples:
        >>> import json
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip.data.captioned import of_json
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (64, 64), "red").save(folder / "0.jpg")
        >>> captions = [{"image_id": 7, "caption": text} for text in ("a red square", "red")]
        >>> coco = {"images": [{"id": 7, "file_name": "0.jpg"}], "annotations": captions}
        >>> _ = (folder / "captions.json").write_text(json.dumps(coco))
        >>> [texts for squares, texts in of_json(folder / "captions.json", None, side=32).batches]
        [[['a red square', 'red']]]
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = _karpathy(content) if "annotations" not in content else _coco(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is no caption JSON ({type(error).__name__}: {error}); expected COCO's images and annotations, or "
            "images with filename and sentences"
        ) from error
    if not rows:
        split = f" for the split {SPLIT!r}" if "annotations" not in content else ""
        raise UserError(f"{path} has no captions{split}")
    named = ((f"caption {number}", image, caption) for number, (image, caption) in enumerate(rows, 1))
    return of_pairs(file_pairs(path, named, path.parent if root is None else root, side, WORKERS, Lost()))


def _coco(content: dict[str, Any]) -> list[tuple[str, Any]]:
    names = {image["id"]: image["file_name"] for image in content["images"]}
    return [(names[entry["image_id"]], entry["caption"]) for entry in content["annotations"]]


def _karpathy(content: dict[str, Any]) -> list[tuple[str, Any]]:
    images = content["images"]
    if any("split" in image for image in images):
        images = [image for image in images if image.get("split") == SPLIT]
    # Karpathy's COCO keeps the folder of a picture apart.
    return [
        (str(Path(image.get("filepath", "")) / image["filename"]), sentence["raw"])
        for image in images
        for sentence in image["sentences"]
    ]
