"""Everything is encoded once, without gradient and in evaluation mode; points come back on the CPU in float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ..data.images import Preprocess
from ..errors import UserError
from ..tokenizer import PAD_ID, Tokenizer, cut_to_longest
from ..topology import Topology


class Encoder(Protocol):
    """What evaluation asks of a model; `DualEncoder` and the wrappers in `interop` fit."""

    training: bool

    @property
    def topology(self) -> Topology: ...

    def encode_image(self, images: Tensor) -> Tensor: ...

    def encode_text(self, ids: Tensor) -> Tensor: ...

    def train(self, mode: bool = True) -> object: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...


@contextmanager
def evaluating(model: Encoder) -> Iterator[torch.device]:
    """Evaluation mode without gradient, put back afterwards; gives the model's device.

    Examples:
        >>> import torch
        >>> from oblique_clip import create_model, model_config
        >>> from oblique_clip.evaluate.encode import evaluating
        >>> model = create_model(model_config("tiny", "oblique"))
        >>> with evaluating(model) as device:
        ...     print(device, model.training, torch.is_grad_enabled())
        cpu False False
        >>> model.training
        True
    """
    before = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            yield next(iter(model.parameters())).device
    finally:
        model.train(before)


def encode_images(model: Encoder, squares: Iterable[Tensor], preprocess: Preprocess) -> Tensor:
    """Batches of uint8 squares (B, 3, H, H) to points (N, *point_shape).

    Raises:
        UserError: where there is no batch.

    Examples:
        >>> import torch
        >>> from oblique_clip import load
        >>> from oblique_clip.evaluate.encode import encode_images
        >>> model, preprocess, _ = load("tiny-oblique")
        >>> batches = [torch.zeros(count, 3, 64, 64, dtype=torch.uint8) for count in (2, 1)]
        >>> encode_images(model, batches, preprocess).shape
        torch.Size([3, 8, 16])
    """
    with evaluating(model) as device:
        points = [model.encode_image(preprocess.batch(batch.to(device))).cpu() for batch in squares]
    if not points:
        raise UserError("no picture could be read")
    return torch.cat(points)


def encode_texts(model: Encoder, tokenizer: Tokenizer, texts: Sequence[str], positions: int | None = None) -> Tensor:
    """Texts to points (N, *point_shape), in their order; equal texts are encoded once and get equal points.

    Args:
        positions: tokens in a batch, padding included; texts of like length share one, so that little of it is padding.

    Examples:
        >>> import torch
        >>> from oblique_clip import load
        >>> from oblique_clip.evaluate.encode import encode_texts
        >>> model, _, tokenizer = load("tiny-oblique")
        >>> points = encode_texts(model, tokenizer, ["dog", "a small house", "dog"])
        >>> points.shape, torch.equal(points[0], points[2])
        (torch.Size([3, 8, 16]), True)
    """
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    ids = tokenizer(list(number))
    with evaluating(model) as device:
        # Small batches stay in a CPU's caches, large ones fill a GPU.
        batches = _by_length(ids, positions or (2048 if device.type == "cpu" else 32768))
        points = torch.cat([model.encode_text(cut_to_longest(ids[rows]).to(device)).cpu() for rows in batches])
    place = torch.cat(batches).argsort()
    return points[place[[number[text] for text in texts]]]


def _by_length(ids: Tensor, positions: int) -> list[Tensor]:
    """Row numbers of ids (N, L) in batches, the longest texts first; at least one row to a batch, and one batch."""
    lengths = ((ids != PAD_ID) * torch.arange(1, ids.shape[1] + 1)).amax(1)
    order = lengths.argsort(descending=True, stable=True)
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        batches.append(order[start : start + max(1, positions // longest)])
        start += len(batches[-1])
    return batches or [order]
