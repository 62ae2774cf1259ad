"""`oblique-clip evaluate`: one model, one data set, one report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from ..checkpoint import Loaded, load
from ..config import DataConfig, TrainConfig, from_json
from ..data.batches import PairSource
from ..data.folders import open_class_folder
from ..data.sources import open_pairs
from ..device import pick_device, versions
from ..errors import UserError
from .encode import encode_images, encode_texts
from .retrieval import retrieval
from .tasks import evaluate_emoji
from .zeroshot import PLAIN, build_classifier, classification

CHUNK = 256


@dataclass(frozen=True)
class EvaluateConfig:
    """Zero-shot classification or retrieval with a trained model."""

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder or a checkpoint file."""
    data: str = "emoji"
    """`emoji` (what the run held out), a folder with a folder of pictures for each class, or a table for retrieval."""
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
        UserError: for a model, data set or template file that cannot be read.
    """
    loaded = load(config.model, pick_device(config.device))
    if config.data == "emoji":
        figures = evaluate_emoji(*loaded, _data_of_run(config.model))
    elif Path(config.data).is_dir():
        figures = evaluate_folder(loaded, Path(config.data), read_templates(config.templates))
    else:
        table = DataConfig(data=config.data, image_column=config.image_column, caption_column=config.caption_column)
        if not Path(config.data).exists():
            raise UserError(f"no such file or folder: {config.data}")
        figures = evaluate_pairs(loaded, open_pairs(table, loaded[1].image_size))
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
    """Retrieval both ways; rows with one caption share it, rows whose image is one file are one image each."""
    model, preprocess, tokenizer = loaded
    kept: list[int] = []

    def squares() -> Iterator[Tensor]:
        for rows in np.array_split(np.arange(len(pairs)), max(1, -(-len(pairs) // CHUNK))):
            batch, positions = pairs.fetch(rows)
            kept.extend(rows[positions].tolist())
            if len(batch):
                yield batch

    points = encode_images(model, squares(), preprocess)
    groups = pairs.groups()[kept]
    captions = {int(group): pairs.captions(row)[0] for row, group in zip(kept, groups, strict=True)}
    texts = encode_texts(model, tokenizer, list(captions.values()))
    figures = retrieval(points, texts, torch.from_numpy(groups), torch.tensor(list(captions)), model.topology)
    return {"retrieval": {**figures, "images": len(kept), "captions": len(captions)}, "skipped": dict(pairs.skipped)}


def read_templates(templates: tuple[str, ...]) -> tuple[str, ...]:
    """Templates as given, or the lines of the one file that is named."""
    if len(templates) == 1 and "{}" not in templates[0]:
        path = Path(templates[0])
        if not path.is_file():
            raise UserError(f"template {templates[0]!r} has no {{}} for the class name, and no such file exists")
        return tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return templates


def _data_of_run(model: Path) -> DataConfig:
    """What the run held out; the defaults for a checkpoint outside a run folder."""
    folder = model if model.is_dir() else model.parent.parent
    path = folder / "config.json"
    return from_json(TrainConfig, json.loads(path.read_text()), str(path)).data if path.is_file() else DataConfig()
