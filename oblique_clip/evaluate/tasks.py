"""The evaluations of the shipped set: a held-out family, held-out concepts, and retrieval, each beside its floors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..config import DataConfig
from ..data.batches import caption_group
from ..data.emoji import EmojiSet, Record
from ..data.splits import split_emoji
from ..topology import Topology
from .calibration import FITTED, OWN, calibration, fit_temperature
from .encode import encode_images, encode_texts
from .floors import pixel_neighbour, thumbnails
from .retrieval import group_matches, retrieval
from .templates import PLAIN, Prompts
from .zeroshot import build_classifier, classification, rank_figures

if TYPE_CHECKING:
    from ..checkpoint import Loaded

CHUNK = 256
FLAGS = "flags"
NOT_EMOJI = "openclipart"


class HeldOut:
    """What a `DataConfig` keeps of the shipped set to judge models by; any number of models can share it.

    Raises:
        UserError: see `split_emoji`.
    """

    def __init__(self, config: DataConfig) -> None:
        self.splits = split_emoji(config)

    @cached_property
    def concepts(self) -> EmojiSet:
        """Pictures of emoji, clip art not among them, whose names training never saw."""
        held = self.splits.concepts
        return held.select(_where(held, lambda record: record.family != NOT_EMOJI).numpy())

    @cached_property
    def pixel_ranks(self) -> Tensor:
        """Rank (N,) that the nearest training pictures give to each test picture's own name, the pixel floor."""
        test, train = self.splits.test, self.splits.train
        names, labels = concept_labels(test)
        place = {name: i for i, name in enumerate(names)}
        known = train.select(np.array([record.concept in place for record in train.records]))
        known_labels = torch.tensor([place[record.concept] for record in known.records])
        return pixel_neighbour(
            thumbnails(_squares(test)), labels, thumbnails(_squares(known)), known_labels, len(names)
        )


def evaluate_emoji(loaded: Loaded, held_out: HeldOut, templates: Prompts = PLAIN) -> dict[str, Any]:
    """Every evaluation of the shipped set that was held out of training.

    Args:
        templates: prompts for the names that pictures are classified among; see `build_classifier`.

    Returns:
        `family`: zero-shot figures of the test families beside the pixel floor, and both again for the names that
        training knows from other families, without flags, and for each source; `retrieval`: recall on the same
        pictures; `concepts`: zero-shot figures of emoji that training never named, among the names of those alone
        (no neighbour in pixels can name them: their floor is chance). Zero-shot figures of a whole come with its
        `calibration` under `calibration_scales`.
    """
    splits = held_out.splits
    scales = calibration_scales(loaded, held_out, templates)
    report: dict[str, Any] = {}
    if len(splits.test):
        points = encode_images(loaded.model, _squares(splits.test), loaded.preprocess)
        report["family"] = _family(loaded, points, held_out, templates, scales)
        report["retrieval"] = _retrieval(loaded, points, splits.test)
    if len(held_out.concepts):
        case = _case(loaded, held_out.concepts, templates)
        figures = {**classification(*case), **calibration(*case, scales)}
        report["concepts"] = {**figures, "images": len(held_out.concepts), "classes": len(case[2])}
    return report


def calibration_scales(loaded: Loaded, held_out: HeldOut, templates: Prompts = PLAIN) -> dict[str, float]:
    """The model's own scale, and the one fitted on the validation families among their names, where there are any."""
    scales = {OWN: float(loaded.model.temperature.scale.detach().cpu())}
    if len(held_out.splits.val):
        points, labels, classifier, topology = _case(loaded, held_out.splits.val, templates)
        similarity = topology.similarity(points, classifier)
        # A model that has diverged has no scale to be mended by.
        if similarity.isfinite().all():
            scales[FITTED] = fit_temperature(similarity, labels)
    return scales


def _case(loaded: Loaded, emoji: EmojiSet, templates: Prompts) -> tuple[Tensor, Tensor, Tensor, Topology]:
    """Points and labels of the pictures of `emoji`, a classifier of its own concept names, and their topology."""
    model, preprocess, tokenizer = loaded
    names, labels = concept_labels(emoji)
    points = encode_images(model, _squares(emoji), preprocess)
    return points, labels, build_classifier(model, tokenizer, names, templates), model.topology


def validation_score(loaded: Loaded, held_out: HeldOut) -> dict[str, float] | None:
    """Zero-shot figures on the validation families, the deciding one first; None where there are none."""
    if not len(held_out.splits.val):
        return None
    figures = classification(*_case(loaded, held_out.splits.val, PLAIN))
    return {name: figures[name] for name in ("top1", "top5", "mean_per_class")}


def _family(
    loaded: Loaded, points: Tensor, held_out: HeldOut, templates: Prompts, scales: dict[str, float]
) -> dict[str, Any]:
    test, floor = held_out.splits.test, held_out.pixel_ranks
    names, labels = concept_labels(test)
    classifier = build_classifier(loaded.model, loaded.tokenizer, names, templates)
    known = {record.concept for record in held_out.splits.train.records}
    parts = {
        "known_names": _where(test, lambda record: record.concept in known),
        "without_flags": _where(test, lambda record: record.group != FLAGS),
    }
    sources = dict.fromkeys(record.source for record in test.records)
    parts |= {source: _where(test, _from_source(source)) for source in sources}

    def figures(keep: Tensor) -> dict[str, Any]:
        model_figures = classification(points[keep], labels[keep], classifier, loaded.model.topology)
        return {
            **model_figures,
            "images": int(keep.sum()),
            "pixel_floor": rank_figures(floor[keep], labels[keep], len(names)),
        }

    everything = torch.ones(len(test), dtype=torch.bool)
    return {
        **figures(everything),
        **calibration(points, labels, classifier, loaded.model.topology, scales),
        "classes": len(names),
        "parts": {name: figures(keep) for name, keep in parts.items()},
    }


def _retrieval(loaded: Loaded, points: Tensor, test: EmojiSet) -> dict[str, float]:
    captions = list({caption_group(record.caption): record.caption for record in test.records}.values())
    texts = encode_texts(loaded.model, loaded.tokenizer, captions)
    image_groups = torch.tensor([caption_group(record.caption) for record in test.records])
    text_groups = torch.tensor([caption_group(caption) for caption in captions])
    figures = retrieval(points, texts, group_matches(image_groups, text_groups), loaded.model.topology)
    return {**figures, "captions": len(captions)}


def _squares(emoji: EmojiSet) -> Iterator[Tensor]:
    for start in range(0, len(emoji), CHUNK):
        yield emoji.images(np.arange(start, min(start + CHUNK, len(emoji))))


def concept_labels(emoji: EmojiSet) -> tuple[list[str], Tensor]:
    """Distinct concepts in alphabetical order, and each picture's place among them."""
    names = sorted({record.concept for record in emoji.records})
    place = {name: i for i, name in enumerate(names)}
    return names, torch.tensor([place[record.concept] for record in emoji.records])


def _where(emoji: EmojiSet, test: Callable[[Record], bool]) -> Tensor:
    return torch.tensor([test(record) for record in emoji.records], dtype=torch.bool)


def _from_source(source: str) -> Callable[[Record], bool]:
    return lambda record: record.source == source
