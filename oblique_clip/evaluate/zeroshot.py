"""Zero-shot classification: class names become points, pictures go to the most similar one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UserError
from ..tokenizer import Tokenizer
from ..topology import Topology
from .encode import Encoder, encode_texts

if TYPE_CHECKING:
    from PIL import Image

    from ..checkpoint import Loaded

Template = str | Callable[[str], str]
PLAIN: tuple[str, ...] = ("{}",)
PROMPTS = 16384
"""Prompts of a classifier held at once: enough to fill batches of like length, whatever the number of classes."""


@torch.no_grad()
def build_classifier(
    model: Encoder, tokenizer: Tokenizer, names: Sequence[str], templates: Sequence[Template] = PLAIN
) -> Tensor:
    """One point a class, (K, *point_shape): the mean, on the manifold, of the class's prompts.

    Args:
        templates: each with one `{}` for the name (Radford et al. 2021, 3.1.4), or a function of the name, as
            open_clip's are.

    Raises:
        UserError: without names or templates, or for a template without `{}`.
    """
    if isinstance(names, str) or isinstance(templates, str):
        raise UserError("names and templates are lists of texts, not one text")
    if not names or not templates:
        raise UserError("zero-shot classification needs at least one class name and one template")
    for template in templates:
        if isinstance(template, str) and "{}" not in template:
            raise UserError(f"template {template!r} has no {{}} for the class name")
    together = max(1, PROMPTS // len(templates))
    means = []
    for start in range(0, len(names), together):
        part = names[start : start + together]
        points = encode_texts(model, tokenizer, [_prompt(template, name) for template in templates for name in part])
        means.append(model.topology.mean(points.unflatten(0, (len(templates), len(part)))))
    return torch.cat(means)


def _prompt(template: Template, name: str) -> str:
    return template.replace("{}", name) if isinstance(template, str) else template(name)


@torch.no_grad()
def classification(
    image_points: Tensor, labels: Tensor, classifier: Tensor, topology: Topology, chunk: int = 2048
) -> dict[str, float]:
    """Accuracies in [0, 1] of N pictures among K classes.

    Ties count against us: a class exactly as similar as the right one is ranked before it, and so is every class where
    similarities are no numbers.

    Returns:
        `top1`, `top5`, `mean_per_class` (of top-1, over the classes that occur), `chance` (of top-1).
    """
    ranks = []
    for rows in torch.arange(len(image_points)).split(chunk):
        scores = topology.similarity(image_points[rows], classifier)
        own = scores.gather(1, labels[rows, None])
        ranks.append((~(scores < own)).sum(1) - 1)
    return rank_figures(torch.cat(ranks), labels, len(classifier))


def rank_figures(ranks: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Accuracies from the rank (N,) that each picture's own class got, 0 for the first."""
    first = (ranks == 0).double()
    count = torch.bincount(labels, minlength=classes)
    hits = torch.bincount(labels, weights=first, minlength=classes)
    seen = count > 0
    return {
        "top1": first.mean().item(),
        "top5": (ranks < 5).double().mean().item(),
        "mean_per_class": (hits[seen] / count[seen]).mean().item(),
        "chance": 1 / classes,
    }


@torch.no_grad()
def classify(
    model_or_path: Loaded | str | Path,
    images: Sequence[Image.Image | str | Path],
    names: Sequence[str],
    templates: Sequence[str] | None = None,
) -> tuple[Tensor, list[str]]:
    """Probabilities (N, K) of each picture for each name, and the most probable name of each picture.

    Args:
        model_or_path: a run folder, a checkpoint, or the (model, preprocess, tokenizer) that `load` gave.

    Raises:
        UserError: without images, for one that cannot be read, or see `build_classifier`.
    """
    from ..checkpoint import load
    from ..data.images import decode_square
    from .encode import encode_images

    model, preprocess, tokenizer = load(model_or_path) if isinstance(model_or_path, str | Path) else model_or_path
    if not images:
        raise UserError("zero-shot classification needs at least one image")
    squares = []
    for image in images:
        try:
            source = Path(image) if isinstance(image, str) else image
            squares.append(decode_square(source, preprocess.image_size))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read image {image}: {error}") from error
    points = encode_images(model, torch.stack(squares).split(256), preprocess)
    classifier = build_classifier(model, tokenizer, names, templates or PLAIN)
    scale = model.temperature.scale.cpu()
    probabilities = (scale * model.topology.similarity(points, classifier)).softmax(-1)
    return probabilities, [names[i] for i in probabilities.argmax(-1).tolist()]
