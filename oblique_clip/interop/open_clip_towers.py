"""open_clip's towers behind the interface of ours: features (B, 1, D), captions of any length up to the context.

The plain transformers (any width, activation, layer scale) run by `run_blocks`, as the form `clip` does; whatever else
open_clip builds (timm towers, ResNets, other poolings and masks) runs as the module it is.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from open_clip.transformer import TextTransformer, Transformer, VisionTransformer
from torch import Tensor, nn

from ..blocks import is_plain
from ..data.images import Preprocess
from ..errors import UserError
from ..model import ImageEncoder, TextEncoder
from ..tokenizer import PAD_ID
from ..towers import OpenClipImageTower, OpenClipTextTower


def take_image_tower(visual: Any, preprocess: Preprocess) -> ImageEncoder:
    """A copy of a model's `visual`.

    Args:
        preprocess: what its pictures go through; the tower keeps it as `preprocess`.
    """
    plain = (
        type(visual) is VisionTransformer and _runs(visual) and visual.attn_pool is None
        and visual.pool_type == "tok" and visual.proj is not None and not visual.output_tokens
    )  # fmt: skip
    trunk = copy.deepcopy(visual)
    if not plain:
        return AnyImage(trunk, preprocess)
    return OpenClipImageTower(trunk, preprocess, getattr(trunk.patch_dropout, "prob", 0.0))


def take_text_tower(model: Any, context_length: int | None = None) -> TextEncoder:
    """A copy of the text tower of an `open_clip.CLIP` or `CustomTextCLIP`.

    Args:
        context_length: of a tower that does not say, as those of Hugging Face without positions.

    Raises:
        UserError: where nobody says.
    """
    text = copy.deepcopy(model.text) if isinstance(model, CustomTextCLIP) else _text_of_clip(model)
    plain = (
        type(text) is TextTransformer and _runs(text) and text.cls_emb is None and text.attn_mask is not None
        and text.pool_type == "argmax" and isinstance(text.text_projection, nn.Parameter) and not text.output_tokens
    )  # fmt: skip
    return OpenClipTextTower(text) if plain else AnyText(text, int(text.context_length) or context_length)


def _runs(tower: Any) -> bool:
    """Whether `run_blocks` runs its blocks: those of another kind, or of mixed precision, it does not."""
    one_precision = len({parameter.dtype for parameter in tower.parameters()}) == 1
    return one_precision and type(tower.transformer) is Transformer and all(map(is_plain, tower.transformer.resblocks))


def _text_of_clip(model: Any) -> TextTransformer:
    """The text half of an `open_clip.CLIP`, whose parts lie in the model itself, as the module that it was made of."""
    parts = copy.deepcopy({name: getattr(model, name) for name in ("transformer", "token_embedding", "ln_final")})
    width = model.positional_embedding.shape[1]
    with torch.device("meta"):
        text = TextTransformer(
            context_length=model.context_length, vocab_size=model.vocab_size, width=width, heads=1, layers=1,
            no_causal_mask=model.attn_mask is None, pool_type=model.text_pool_type, proj_type="none",
        )  # fmt: skip
    text.eos_id = model.text_eos_id
    for name, part in parts.items():
        setattr(text, name, part)
    for name in ("positional_embedding", "text_projection", "attn_mask"):
        setattr(text, name, copy.deepcopy(getattr(model, name)))
    return text


def width_of_text(tower: Any) -> int:
    """Numbers in the embedding of a text tower taken over."""
    text = tower.trunk
    projection = getattr(text, "text_projection", None)
    if isinstance(projection, nn.Linear):
        return projection.out_features
    if projection is not None:
        return int(projection.shape[1])
    return int(text.width if isinstance(text, TextTransformer) else text.output_dim)


class AnyImage(nn.Module):
    """Any image module of open_clip: images (B, 3, H, W), normalised, to features (B, 1, D)."""

    def __init__(self, visual: Any, preprocess: Preprocess) -> None:
        super().__init__()
        self.image_size = (int(preprocess.image_size), int(preprocess.image_size))
        self.image_mean, self.image_std = preprocess.mean, preprocess.std
        self.preprocess = preprocess
        self.num_tokens = 1
        self.trunk = visual

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk(images)[:, None]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.trunk.set_grad_checkpointing(enable)

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        _lock(self.trunk, unlocked_groups, freeze_bn_stats)


class AnyText(nn.Module):
    """Any text module of open_clip: ids (B, L) to features (B, 1, D).

    Its own transformers add positions and masks of the whole context, so what a batch was cut by is put back; those of
    Hugging Face take any length, and mask their padding.
    """

    def __init__(self, text: Any, context_length: int | None) -> None:
        super().__init__()
        if context_length is None:
            raise UserError(f"this {type(text).__name__} does not say how long its texts are: give its context_length")
        self.context_length, self.vocab_size = context_length, int(text.vocab_size)
        self.num_tokens = 1
        self.trunk = text

    def forward(self, ids: Tensor) -> Tensor:
        if isinstance(self.trunk, TextTransformer):
            # Only columns of zeros are ever cut, whatever the tower's own padding is.
            ids = F.pad(ids, (0, self.context_length - ids.shape[1]), value=PAD_ID)
        return self.trunk(ids)[:, None]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.trunk.set_grad_checkpointing(enable)

    def lock(self, unlocked_groups: int = 0) -> None:
        _lock(self.trunk, unlocked_groups)


def _lock(trunk: Any, unlocked_groups: int, *options: bool) -> None:
    try:
        trunk.lock(unlocked_groups, *options)
    except (AssertionError, ImportError, RuntimeError) as error:
        kind = type(trunk).__name__
        raise UserError(f"open_clip cannot lock its {kind} but for {unlocked_groups} groups: {error}") from error
