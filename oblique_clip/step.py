"""One forward and backward pass over a batch: in one piece, or by micro-batches with the gradients of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from .data.images import TrainingPixels
from .device import send
from .loss import LOSSES
from .model import DualEncoder
from .peers import ALONE, Peers
from .tokenizer import cut_to_longest
from .topology import Topology

Blend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From the contrastive loss and both sets of points, with their graph, to the loss that is minimised."""


class Towers:
    """The towers of a model as a step runs them: here, by one process. `distributed.parallel` has those of many.

    Examples:
        >>> import torch
        >>> from oblique_clip import create_model, model_config
        >>> from oblique_clip.step import Towers
        >>> towers = Towers(create_model(model_config("tiny", "oblique")))
        >>> towers.encode_image(torch.zeros(2, 3, 32, 32)).shape, towers.peers.world
        (torch.Size([2, 8, 16]), 1)
    """

    peers: Peers = ALONE

    def __init__(self, model: DualEncoder) -> None:
        self.model = model

    def encode_image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images)

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.model.encode_text(ids)

    def held_back(self) -> AbstractContextManager[None]:
        """Within it, a tower's gradients stay on their rank: its next backward pass outside sends them along."""
        return nullcontext()

    def finish(self) -> None:
        """Called when all backward passes of a step are done."""


def train_step(
    model: DualEncoder,
    images: Tensor | TrainingPixels,
    ids: Tensor,
    groups: Tensor | None,
    loss_name: str,
    precision: str,
    micro_batch: int | None = None,
    blend: Blend | None = None,
    towers: Towers | None = None,
    nested: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Add the gradients of the loss of B pairs to those of the parameters.

    Args:
        images: (B, 3, H, W), normalised, on the model's device; or what becomes that micro-batch by micro-batch.
        ids: (B, L), on any device; on the CPU, each micro-batch is cut to its own longest caption.
        groups: (B,), see `info_nce`.
        loss_name: a name in `LOSSES`.
        precision: "float32", or "bf16" for towers under autocast.
        micro_batch: pairs that the towers take at a time, >= 1; None, B or more takes them in one piece.
        blend: what else is minimised, such as `distill.SoftTargets`; None for the contrastive loss alone.
        towers: those of `model` as `distributed.parallel` gives them, where B are this rank's pairs of a larger batch;
            None for the model's own.
        nested: sizes of prefixes that are trained as embeddings of their own; see `nested_loss`.

    Returns:
        The loss that was minimised and both sets of points (B, *point_shape), detached.

    Examples:
        >>> import torch
        >>> from oblique_clip import create_model, model_config
        >>> from oblique_clip.step import train_step
        >>> model = create_model(model_config("tiny", "oblique"))
        >>> images, ids = torch.randn(8, 3, 32, 32), torch.randint(1, 4095, (8, 5))
        >>> whole, image_points, text_points = train_step(model, images, ids, None, "info_nce", "float32")
        >>> image_points.shape
        torch.Size([8, 8, 16])
        >>> gradient = model.visual.projection.weight.grad.clone()
        >>> model.zero_grad()
        >>> parts, _, _ = train_step(model, images, ids, None, "info_nce", "float32", micro_batch=2)
        >>> torch.allclose(whole, parts), torch.allclose(gradient, model.visual.projection.weight.grad, atol=1e-5)
        (True, True)
    """

    device = images.device
    towers = Towers(model) if towers is None else towers

    def encode_image(part: slice) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return towers.encode_image(images[part])

    def encode_text(captions: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return towers.encode_text(send(captions, device))

    def backward_from(image_points: Tensor, text_points: Tensor) -> Tensor:
        loss_of = partial(LOSSES[loss_name], bias=model.logit_bias, groups=groups, peers=towers.peers)
        loss = nested_loss(loss_of, image_points, text_points, model.topology, model.temperature.scale, nested)
        if blend is not None:
            loss = blend(loss, image_points, text_points)
        loss.backward()
        return loss.detach()

    # Ranks with fewer pairs run the towers as often as the others, as each run may be a meeting of all.
    most = max(towers.peers.sizes(len(images)))
    if micro_batch is None or micro_batch >= most:
        image_points, text_points = encode_image(slice(most)), encode_text(ids)
        loss = backward_from(image_points, text_points)
    else:
        parts = [slice(start, start + micro_batch) for start in range(0, most, micro_batch)]
        captions = [cut_to_longest(ids[part]) if ids.device.type == "cpu" else ids[part] for part in parts]
        runs = [partial(encode_image, part) for part in parts], [partial(encode_text, part) for part in captions]
        image = _Twice((model.visual, model.topology), runs[0], device, towers.held_back)
        text = _Twice((model.text, model.topology), runs[1], device, towers.held_back)
        image_points, text_points = image.points, text.points
        loss = backward_from(image_points, text_points)
        image.backward()
        text.backward()
    towers.finish()
    return loss, image_points.detach(), text_points.detach()


def nested_loss(
    loss_of: Callable[..., Tensor],
    image_points: Tensor,
    text_points: Tensor,
    topology: Topology,
    scale: Tensor,
    sizes: Sequence[int],
) -> Tensor:
    """Mean of a loss over prefixes of the embedding (Matryoshka: Kusupati et al. 2022, arXiv 2205.13147, equation 1).

    On m spheres a prefix is the first k of them. Each is scored with the scale times the ratio of the widths of the
    ranges, so that the widest spread of logits is the same for all.

    Args:
        loss_of: takes both sets of points, their topology and the scale.
        sizes: in numbers; without any, the loss of the whole embedding.

    Raises:
        UserError: for a size that the topology cannot be cut to.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.loss import info_nce
        >>> from oblique_clip.step import nested_loss
        >>> topology = parse_topology("oblique(2,4)")
        >>> points = topology.project(torch.randn(3, 4, 2)), topology.project(torch.randn(3, 4, 2))
        >>> whole = nested_loss(info_nce, *points, topology, torch.tensor(1.0), sizes=())
        >>> first = nested_loss(info_nce, *points, topology, torch.tensor(1.0), sizes=(2,))
        >>> both = nested_loss(info_nce, *points, topology, torch.tensor(1.0), sizes=(2, 8))
        >>> torch.allclose(both, (whole + first) / 2)
        True
    """
    if not sizes:
        return loss_of(image_points, text_points, topology, scale)
    losses = []
    for size in sizes:
        smaller = topology.prefix(size)
        points = topology.cut(image_points, size), topology.cut(text_points, size)
        # The clamp of a topology is inversely proportional to the width of its range.
        losses.append(loss_of(*points, smaller, scale * smaller.max_scale / topology.max_scale))
    return torch.stack(losses).mean()


class _Twice:
    """A tower run micro-batch by micro-batch, without graph, and once more for the gradient of its parameters.

    GradCache (Gao et al. 2021, arXiv 2101.06983): the loss gives the gradient on all points, and the second run takes
    it on to the parameters, with the graph of one micro-batch in memory. Random layers draw the same both times.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        runs: Sequence[Callable[[], Tensor]],
        device: torch.device,
        held_back: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`runs` encode a micro-batch each with `modules`; `held_back` is that of `Towers`."""
        self._modules, self._runs, self._device, self._held_back = modules, runs, device, held_back
        self._states, self._sizes, points = [], [], []
        with torch.no_grad():
            for run in runs:
                self._states.append(_random_state(device))
                points.append(run())
                self._sizes.append(len(points[-1]))
        self.points = torch.cat(points).requires_grad_()

    def backward(self) -> None:
        """From the gradient on `points` to that of the parameters."""
        if not any(parameter.requires_grad for module in self._modules for parameter in module.parameters()):
            return
        assert self.points.grad is not None
        slopes = self.points.grad.split(self._sizes)
        for place, (run, state, slope) in enumerate(zip(self._runs, self._states, slopes, strict=True), 1):
            # The last replay leaves the generators where the first run left them.
            _set_random_state(self._device, state)
            with self._held_back() if place < len(self._runs) else nullcontext():
                run().backward(slope)


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
