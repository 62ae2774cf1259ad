"""What the shipped models never saw, written out as others lay their data out: ImageNet, CLIP_benchmark and COCO.

python -m experiments.zero_shot.layouts data/zero_shot

So the scripts here can be tried on real pictures before the real sets are at hand. Written are:

- `imagenet/val/n00000000/*.png`: a folder a held-out concept, named by number, and `imagenet/names.txt`;
- `suite/wds_<name>/`: the held-out family and concepts in CLIP_benchmark's WebDataset layout, and a retrieval set;
- `coco/val/*.png` and `coco/captions_val.json`: the held-out family, each picture with its name and its keywords.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image

from oblique_clip.cli import run_script
from oblique_clip.config import DataConfig
from oblique_clip.data.benchmarks import CLASS_NAMES, TEMPLATES, TYPE
from oblique_clip.data.emoji import EmojiSet
from oblique_clip.errors import UserError
from oblique_clip.evaluate.tasks import HeldOut, concept_labels

# Of the shipped captions; one drawing style or another is all there is.
PROMPTS = ("{c}", "an emoji of {c}", "a drawing of {c}")
SHARD = 1000


@dataclass(frozen=True)
class Layouts:
    """Write what the shipped models never saw in three layouts."""

    root: Annotated[Path, tyro.conf.Positional]
    """Folder for them, new or empty."""


def main(command: Layouts) -> None:
    """Write all three layouts.

    Raises:
        UserError: where the folder holds something.
    """
    root = command.root
    if root.exists() and any(root.iterdir()):
        raise UserError(f"{root} is not empty: name another folder")
    held_out = HeldOut(DataConfig())
    family, concepts = held_out.splits.test, held_out.concepts
    write_folders(root / "imagenet", concepts)
    for name, part in {"wds_emoji-fluent": family, "wds_emoji-concepts": concepts}.items():
        write_classification(root / "suite" / name, part)
    write_retrieval(root / "suite" / "wds_emoji-captions", family)
    write_coco(root / "coco", family)


def write_folders(root: Path, emoji: EmojiSet) -> None:
    """ImageNet's: `val/<number of the class>/<picture>` and the class names by number, a line each."""
    names, labels = concept_labels(emoji)
    for row, label in enumerate(labels.tolist()):
        _save(emoji, row, root / "val" / f"n{label:08}" / f"{row:05}.png")
    (root / "names.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def write_classification(root: Path, emoji: EmojiSet) -> None:
    """CLIP_benchmark's: pictures with the number of their class in tars, names and templates a line each."""
    names, labels = concept_labels(emoji)
    samples = ({"png": _png(emoji, row), "cls": str(label).encode()} for row, label in enumerate(labels.tolist()))
    _write_shards(root, samples)
    (root / CLASS_NAMES).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    (root / TEMPLATES).write_text("".join(f"{prompt}\n" for prompt in PROMPTS), encoding="utf-8")


def write_retrieval(root: Path, emoji: EmojiSet) -> None:
    """CLIP_benchmark's: pictures with their captions, a line each."""
    _write_shards(root, ({"png": _png(emoji, row), "txt": text.encode()} for row, text in _captions(emoji)))
    (root / TYPE).write_text("retrieval\n")


def write_coco(root: Path, emoji: EmojiSet) -> None:
    """COCO's: a folder of pictures, and JSON with `images` and `annotations`, several a picture."""
    images, annotations = [], []
    for row, text in _captions(emoji):
        name = f"{row:012}.png"
        _save(emoji, row, root / "val" / name)
        images.append({"id": row, "file_name": name})
        annotations += [{"image_id": row, "caption": caption} for caption in text.splitlines()]
    content = {"images": images, "annotations": annotations}
    (root / "captions_val.json").write_text(json.dumps(content), encoding="utf-8")


def _captions(emoji: EmojiSet) -> Iterator[tuple[int, str]]:
    """Of each picture its name and, where it has some, its keywords, a line each."""
    for row, record in enumerate(emoji.records):
        keywords = ", ".join(record.keywords)
        yield row, "\n".join(dict.fromkeys(text for text in (record.caption, keywords) if text))


def _write_shards(root: Path, samples: Iterator[Mapping[str, bytes]]) -> None:
    (root / "test").mkdir(parents=True)
    count, archive = 0, None
    for number, sample in enumerate(samples):
        if number % SHARD == 0:
            if archive is not None:
                archive.close()
            archive = tarfile.open(root / "test" / f"{count}.tar", "w")  # noqa: SIM115 (closed with its last sample)
            count += 1
        assert archive is not None
        for suffix, content in sample.items():
            entry = tarfile.TarInfo(f"{number:06}.{suffix}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    if archive is not None:
        archive.close()
    (root / "test" / "nshards.txt").write_text(f"{count}\n")


def _picture(emoji: EmojiSet, row: int) -> Image.Image:
    return Image.fromarray(emoji.pixels[emoji.rows[row]])


def _png(emoji: EmojiSet, row: int) -> bytes:
    file = io.BytesIO()
    _picture(emoji, row).save(file, "PNG")
    return file.getvalue()


def _save(emoji: EmojiSet, row: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(emoji, row))


if __name__ == "__main__":
    run_script(main, Layouts, "python -m experiments.zero_shot.layouts")
