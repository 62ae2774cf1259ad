"""`oblique-clip evaluate`: one model, one data set, one report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from ..checkpoint import Loaded, data_of, fingerprint, load
from ..config import check_folder, to_json, write_json
from ..data.batches import caption_group
from ..data.benchmarks import PEER
from ..data.captioned import CHUNK, CaptionedPictures
from ..data.emoji import SIDE, EmojiSet
from ..data.folders import ClassPictures
from ..data.sources import EMOJI, is_emoji
from ..device import pick_device, versions
from ..errors import UserError
from ..interop import clip_benchmark
from .calibration import FITTED, OWN, STORED, calibration, draw_reliability, fit_temperature
from .encode import encode_images, encode_texts
from .pictures import Pictures, check_flags, open_pictures
from .retrieval import retrieval
from .tasks import HeldOut, concept_labels, evaluate_emoji
from .templates import PLAIN, Prompts, read_descriptions, read_templates
from .zeroshot import build_classifier, classification


@dataclass(frozen=True)
class EvaluateConfig:
    """Zero-shot classification or retrieval with a trained model.

    Examples:
        >>> from pathlib import Path
        >>> from oblique_clip.evaluate.run import EvaluateConfig
        >>> config = EvaluateConfig(Path("runs/mine"), data="CIFAR10", templates=("openai",))
        >>> config.engine, config.download
        ('oblique_clip', False)
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, a checkpoint file, a shipped model, open_clip:NAME/TAG or open_clip:NAME/FILE,
    clip-mtob:FILE,VOCABULARY (the official code's), or hf:USER/NAME[@REVISION]."""
    data: str = EMOJI
    """`emoji` (what the run held out); for classification a folder with one folder a class, one in CLIP_benchmark's
    WebDataset layout, or a data set of torchvision (CIFAR10, Food101, ...); for retrieval a table, .tar shards, or a
    caption JSON (COCO's, or Karpathy's for Flickr)."""
    data_root: Path | None = None
    """Folder of torchvision's files (default: data), or of the images of a table or a caption JSON (its own)."""
    download: bool = False
    """Let torchvision fetch what is missing under --data-root."""
    classes: str | None = None
    """Class names instead of the data's own: imagenet (open_clip's), clip_benchmark:NAME, or a file with one a line, in
    the order of the data's classes."""
    templates: tuple[str, ...] = ()
    """Prompts for a class name, each with one {} (or {c}); or one word: openai, simple (open_clip's lists),
    clip_benchmark:NAME, or a file with a template a line. Default: the data's own, else the bare name."""
    descriptions: Path | None = None
    """JSON with sentences for each class, {"cat": ["A cat is ...", ...], ...}, instead of templates."""
    calibrate_on: str | None = None
    """Pictures by class, of any of the kinds above, that one scale is fitted on: neither trained nor tested on."""
    engine: Literal["oblique_clip", "clip_benchmark"] = "oblique_clip"
    """`clip_benchmark` puts the figures of CLIP_benchmark's own metrics beside ours."""
    image_column: str = "image"
    """Column with the image path (table)."""
    caption_column: str = "caption"
    """Column with the caption (table)."""
    out: Path | None = None
    """Folder for result.json and reliability.png."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate as configured and return the report, which also goes to `out/result.json`.

    Raises:
        UserError: for a model, data set or prompts that cannot be read, or where `out` is a run folder.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip.evaluate.run import EvaluateConfig, evaluate
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("red_apple", "blue_car"):
        ...     (folder / name).mkdir()
        ...     Image.new("RGB", (64, 64), name.split("_")[0]).save(folder / name / "0.png")
        >>> report = evaluate(EvaluateConfig(Path("tiny-oblique"), data=str(folder), templates=("a {}",), device="cpu"))
        >>> figures = report["evaluation"]["classification"]
        >>> figures["images"], figures["classes"], figures["chance"]
        (2, 2, 0.5)
        >>> sorted(figures)
        ['chance', 'classes', 'ece', 'ece_stored', 'images', 'mean_per_class', 'reliability', 'top1', 'top5']
    """
    check_folder(config.out)
    if config.out is not None and (config.out / "config.json").exists():
        raise UserError(f"{config.out} is a run folder, whose result.json would be lost: give another --out")
    check_flags(config)
    prompts = _read_prompts(config)
    loaded = load(config.model, pick_device(config.device))
    if config.engine == PEER:
        clip_benchmark.check(loaded.model.topology)
    report = {
        "format_version": 1,
        "model": str(config.model),
        "topology": loaded.model.topology.spec,
        "data": config.data,
        "evaluation": _figures(config, loaded, prompts),
        "settings": settings_of(config),
        "fingerprint": fingerprint(loaded.model),
        "versions": versions(),
    }
    if config.out is not None:
        _write(report, config.out)
    return report


def settings_of(config: EvaluateConfig) -> dict[str, Any]:
    """What was asked, wherever the report goes, as plain JSON values.

    Examples:
        >>> from pathlib import Path
        >>> from oblique_clip.evaluate.run import EvaluateConfig, settings_of
        >>> settings = settings_of(EvaluateConfig(Path("tiny-oblique"), "photos", out=Path("runs/photos")))
        >>> settings["data"], settings["out"]
        ('photos', None)
    """
    return to_json(replace(config, out=None))


def _figures(config: EvaluateConfig, loaded: Loaded, prompts: Prompts | None) -> dict[str, Any]:
    side = loaded.preprocess.image_size
    if is_emoji(config.data):
        held_out = HeldOut(data_of(config.model))
        figures = evaluate_emoji(loaded, held_out, prompts or PLAIN)
        parts = {name: (part, SIDE) for name, part in _held_out_pictures(held_out).items()}
    else:
        pictures, validation = open_pictures(config, side), _validation(config, side)
        name, figures = evaluate_pictures(loaded, pictures, prompts, validation)
        parts = {name: (open_pictures(config, side), side)} if config.engine == PEER else {}
    if config.engine == PEER:
        for name, (part, own_side) in parts.items():
            figures[name][PEER] = _by_peer(loaded, part, own_side, prompts)
    return figures


def _validation(config: EvaluateConfig, side: int) -> ClassPictures | None:
    """The pictures of `--calibrate-on`."""
    if config.calibrate_on is None:
        return None
    pictures = open_pictures(replace(config, data=config.calibrate_on), side)
    assert isinstance(pictures, ClassPictures)  # see `check_flags`
    return pictures


def evaluate_pictures(
    loaded: Loaded, pictures: Pictures, prompts: Prompts | None, validation: ClassPictures | None = None
) -> tuple[str, dict[str, Any]]:
    """The report on one data set, and the name that its figures have there: `classification` or `retrieval`.

    Args:
        prompts: those of the data where None, else the bare name.
        validation: see `evaluate_classes`.
    """
    if isinstance(pictures, CaptionedPictures):
        return "retrieval", {"retrieval": evaluate_captions(loaded, pictures), "skipped": dict(pictures.skipped())}
    figures = evaluate_classes(loaded, pictures, prompts or pictures.templates or PLAIN, validation)
    return "classification", {"classification": figures, "skipped": dict(pictures.skipped)}


def evaluate_classes(
    loaded: Loaded, pictures: ClassPictures, prompts: Prompts, validation: ClassPictures | None = None
) -> dict[str, Any]:
    """Zero-shot classification, with the calibration error of the model's own scale and of another.

    Classes of one name are one class; `same_names` is how many of them another has taken in, where there are any.

    Args:
        validation: pictures that the other scale is fitted on; without them it is the one that the model carries.

    Examples:
        >>> from PIL import Image
        >>> from oblique_clip import load
        >>> from oblique_clip.data.folders import ClassPictures
        >>> from oblique_clip.evaluate.run import evaluate_classes
        >>> samples = [(Image.new("RGB", (64, 64), colour), i) for i, colour in enumerate(("red", "blue", "white"))]
        >>> figures = evaluate_classes(load("tiny-oblique"), ClassPictures(["apple", "sea", "sea"], samples), ["a {}"])
        >>> figures["images"], figures["classes"], figures["same_names"]
        (3, 2, 1)
    """
    model = loaded.model
    merged = pictures.merged()
    case = (*_encoded(loaded, merged, prompts), model.topology)
    scales = {OWN: float(model.temperature.scale.detach().cpu())}
    if validation is not None:
        points, labels, classifier = _encoded(loaded, validation.merged(), prompts)
        scales[FITTED] = fit_temperature(model.topology.similarity(points, classifier), labels)
    elif model.temperature.calibrated is not None:
        scales[STORED] = model.temperature.calibrated
    sizes = {"images": len(case[0]), "classes": len(merged.names)}
    if taken_in := len(pictures.names) - len(merged.names):
        sizes["same_names"] = taken_in
    return {**classification(*case), **calibration(*case, scales), **sizes}


def _encoded(loaded: Loaded, pictures: ClassPictures, prompts: Prompts) -> tuple[Tensor, Tensor, Tensor]:
    """Points and labels of pictures, and the classifier of their names."""
    model, preprocess, tokenizer = loaded
    classifier = build_classifier(model, tokenizer, pictures.names, prompts)
    points = encode_images(model, pictures.squares(preprocess.image_size), preprocess)
    return points, torch.tensor(pictures.labels), classifier


def evaluate_captions(loaded: Loaded, pictures: CaptionedPictures) -> dict[str, Any]:
    """Retrieval both ways over pictures and distinct captions, matched as the pictures say, with their numbers."""
    captions: dict[int, str] = {}
    related: list[tuple[int, int]] = []

    def squares() -> Iterator[Tensor]:
        seen = 0
        for batch, texts in pictures.batches:
            for image, own in enumerate(texts, seen):
                for caption in own:
                    group = caption_group(caption)
                    captions.setdefault(group, caption)
                    related.append((image, group))
            seen += len(batch)
            yield batch

    points = encode_images(loaded.model, squares(), loaded.preprocess)
    texts = encode_texts(loaded.model, loaded.tokenizer, list(captions.values()))
    number = {group: i for i, group in enumerate(captions)}
    matches = torch.tensor([(image, number[group]) for image, group in dict.fromkeys(related)])
    sizes = {"images": len(points), "captions": len(texts), "pairs": len(matches)}
    return {**retrieval(points, texts, matches, loaded.model.topology), **sizes}


def _held_out_pictures(held_out: HeldOut) -> dict[str, Pictures]:
    """What the evaluations of the shipped set are of, by their names in its report."""
    test = held_out.splits.test
    parts: dict[str, Pictures] = {"family": _of_emoji(test), "retrieval": _captions_of_emoji(test)} if len(test) else {}
    return {**parts, "concepts": _of_emoji(held_out.concepts)} if len(held_out.concepts) else parts


def _of_emoji(emoji: EmojiSet) -> ClassPictures:
    names, labels = concept_labels(emoji)
    return ClassPictures(
        names,
        ((Image.fromarray(emoji.pixels[row]), label) for row, label in zip(emoji.rows, labels.tolist(), strict=True)),
    )


def _captions_of_emoji(emoji: EmojiSet) -> CaptionedPictures:
    parts = np.array_split(np.arange(len(emoji)), -(-len(emoji) // CHUNK))
    batches = ((emoji.images(rows), [[emoji.records[row].caption] for row in rows]) for rows in parts)
    return CaptionedPictures(batches, Counter)


def _by_peer(loaded: Loaded, pictures: Pictures, side: int, prompts: Prompts | None) -> dict[str, float]:
    if isinstance(pictures, CaptionedPictures):
        return clip_benchmark.retrieval(loaded, pictures)
    return clip_benchmark.zero_shot(loaded, pictures.merged(), side, prompts or pictures.templates or PLAIN)


def _read_prompts(config: EvaluateConfig) -> Prompts | None:
    """What the flags say; None where they are silent."""
    if config.descriptions is not None:
        if config.templates:
            raise UserError(
                "--templates and --descriptions exclude each other: a description file may hold prompts too"
            )
        return read_descriptions(config.descriptions)
    return read_templates(config.templates) if config.templates else None


def _write(report: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "result.json", report)
    judged = {name: figures for name, figures in report["evaluation"].items() if "reliability" in figures}
    if judged:
        draw_reliability(judged).savefig(out / "reliability.png", dpi=110)
