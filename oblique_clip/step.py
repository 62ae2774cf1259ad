"""One forward and backward pass over a batch: in one piece, or by micro-batches with the gradients of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .loss import LOSSES
from .model import DualEncoder
from .tokenizer import cut_to_longest

Blend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From the contrastive loss and both sets of points, with their graph, to the loss that is minimised."""


def train_step(
    model: DualEncoder,
    images: Tensor,
    ids: Tensor,
    groups: Tensor | None,
    loss_name: str,
    precision: str,
    micro_batch: int | None = None,
    blend: Blend | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add the gradients of the loss of B pairs to those of the parameters.

    Args:
        images: (B, 3, H, W), normalised.
        ids: (B, L), on any device; on the CPU, each micro-batch is cut to its own longest caption.
        groups: (B,), see `info_nce`.
        loss_name: a name in `LOSSES`.
        precision: "float32", or "bf16" for towers under autocast.
        micro_batch: pairs that the towers take at a time, >= 1; None, B or more takes them in one piece.
        blend: what else is minimised, such as `distill.SoftTargets`; None for the contrastive loss alone.

    Returns:
        The loss that was minimised and both sets of points (B, *point_shape), detached.
    """

    def encode(tower: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return tower(inputs.to(images.device))

    def backward_from(image_points: Tensor, text_points: Tensor) -> Tensor:
        scale, bias = model.temperature.scale, model.logit_bias
        loss = LOSSES[loss_name](image_points, text_points, model.topology, scale, bias=bias, groups=groups)
        if blend is not None:
            loss = blend(loss, image_points, text_points)
        loss.backward()
        return loss.detach()

    if micro_batch is None or micro_batch >= len(images):
        image_points, text_points = encode(model.encode_image, images), encode(model.encode_text, ids)
        loss = backward_from(image_points, text_points)
    else:
        captions = ids.split(micro_batch)
        if ids.device.type == "cpu":
            captions = tuple(map(cut_to_longest, captions))
        image = _Twice(partial(encode, model.encode_image), images.split(micro_batch), images.device)
        text = _Twice(partial(encode, model.encode_text), captions, images.device)
        image_points, text_points = image.points, text.points
        loss = backward_from(image_points, text_points)
        image.backward()
        text.backward()
    return loss, image_points.detach(), text_points.detach()


class _Twice:
    """A tower run micro-batch by micro-batch, without graph, and once more for the gradient of its parameters.

    GradCache (Gao et al. 2021, arXiv 2101.06983): the loss gives the gradient on all points, and the second run takes
    it on to the parameters, with the graph of one micro-batch in memory. Random layers draw the same both times.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], parts: Sequence[Tensor], device: torch.device) -> None:
        self._encode, self._parts, self._device = encode, parts, device
        self._states, points = [], []
        with torch.no_grad():
            for part in parts:
                self._states.append(_random_state(device))
                points.append(encode(part))
        self.points = torch.cat(points).requires_grad_()

    def backward(self) -> None:
        """From the gradient on `points` to that of the parameters; a frozen tower has none."""
        assert self.points.grad is not None
        slopes = self.points.grad.split([len(part) for part in self._parts])
        for part, state, slope in zip(self._parts, self._states, slopes, strict=True):
            # The last replay leaves the generators where the first run left them.
            _set_random_state(self._device, state)
            again = self._encode(part)
            if again.requires_grad:
                again.backward(slope)


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    """Of the generators that a model on this device may draw from, the CPU's first."""
    if device.type == "cuda":
        return torch.get_rng_state(), torch.cuda.get_rng_state(device)
    return (torch.get_rng_state(), torch.mps.get_rng_state()) if device.type == "mps" else (torch.get_rng_state(),)


def _set_random_state(device: torch.device, state: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state[1])
