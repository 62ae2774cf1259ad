"""Everything is encoded once, without gradient and in evaluation mode; points come back on the CPU in float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    """Evaluation mode without gradient, put back afterwards; gives the model's device."""
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
    """
    with evaluating(model) as device:
        points = [model.encode_image(preprocess.batch(batch.to(device))).cpu() for batch in squares]
    if not points:
        raise UserError("no picture could be read")
    return torch.cat(points).clone()


def encode_texts(model: Encoder, tokenizer: Tokenizer, texts: list[str], batch_size: int = 512) -> Tensor:
    """Texts to points (N, *point_shape), in their order; encoded by length, so that short ones do not wait for long."""
    ids = tokenizer(texts)
    order = (ids != PAD_ID).sum(1).argsort(stable=True)
    with evaluating(model) as device:
        points = torch.cat(
            [model.encode_text(cut_to_longest(ids[rows]).to(device)).cpu() for rows in order.split(batch_size)]
        )
        restored = torch.empty_like(points)
        restored[order] = points
    return restored.clone()
