"""Zero-shot classification: class names become points, pictures go to the most similar one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UserError
from ..tokenizer import Tokenizer
from ..topology import Topology
from .calibration import fit_temperature
from .encode import Encoder, encode_texts
from .templates import PLAIN, Prompts, prompts_of

if TYPE_CHECKING:
    from PIL import Image

    from ..checkpoint import Loaded

IMAGES = 256
PROMPTS = 16384
"""Prompts of a classifier held at once: enough to fill batches of like length, whatever the number of classes."""


@torch.no_grad()
def build_classifier(model: Encoder, tokenizer: Tokenizer, names: Sequence[str], templates: Prompts = PLAIN) -> Tensor:
    """One point a class, (K, *point_shape): the mean, on the manifold, of the class's prompts.

    Args:
        templates: each with one `{}` (or `{c}`, CLIP_benchmark's) for the name (Radford et al. 2021, 3.1.4), or a
            function of the name, as open_clip's are; or by name the sentences of each class, any number of them.

    Raises:
        UserError: without names or templates, for a template without `{}`, or a class without sentences.

    Examples:
        >>> from oblique_clip import load
        >>> from oblique_clip.evaluate.zeroshot import build_classifier
        >>> model, _, tokenizer = load("tiny-oblique")
        >>> classifier = build_classifier(model, tokenizer, ["dog", "cat"], ["a photo of a {}", "a drawing of a {}"])
        >>> classifier.shape
        torch.Size([2, 8, 16])
        >>> classifier.norm(dim=-1).double().round(decimals=3).unique().tolist()  # a mean of points is a point
        [1.0]
    """
    if isinstance(names, str) or isinstance(templates, str):
        raise UserError("names and templates are lists of texts, not one text")
    if not names or not templates:
        raise UserError("zero-shot classification needs at least one class name and one template")
    means = []
    for part in _together(prompts_of(names, templates)):
        points = encode_texts(model, tokenizer, [prompt for prompts in part for prompt in prompts])
        means.append(_means(points.split([len(prompts) for prompts in part]), model.topology))
    return torch.cat(means)


def _together(prompts: list[list[str]]) -> Iterator[list[list[str]]]:
    """Classes in order, as many at a time as have `PROMPTS` prompts together; at least one."""
    part: list[list[str]] = []
    held = 0
    for own in prompts:
        if part and held + len(own) > PROMPTS:
            yield part
            part, held = [], 0
        part.append(own)
        held += len(own)
    yield part


def _means(points: Sequence[Tensor], topology: Topology) -> Tensor:
    """Mean of the prompts of each class (P_k, *point_shape), (K, *point_shape); classes of equal P_k at once."""
    counts = torch.tensor([len(own) for own in points])
    means = points[0].new_empty(len(points), *points[0].shape[1:])
    for count in counts.unique():
        rows = (counts == count).nonzero()[:, 0]
        means[rows] = topology.mean(torch.stack([points[row] for row in rows.tolist()], 1))
    return means


@torch.no_grad()
def classification(
    image_points: Tensor, labels: Tensor, classifier: Tensor, topology: Topology, chunk: int = 2048
) -> dict[str, float]:
    """Accuracies in [0, 1] of N pictures among K classes.

    Ties count against us: a class exactly as similar as the right one is ranked before it, and so is every class where
    similarities are no numbers. So classes of one name, whose points are equal, are never right: merge them before.

    Returns:
        `top1`, `top5`, `mean_per_class` (of top-1, over the classes that occur), `chance` (of top-1).

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.evaluate.zeroshot import classification
        >>> topology = parse_topology("sphere(2)")
        >>> classifier = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> pictures = topology.project(torch.tensor([[[2.0, 1.0]], [[1.0, 3.0]], [[3.0, 1.0]]]))
        >>> figures = classification(pictures, torch.tensor([0, 1, 1]), classifier, topology)
        >>> {name: round(value, 3) for name, value in figures.items()}
        {'top1': 0.667, 'top5': 1.0, 'mean_per_class': 0.75, 'chance': 0.5}
    """
    ranks = class_ranks(image_points, labels, classifier, topology, chunk)
    return rank_figures(ranks, labels, len(classifier))


@torch.no_grad()
def class_ranks(
    image_points: Tensor, labels: Tensor, classifier: Tensor, topology: Topology, chunk: int = 2048
) -> Tensor:
    """Rank (N,) that each picture's own class gets, 0 for the first; ties as in `classification`.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.evaluate.zeroshot import class_ranks
        >>> topology = parse_topology("sphere(2)")
        >>> points = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> class_ranks(points, torch.tensor([0, 0]), points, topology).tolist()
        [0, 1]
    """
    ranks = []
    for rows in torch.arange(len(image_points)).split(chunk):
        scores = topology.similarity(image_points[rows], classifier)
        own = scores.gather(1, labels[rows, None])
        ranks.append((~(scores < own)).sum(1) - 1)
    return torch.cat(ranks)


def rank_figures(ranks: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Accuracies from the rank (N,) that each picture's own class got, 0 for the first.

    Examples:
        >>> import torch
        >>> from oblique_clip.evaluate.zeroshot import rank_figures
        >>> rank_figures(torch.tensor([0, 0, 3, 6]), torch.tensor([0, 1, 1, 1]), classes=10)["top5"]
        0.75
    """
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
    templates: Prompts | None = None,
) -> tuple[Tensor, list[str]]:
    """Probabilities (N, K) of each picture for each name, and the most probable name of each picture.

    The softmax is under the model's calibrated scale where it has one (training on the shipped set fits it on the
    validation family; see `calibrate`), else under the scale it was trained with.

    Args:
        model_or_path: a run folder, a checkpoint, or the (model, preprocess, tokenizer) that `load` gave.

    Raises:
        UserError: without images, for one that cannot be read, or see `build_classifier`.

    Examples:
        >>> from PIL import Image
        >>> from oblique_clip import classify
        >>> from oblique_clip.data.emoji import load_emoji
        >>> emoji = load_emoji().of_families(("emoji-fluent",))  # which the model has never seen
        >>> apple = next(i for i, record in enumerate(emoji.records) if record.caption == "red apple")
        >>> picture = Image.fromarray(emoji.pixels[emoji.rows[apple]])
        >>> probabilities, names = classify("tiny-oblique", [picture], ["dog", "red apple", "house"])
        >>> names, probabilities.shape
        (['red apple'], torch.Size([1, 3]))
    """
    from ..checkpoint import Loaded, load

    loaded = load(model_or_path) if isinstance(model_or_path, str | Path) else Loaded(*model_or_path)
    temperature = loaded.model.temperature
    scale = temperature.scale.item() if temperature.calibrated is None else temperature.calibrated
    probabilities = (scale * _similarity(loaded, images, names, templates)).softmax(-1)
    return probabilities, [names[i] for i in probabilities.argmax(-1).tolist()]


@torch.no_grad()
def calibrate(
    loaded: Loaded,
    images: Sequence[Image.Image | str | Path],
    labels: Sequence[int],
    names: Sequence[str],
    templates: Prompts | None = None,
) -> float:
    """Fit the scale that makes probabilities of `classify` honest, and keep it in the model (`temperature.calibrated`).

    Checkpoints of `save_model` and `save_pretrained` carry it. No accuracy changes.

    Args:
        images: pictures that neither training nor the test has, as for `classify`.
        labels: the place of each picture's class in `names`.

    Returns:
        The scale, > 0.

    Raises:
        UserError: for another number of labels than images, a label that is no place in `names`, or as `classify`.

    Examples:
        >>> from PIL import Image
        >>> from oblique_clip import calibrate, load
        >>> from oblique_clip.data.emoji import load_emoji
        >>> emoji = load_emoji().of_families(("emoji-fxemoji",))  # on which it was neither trained nor tested
        >>> pictures = [Image.fromarray(emoji.pixels[row]) for row in emoji.rows[:64]]
        >>> names = sorted({record.concept for record in emoji.records[:64]})
        >>> labels = [names.index(record.concept) for record in emoji.records[:64]]
        >>> loaded = load("tiny-sphere")
        >>> calibrate(loaded, pictures, labels, names) < loaded.model.temperature.scale.item()  # it was too sure
        True
    """
    if len(labels) != len(images):
        raise UserError(f"calibration needs a label for each image: {len(images)} images, {len(labels)} labels")
    if stray := [label for label in labels if not 0 <= label < len(names)]:
        raise UserError(f"label {stray[0]} is no place in the list of {len(names)} names")
    scale = fit_temperature(_similarity(loaded, images, names, templates), torch.tensor(labels))
    loaded.model.temperature.calibrated = scale
    return scale


def _similarity(
    loaded: Loaded, images: Sequence[Image.Image | str | Path], names: Sequence[str], templates: Prompts | None
) -> Tensor:
    """Of each picture with each class, (N, K)."""
    from ..data.images import decode_square
    from .encode import encode_images

    model, preprocess, tokenizer = loaded
    if isinstance(images, str) or not isinstance(images, Sequence):
        raise UserError("images are a list of pictures or paths, not one of them")
    if not images:
        raise UserError("zero-shot classification needs at least one image")
    classifier = build_classifier(model, tokenizer, names, templates or PLAIN)

    def squares() -> Iterator[Tensor]:
        for start in range(0, len(images), IMAGES):
            yield torch.stack([square(image) for image in images[start : start + IMAGES]])

    def square(image: Image.Image | str | Path) -> Tensor:
        try:
            return decode_square(Path(image) if isinstance(image, str) else image, preprocess.image_size)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read image {image}: {error}") from error

    return model.topology.similarity(encode_images(model, squares(), preprocess), classifier)
