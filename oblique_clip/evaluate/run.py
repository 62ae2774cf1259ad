"""`oblique-clip evaluate`: one model, one data set, one report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from ..checkpoint import Loaded, data_of, load
from ..config import DataConfig, write_json
from ..data.batches import caption_group
from ..data.benchmarks import (
    is_torchvision,
    is_webdataset,
    open_torchvision,
    open_webdataset,
    read_names,
    webdataset_shards,
    webdataset_type,
)
from ..data.captioned import CHUNK, CaptionedPictures, of_json, of_pairs, of_shards
from ..data.emoji import SIDE, EmojiSet
from ..data.folders import ClassPictures, open_class_folder
from ..data.shards import expand_shards
from ..data.sources import is_shards
from ..data.tables import SUFFIXES, open_table
from ..device import pick_device, versions
from ..errors import UserError
from ..interop import clip_benchmark
from .calibration import FITTED, OWN, calibration, draw_reliability
from .encode import encode_images, encode_texts
from .retrieval import retrieval
from .tasks import HeldOut, concept_labels, evaluate_emoji
from .templates import PLAIN, Prompts, read_descriptions, read_templates
from .zeroshot import build_classifier, classification

EMOJI = "emoji"
PEER = "clip_benchmark"
TORCHVISION_ROOT = Path("data")


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
    classes: Path | None = None
    """File with a class name a line, in the order of the data's classes; replaces its own names."""
    templates: tuple[str, ...] = ()
    """Prompts for a class name, each with one {} (or {c}); or one word: openai, simple (open_clip's lists),
    clip_benchmark:NAME, or a file with a template a line. Default: the data's own, else the bare name."""
    descriptions: Path | None = None
    """JSON with sentences for each class, {"cat": ["A cat is ...", ...], ...}, instead of templates."""
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
        ['chance', 'classes', 'ece', 'images', 'mean_per_class', 'reliability', 'top1', 'top5']
    """
    if config.out is not None and (config.out / "config.json").exists():
        raise UserError(f"{config.out} is a run folder, whose result.json would be lost: give another --out")
    loaded = load(config.model, pick_device(config.device))
    prompts = _read_prompts(config)
    side = loaded.preprocess.image_size
    if config.engine == PEER:
        clip_benchmark.check(loaded.model.topology)
    if config.data == EMOJI:
        held_out = HeldOut(data_of(config.model))
        figures = evaluate_emoji(loaded, held_out, prompts or PLAIN)
        parts = {name: (part, SIDE) for name, part in _held_out_pictures(held_out).items()}
    else:
        name, figures = evaluate_pictures(loaded, open_pictures(config, side), prompts)
        parts = {name: (open_pictures(config, side), side)} if config.engine == PEER else {}
    if config.engine == PEER:
        for name, (pictures, own_side) in parts.items():
            figures[name][PEER] = _by_peer(loaded, pictures, own_side, prompts)
    report = {
        "format_version": 1,
        "model": str(config.model),
        "topology": loaded.model.topology.spec,
        "data": config.data,
        "evaluation": figures,
        "versions": versions(),
    }
    if config.out is not None:
        _write(report, config.out)
    return report


Pictures = ClassPictures | CaptionedPictures


@dataclass(frozen=True)
class Kind:
    """A form that `--data` may take: its name in messages, what it is told by, and how it is opened at a side."""

    name: str
    fits: Callable[[str], bool]
    open: Callable[[EvaluateConfig, int], Pictures]


def _open_torchvision(config: EvaluateConfig, side: int) -> ClassPictures:
    names = None if config.classes is None else read_names(config.classes)
    return open_torchvision(config.data, config.data_root or TORCHVISION_ROOT, names, config.download)


def _open_webdataset(config: EvaluateConfig, side: int) -> Pictures:
    root = Path(config.data)
    if webdataset_type(root) == "retrieval":
        return of_shards(webdataset_shards(root), side, by_line=True)
    return open_webdataset(root)


def _open_table(config: EvaluateConfig, side: int) -> CaptionedPictures:
    table = DataConfig(
        data=config.data,
        image_column=config.image_column,
        caption_column=config.caption_column,
        image_root=config.data_root,
    )
    # Nothing is cropped here: files are read at the model's own size.
    return of_pairs(open_table(Path(config.data), table, side))


def _suffix(data: str) -> str:
    return Path(data).suffix.lower() if Path(data).is_file() else ""


# The first that fits: a file or folder of the name of a torchvision set is meant before that.
KINDS = (
    Kind("CLIP_benchmark's layout", lambda data: is_webdataset(Path(data)), _open_webdataset),
    Kind("a folder", lambda data: Path(data).is_dir(), lambda config, side: open_class_folder(Path(config.data))),
    Kind("a data set of torchvision", is_torchvision, _open_torchvision),
    Kind(".tar shards", is_shards, lambda config, side: of_shards(expand_shards(config.data), side)),
    Kind(f"a {', '.join(SUFFIXES)} file", lambda data: _suffix(data) in SUFFIXES, _open_table),
    Kind(
        "a caption .json",
        lambda data: _suffix(data) == ".json",
        lambda config, side: of_json(Path(config.data), config.data_root, side),
    ),
)


def open_pictures(config: EvaluateConfig, side: int) -> Pictures:
    """What `config.data` names, at the names of `config.classes` where those are given.

    Raises:
        UserError: for data of no known kind, and as its opener does.
    """
    for kind in KINDS:
        if kind.fits(config.data):
            pictures = kind.open(config, side)
            if config.classes is not None and isinstance(pictures, ClassPictures):
                names = read_names(config.classes)
                if len(names) != len(pictures.names):
                    raise UserError(
                        f"{config.classes} has {len(names)} names, {config.data} {len(pictures.names)} classes"
                    )
                pictures.names = names
            return pictures
    if not Path(config.data).exists():
        raise UserError(f"no such file or folder: {config.data}")
    known = ", ".join(kind.name for kind in KINDS)
    raise UserError(f"cannot tell what --data {config.data!r} is: expected {EMOJI!r}, {known}")


def evaluate_pictures(loaded: Loaded, pictures: Pictures, prompts: Prompts | None) -> tuple[str, dict[str, Any]]:
    """The report on one data set, and the name that its figures have there: `classification` or `retrieval`.

    Args:
        prompts: those of the data where None, else the bare name.
    """
    if isinstance(pictures, CaptionedPictures):
        return "retrieval", {"retrieval": evaluate_captions(loaded, pictures), "skipped": dict(pictures.skipped())}
    figures = evaluate_classes(loaded, pictures, prompts or pictures.templates or PLAIN)
    return "classification", {"classification": figures, "skipped": dict(pictures.skipped)}


def evaluate_classes(loaded: Loaded, pictures: ClassPictures, prompts: Prompts) -> dict[str, Any]:
    """Zero-shot classification, with the calibration error of the model's own scale, and of the calibrated one."""
    model, preprocess, tokenizer = loaded
    classifier = build_classifier(model, tokenizer, pictures.names, prompts)
    points = encode_images(model, pictures.squares(preprocess.image_size), preprocess)
    case = (points, torch.tensor(pictures.labels), classifier, model.topology)
    temperature = model.temperature
    scales = {OWN: float(temperature.scale.detach().cpu())}
    if temperature.calibrated is not None:
        scales[FITTED] = temperature.calibrated
    sizes = {"images": len(points), "classes": len(pictures.names)}
    return {**classification(*case), **calibration(*case, scales), **sizes}


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
    return clip_benchmark.zero_shot(loaded, pictures, side, prompts or pictures.templates or PLAIN)


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
