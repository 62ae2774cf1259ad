"""`oblique-clip evaluate`: one model, one data set, one report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from ..checkpoint import Loaded, data_of, load
from ..config import DataConfig
from ..data.batches import PairSource, caption_group
from ..data.folders import open_class_folder
from ..data.shards import expand_shards, read_shards
from ..data.sources import is_shards
from ..data.tables import SUFFIXES, open_table
from ..device import pick_device, versions
from ..errors import UserError
from .encode import encode_images, encode_texts
from .retrieval import retrieval
from .tasks import HeldOut, evaluate_emoji
from .zeroshot import PLAIN, build_classifier, classification

CHUNK = 256


@dataclass(frozen=True)
class EvaluateConfig:
    """Zero-shot classification or retrieval with a trained model."""

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder or a checkpoint file."""
    data: str = "emoji"
    """`emoji` (what the run held out), a folder with one folder a class, or a table or .tar shards for retrieval."""
    templates: tuple[str, ...] = PLAIN
    """Prompts for a class name, each with one {}; or one file with a template a line."""
    image_column: str = "image"
    """Column with the image path (table)."""
    caption_column: str = "caption"
    """Column with the caption (table)."""
    out: Path | None = None
    """Folder for result.json."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate as configured and return the report, which also goes to `out/result.json`.

    Raises:
        UserError: for a model, data set or template file that cannot be read, or where `out` is a run folder.
    """
    if config.out is not None and (config.out / "config.json").exists():
        raise UserError(f"{config.out} is a run folder, whose result.json would be lost: give another --out")
    loaded = load(config.model, pick_device(config.device))
    if config.data == "emoji":
        figures = evaluate_emoji(loaded, HeldOut(data_of(config.model)), read_templates(config.templates))
    elif Path(config.data).is_dir():
        figures = evaluate_folder(loaded, Path(config.data), read_templates(config.templates))
    elif is_shards(config.data):
        figures = evaluate_shards(loaded, expand_shards(config.data))
    elif not Path(config.data).exists():
        raise UserError(f"no such file or folder: {config.data}")
    elif Path(config.data).suffix.lower() in SUFFIXES:
        table = DataConfig(data=config.data, image_column=config.image_column, caption_column=config.caption_column)
        # Nothing is cropped here: files are read at the model's own size.
        figures = evaluate_pairs(loaded, open_table(Path(config.data), table, loaded[1].image_size))
    else:
        raise UserError(
            f"cannot tell what --data {config.data!r} is: expected 'emoji', a folder, "
            f"a {', '.join(SUFFIXES)} file, or .tar shards"
        )
    report = {
        "format_version": 1,
        "model": str(config.model),
        "topology": loaded[0].topology.spec,
        "data": config.data,
        "evaluation": figures,
        "versions": versions(),
    }
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "result.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def evaluate_folder(loaded: Loaded, root: Path, templates: tuple[str, ...]) -> dict[str, Any]:
    """Zero-shot classification of a folder per class."""
    model, preprocess, tokenizer = loaded
    folder = open_class_folder(root)
    classifier = build_classifier(model, tokenizer, folder.names, templates)
    points = encode_images(model, folder.squares(preprocess.image_size), preprocess)
    figures = classification(points, torch.tensor(folder.labels), classifier, model.topology)
    sizes = {"images": len(points), "classes": len(folder.names)}
    return {"classification": {**figures, **sizes}, "skipped": dict(folder.skipped)}


def evaluate_pairs(loaded: Loaded, pairs: PairSource) -> dict[str, Any]:
    """Retrieval both ways over the distinct images and captions of a table, matched as its rows say.

    A row whose image cannot be read drops out; such an image is counted once, in `skipped`.
    """
    keys = [pairs.image_key(row) for row in range(len(pairs))]
    place: dict[str, int] = {}

    def squares() -> Iterator[Tensor]:
        # One row of each image is read and stands for all of them.
        single = np.array(list({key: row for row, key in enumerate(keys)}.values()))
        for start in range(0, len(single), CHUNK):
            rows = single[start : start + CHUNK]
            batch, positions = pairs.fetch(rows)
            for row in rows[positions]:
                place[keys[row]] = len(place)
            if len(batch):
                yield batch

    points = encode_images(loaded[0], squares(), loaded[1])
    captions: dict[int, str] = {}
    related: list[tuple[int, int]] = []
    for row, group in enumerate(pairs.groups().tolist()):
        if keys[row] in place:
            captions.setdefault(group, pairs.captions(row)[0])
            related.append((place[keys[row]], group))
    return {"retrieval": _retrieval(loaded, points, captions, related), "skipped": dict(pairs.skipped)}


def evaluate_shards(loaded: Loaded, urls: list[str]) -> dict[str, Any]:
    """Retrieval both ways over WebDataset shards: each sample is an image of its own, equal captions are one."""
    skipped: Counter[str] = Counter()
    captions: dict[int, str] = {}
    related: list[tuple[int, int]] = []

    def squares() -> Iterator[Tensor]:
        samples = read_shards(urls, loaded[1].image_size, skipped)
        while batch := list(islice(samples, CHUNK)):
            for sample in batch:
                group = caption_group(sample.caption)
                captions.setdefault(group, sample.caption)
                related.append((len(related), group))
            yield torch.stack([sample.square for sample in batch])

    points = encode_images(loaded[0], squares(), loaded[1])
    return {"retrieval": _retrieval(loaded, points, captions, related), "skipped": dict(skipped)}


def _retrieval(
    loaded: Loaded, points: Tensor, captions: dict[int, str], related: list[tuple[int, int]]
) -> dict[str, Any]:
    """Recall over `captions` by their groups and the distinct (image, group) of `related`, with the sizes."""
    texts = encode_texts(loaded[0], loaded[2], list(captions.values()))
    number = {group: i for i, group in enumerate(captions)}
    matches = torch.tensor([(image, number[group]) for image, group in dict.fromkeys(related)])
    sizes = {"images": len(points), "captions": len(texts), "pairs": len(matches)}
    return {**retrieval(points, texts, matches, loaded[0].topology), **sizes}


def read_templates(templates: tuple[str, ...]) -> tuple[str, ...]:
    """Templates as given, or the lines of the one file that is named."""
    if len(templates) == 1 and "{}" not in templates[0]:
        path = Path(templates[0])
        if not path.is_file():
            raise UserError(f"template {templates[0]!r} has no {{}} for the class name, and no such file exists")
        return tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return templates
