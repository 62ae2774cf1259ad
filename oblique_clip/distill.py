"""Distillation: a student learns, beside the pairs, which captions and pictures a trained teacher takes for alike.

With logits l = scale * similarity of a batch of B pairs, the student's s and the teacher's t, each on a topology of its
own, and a temperature T (Hinton et al. 2015, arXiv 1503.02531; both directions as InfoNCE has them):

    divergence = T^2 / (2B) sum_i [KL(p(t_i.) || p(s_i.)) + KL(p(t_.i) || p(s_.i))],  p(l) = softmax(l / T)
    loss = (1 - a) * contrastive + a * divergence

T^2 keeps the gradient's size when T changes. Both B x B matrices of logits are held whole, unlike `loss.py`'s tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import Loaded, data_of, load
from .config import DataConfig, LossConfig
from .data.images import TrainingPixels
from .errors import UserError
from .model import DualEncoder
from .tokenizer import TinyTokenizer, Tokenizer


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean divergence of rows and columns in nats, times T^2; logits (B, B), T > 0. Zero where the softmaxes agree."""
    total = student.new_zeros(())
    for axis in (0, 1):
        expected, found = ((logits / temperature).log_softmax(axis) for logits in (teacher, student))
        total = total + F.kl_div(found, expected, reduction="sum", log_target=True)
    return total * (temperature**2 / (2 * len(student)))


@dataclass(frozen=True)
class SoftTargets:
    """What a teacher says of one batch; as a `blend` of `train_step`, the loss that is minimised."""

    student: DualEncoder
    logits: Tensor
    """The teacher's, (B, B)."""
    temperature: float
    weight: float
    """a, in [0, 1]."""

    def __call__(self, contrastive: Tensor, image_points: Tensor, text_points: Tensor) -> Tensor:
        """(1 - a) * contrastive + a * divergence, with the graph of the student's points (B, *point_shape)."""
        return (1 - self.weight) * contrastive + self.weight * self.divergence(image_points, text_points)

    def divergence(self, image_points: Tensor, text_points: Tensor) -> Tensor:
        """Of the student's points of this batch. A bias cancels in every softmax."""
        student = self.student
        logits = student.temperature.scale * student.topology.similarity(image_points, text_points)
        return divergence(logits, self.logits, self.temperature)


@dataclass(frozen=True)
class Teacher:
    """A trained model that gives targets and stays as it is: frozen, in evaluation mode."""

    loaded: Loaded
    temperature: float
    weight: float

    @torch.no_grad()
    def targets(
        self,
        student: DualEncoder,
        images: Tensor | TrainingPixels,
        ids: Tensor,
        precision: str,
        micro_batch: int | None = None,
    ) -> SoftTargets:
        """What the teacher says of B pairs.

        Args:
            images: (B, 3, H, W) at the teacher's size, normalised as it wants, or what becomes that by slices.
            ids: (B, L), the student's.
            precision: "float32", or "bf16" for towers under autocast.
            micro_batch: pairs that the teacher takes at a time.
        """
        model, size = self.loaded.model, micro_batch or len(images)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            starts = range(0, len(images), size)
            image_points = torch.cat([model.encode_image(images[start : start + size]) for start in starts])
            text_points = torch.cat([model.encode_text(part.to(images.device)) for part in ids.split(size)])
        logits = model.temperature.scale * model.topology.similarity(image_points, text_points)
        return SoftTargets(student, logits, self.temperature, self.weight)


def open_teacher(
    loss: LossConfig, data: DataConfig, tokenizer: Tokenizer, device: torch.device | str = "cpu"
) -> Teacher | None:
    """The teacher that `--distill-from` names; None where it names none.

    Args:
        data, tokenizer: the student's. Batches carry token ids, so both models must read the same ones.

    Raises:
        UserError: as `load`; for a teacher that reads other tokens, or that has seen what the student is judged by.
    """
    if loss.distill_from is None:
        return None
    teacher = load(loss.distill_from, device)
    theirs, ours = _reading(teacher.tokenizer), _reading(tokenizer)
    if theirs != ours:
        raise UserError(
            f"--distill-from {loss.distill_from}: this teacher reads --tokenizer {theirs[0]} --context-length "
            f"{theirs[1]}, the student {ours[0]} and {ours[1]}; they must be the same"
        )
    if data.data == "emoji":
        _refuse_seen(loss.distill_from, data)
    teacher.model.requires_grad_(False)
    return Teacher(teacher, loss.distill_temperature, loss.distill_weight)


def _reading(tokenizer: Tokenizer) -> tuple[str, int]:
    """Tokenizer and context length as the flags name them."""
    return "tiny" if isinstance(tokenizer, TinyTokenizer) else "clip", tokenizer.context_length


def _refuse_seen(source: str, data: DataConfig) -> None:
    """What a teacher was trained on reaches the student through it, and is held out no more."""
    taught = data_of(source)
    if taught.data != "emoji":
        return
    kept = {*taught.test_families, *taught.val_families, *taught.held_out_concepts}
    held = (*data.test_families, *data.val_families, *data.held_out_concepts)
    seen = [name for name in held if name not in kept]
    if seen:
        raise UserError(
            f"--distill-from {source}: this teacher was trained on {', '.join(seen)}, which the student is judged by; "
            f"hold out what both have not seen (of the teacher: {', '.join(sorted(kept)) or 'nothing'})"
        )
