"""The evaluations of the shipped set: a held-out family, held-out concepts, and retrieval, each beside its floors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

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
from .zeroshot import build_classifier, class_ranks, classification, rank_figures

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
        return pixel_ranks(self.splits.test, self.splits.train)


def pixel_ranks(test: EmojiSet, train: EmojiSet) -> Tensor:
    """Rank (N,) that the nearest training pictures give to each test picture's name, among those of the test."""
    names, labels = concept_labels(test)
    place = {name: i for i, name in enumerate(names)}
    known = train.select(np.array([record.concept in place for record in train.records]))
    known_labels = torch.tensor([place[record.concept] for record in known.records])
    return pixel_neighbour(thumbnails(squares(test)), labels, thumbnails(squares(known)), known_labels, len(names))


class Case(NamedTuple):
    """Pictures with their names, encoded: what a classification is made of."""

    points: Tensor
    """(N, *point_shape)."""
    labels: Tensor
    """(N,), places in the classifier."""
    classifier: Tensor
    """(K, *point_shape), of the names in alphabetical order."""
    topology: Topology

    def cut(self, size: int) -> Case:
        """The same under the first `size` numbers of every embedding; see `Topology.cut`."""
        points, classifier = (self.topology.cut(part, size) for part in (self.points, self.classifier))
        return Case(points, self.labels, classifier, self.topology.prefix(size))

    def figures(self, keep: Tensor | slice = slice(None)) -> dict[str, float]:
        """Of all pictures, or of those to keep; see `classification`."""
        return classification(self.points[keep], self.labels[keep], self.classifier, self.topology)

    def right(self) -> dict[str, list[int]]:
        """How many pictures of each class there are, and how many of them are classified right."""
        ranks = class_ranks(self.points, self.labels, self.classifier, self.topology)
        classes = len(self.classifier)
        hits = torch.bincount(self.labels[ranks == 0], minlength=classes)
        return {"right": hits.tolist(), "of": torch.bincount(self.labels, minlength=classes).tolist()}


class Encoded:
    """What is held out, as a model sees it: each part is encoded once, when it is first asked for."""

    def __init__(self, loaded: Loaded, held_out: HeldOut, templates: Prompts = PLAIN) -> None:
        self.loaded, self.held_out, self.templates = loaded, held_out, templates

    def case(self, emoji: EmojiSet) -> Case:
        """Pictures among their own concept names."""
        model, preprocess, tokenizer = self.loaded
        names, labels = concept_labels(emoji)
        points = encode_images(model, squares(emoji), preprocess)
        return Case(points, labels, build_classifier(model, tokenizer, names, self.templates), model.topology)

    @cached_property
    def test(self) -> Case:
        return self.case(self.held_out.splits.test)

    @cached_property
    def concepts(self) -> Case:
        return self.case(self.held_out.concepts)

    @cached_property
    def validation(self) -> Case:
        return self.case(self.held_out.splits.val)

    @cached_property
    def scales(self) -> dict[str, float]:
        """The model's own scale, and the one fitted on the validation families, where there are any."""
        scales = {OWN: float(self.loaded.model.temperature.scale.detach().cpu())}
        if len(self.held_out.splits.val):
            points, labels, classifier, topology = self.validation
            similarity = topology.similarity(points, classifier)
            # A model that has diverged has no scale to be mended by.
            if similarity.isfinite().all():
                scales[FITTED] = fit_temperature(similarity, labels)
        return scales

    def calibrated(self, case: Case) -> dict[str, Any]:
        """Zero-shot figures with their calibration."""
        return {**case.figures(), **calibration(*case, self.scales)}


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
    return report_of(Encoded(loaded, held_out, templates))


def report_of(encoded: Encoded) -> dict[str, Any]:
    """What `evaluate_emoji` returns."""
    held_out = encoded.held_out
    report: dict[str, Any] = {}
    if len(held_out.splits.test):
        report["family"] = _family(encoded)
        report["retrieval"] = retrieved(encoded.loaded, encoded.test.points, held_out.splits.test)
    if len(held_out.concepts):
        figures = encoded.calibrated(encoded.concepts)
        report["concepts"] = {
            **figures, "images": len(held_out.concepts), "classes": len(encoded.concepts.classifier)
        }  # fmt: skip
    return report


def calibration_scales(loaded: Loaded, held_out: HeldOut, templates: Prompts = PLAIN) -> dict[str, float]:
    """The model's own scale, and the one fitted on the validation families among their names, where there are any."""
    return Encoded(loaded, held_out, templates).scales


def validation_score(loaded: Loaded, held_out: HeldOut) -> dict[str, float] | None:
    """Figures on the validation families, the deciding one first; None where there are no such families.

    Beside accuracies, mean and standard deviation of the similarity of pictures with their own name (`positive`) and
    with all others (`negative`), and how far the means are apart, as a share of the width of the range where it is
    finite (`gap`).
    """
    return validation_of(Encoded(loaded, held_out))


def validation_of(encoded: Encoded) -> dict[str, float] | None:
    """What `validation_score` returns."""
    if not len(encoded.held_out.splits.val):
        return None
    case = encoded.validation
    figures = case.figures()
    return {**{name: figures[name] for name in ("top1", "top5", "mean_per_class")}, **balance(case)}


def balance(case: Case) -> dict[str, float]:
    """Where attraction and repulsion have come to rest: see `validation_score`."""
    similarity = case.topology.similarity(case.points, case.classifier)
    own = torch.zeros_like(similarity, dtype=torch.bool)
    own[torch.arange(len(own)), case.labels] = True
    found: dict[str, float] = {}
    for name, values in (("positive", similarity[own]), ("negative", similarity[~own])):
        found |= {name: values.mean().item(), f"{name}_std": values.std(correction=0).item()}
    low, high = case.topology.range
    width = high - low if math.isfinite(high - low) else 1.0
    return {**found, "gap": (found["positive"] - found["negative"]) / width}


def _family(encoded: Encoded) -> dict[str, Any]:
    test, case = encoded.held_out.splits.test, encoded.test
    floor, classes = encoded.held_out.pixel_ranks, len(encoded.test.classifier)
    known = {record.concept for record in encoded.held_out.splits.train.records}
    parts = emoji_parts(test, known)
    sources = dict.fromkeys(record.source for record in test.records)
    parts |= {source: _where(test, _from_source(source)) for source in sources}

    def floors(keep: Tensor) -> dict[str, Any]:
        return {"images": int(keep.sum()), "pixel_floor": rank_figures(floor[keep], case.labels[keep], classes)}

    everything = torch.ones(len(test), dtype=torch.bool)
    return {
        **encoded.calibrated(case),
        **floors(everything),
        "classes": classes,
        "parts": {name: {**case.figures(keep), **floors(keep)} for name, keep in parts.items()},
    }


def emoji_parts(emoji: EmojiSet, known: set[str]) -> dict[str, Tensor]:
    """Pictures (N,) of names that training knows, and of all but flags."""
    return {
        "known_names": _where(emoji, lambda record: record.concept in known),
        "without_flags": _where(emoji, lambda record: record.group != FLAGS),
    }


def retrieved(loaded: Loaded, points: Tensor, test: EmojiSet) -> dict[str, float]:
    """Recall both ways between pictures and their distinct captions."""
    captions = list({caption_group(record.caption): record.caption for record in test.records}.values())
    texts = encode_texts(loaded.model, loaded.tokenizer, captions)
    image_groups = torch.tensor([caption_group(record.caption) for record in test.records])
    text_groups = torch.tensor([caption_group(caption) for caption in captions])
    figures = retrieval(points, texts, group_matches(image_groups, text_groups), loaded.model.topology)
    return {**figures, "captions": len(captions)}


def squares(emoji: EmojiSet) -> Iterator[Tensor]:
    """Its pictures in batches of uint8 (B, 3, H, H)."""
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
