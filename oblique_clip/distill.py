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

from .checkpoint import Loaded, data_of, home_of, load
from .config import DataConfig, LossConfig
from .data.images import TrainingPixels
from .errors import UserError
from .model import DualEncoder
from .tokenizer import TinyTokenizer, Tokenizer


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean divergence of rows and columns in nats, times T^2; logits (B, B), T > 0. Zero where the softmaxes agree.

    Examples:
        >>> import torch
        >>> from oblique_clip.distill import divergence
        >>> teacher, uniform = torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.zeros(2, 2)
        >>> round(divergence(uniform, teacher, temperature=2.0).item(), 3)
        1.311
        >>> divergence(teacher, teacher, temperature=2.0).item()
        0.0
    """
    total = student.new_zeros(())
    for axis in (0, 1):
        expected, found = ((logits / temperature).log_softmax(axis) for logits in (teacher, student))
        total = total + F.kl_div(found, expected, reduction="sum", log_target=True)
    return total * (temperature**2 / (2 * len(student)))


@dataclass(frozen=True)
class SoftTargets:
    """What a teacher says of one batch; as a `blend` of `train_step`, the loss that is minimised.

    Examples:
        >>> import torch
        >>> from oblique_clip import create_model, model_config
        >>> from oblique_clip.distill import SoftTargets
        >>> from oblique_clip.loss import info_nce
        >>> student = create_model(model_config("tiny", "oblique"))
        >>> soft = SoftTargets(student, logits=4 * torch.eye(2), temperature=2.0, weight=0.25)
        >>> points = student.topology.project(torch.randn(2, 8, 16))
        >>> contrastive = info_nce(points, points, student.topology, student.temperature.scale)
        >>> blended = soft(contrastive, points, points)
        >>> torch.allclose(blended, 0.75 * contrastive + 0.25 * soft.divergence(points, points))
        True
    """

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
    """A trained model that gives targets and stays as it is: frozen, in evaluation mode.

    Examples:
        >>> import torch
        >>> from oblique_clip import create_model, load, model_config
        >>> from oblique_clip.distill import Teacher
        >>> from oblique_clip.step import train_step
        >>> teacher = Teacher(load("tiny-sphere"), temperature=2.0, weight=0.5)
        >>> student = create_model(model_config("tiny", "oblique"))
        >>> images, ids = torch.randn(3, 3, 32, 32), teacher.loaded.tokenizer(["dog", "house", "tree"])
        >>> soft = teacher.targets(student, images, ids, "float32")
        >>> soft.logits.shape
        torch.Size([3, 3])
        >>> loss, _, _ = train_step(student, images, ids, None, "info_nce", "float32", blend=soft)
    """

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
        loss: the settings that name it.
        data: the student's.
        tokenizer: the student's. Batches carry token ids, so both models must read the same ones.
        device: where the teacher computes.

    Raises:
        UserError: as `load`; for a teacher that reads other tokens, or that has seen what the student is judged by.

    Examples:
        >>> from oblique_clip.config import DataConfig, LossConfig
        >>> from oblique_clip.distill import open_teacher
        >>> from oblique_clip.tokenizer import get_tokenizer
        >>> teacher = open_teacher(LossConfig(distill_from="tiny-sphere"), DataConfig(), get_tokenizer("tiny", 32))
        >>> teacher.loaded.model.topology.spec, teacher.temperature, teacher.weight
        ('sphere(128)', 2.0, 0.5)
        >>> open_teacher(LossConfig(distill_from="tiny-sphere"), DataConfig(), get_tokenizer("clip", 77))
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: --distill-from tiny-sphere: this teacher reads --tokenizer tiny
        --context-length 32, the student clip and 77; they must be the same
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
    refuse_seen("--distill-from", loss.distill_from, data)
    teacher.model.requires_grad_(False)
    return Teacher(teacher, loss.distill_temperature, loss.distill_weight)


def _reading(tokenizer: Tokenizer) -> tuple[str, int]:
    """Tokenizer and context length as the flags name them; another library's tokenizer by its type."""
    if isinstance(tokenizer, TinyTokenizer):
        name = "tiny"
    else:
        # By what it does: open_clip's byte pairs begin with 49406 and end with 49407, whoever holds them.
        try:
            clip = tokenizer(["a"])[0, :3].tolist() == [49406, 320, 49407]
        except UserError:
            clip = False
        name = "clip" if clip else type(tokenizer).__name__
    return name, int(getattr(tokenizer, "context_length", 0))


def refuse_seen(flag: str, source: str, data: DataConfig) -> None:
    """What a model was trained on reaches another through it, and is held out no more.

    Raises:
        UserError: where `source` has seen what a run on the shipped set is judged by.
    """
    if data.data != "emoji" or home_of(source) or (taught := data_of(source)).data != "emoji":
        return
    kept = {*taught.test_families, *taught.val_families, *taught.held_out_concepts}
    held = (*data.test_families, *data.val_families, *data.held_out_concepts)
    seen = [name for name in held if name not in kept]
    if seen:
        raise UserError(
            f"{flag} {source}: this model was trained on {', '.join(seen)}, which the run is judged by; hold out what "
            f"both have not seen (of this model: {', '.join(sorted(kept)) or 'nothing'})"
        )
