"""What each class token looks at: the image tower's attention, as a map over the patches of a picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .blocks import attentions
from .errors import UserError
from .towers import ImageTower, OpenClipImageTower

if TYPE_CHECKING:
    from .model import DualEncoder


@torch.no_grad()
def token_attention(model: DualEncoder, images: Tensor, rollout: bool = False) -> Tensor:
    """The share of its attention that each class token gives to each patch, (B, tokens, h, w), mean over heads.

    What a token gives to itself and to other prefix tokens is left out: a map sums to 1 at most. There are m tokens, or
    one where the projection reads one token. The tower runs as in evaluation.

    Args:
        images: (B, 3, H, W), normalised.
        rollout: the attention of all blocks instead of the last one's, composed as (A + I) / 2 from block to block
            (Abnar & Zuidema 2020, arXiv 2005.00928).

    Raises:
        UserError: for images of another size, or an image tower whose blocks are not plain.

    Examples:
        >>> from PIL import Image
        >>> from oblique_clip import load
        >>> from oblique_clip.attention import token_attention
        >>> model, preprocess, _ = load("tiny-oblique")
        >>> images = preprocess(Image.new("RGB", (64, 64), "red"))[None]
        >>> maps = token_attention(model, images)
        >>> maps.shape  # eight class tokens, each over four by four patches
        torch.Size([1, 8, 4, 4])
        >>> bool((maps.sum((2, 3)) < 1).all())  # the rest goes to class tokens
        True
    """
    model.check_images(images)
    tower = _attending(model.visual)
    training = tower.training
    tower.eval()
    try:
        x = tower.embed(images)
        maps = attentions(tower.blocks, x, tower.key_mask(x))
        shares = rolled_out(maps) if rollout else _last(maps).mean(1)
    finally:
        tower.train(training)
    return shares[:, : tower.num_tokens, tower.prefix :].unflatten(-1, tower.grid)


def token_overlap(maps: Tensor) -> Tensor:
    """How much of the same patches two class tokens look at, (tokens, tokens): 1 for the same shares, 0 for none.

    The mean over pictures of the sum over patches of the smaller share, each map scaled to sum 1: one less the distance
    in total variation.

    Args:
        maps: (B, tokens, h, w), see `token_attention`.

    Examples:
        >>> import torch
        >>> from oblique_clip.attention import token_overlap
        >>> left, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> both = (left + right) / 2
        >>> token_overlap(torch.stack([left, right, both])[None]).tolist()
        [[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.5, 0.5, 1.0]]
    """
    shares = maps.flatten(2).double()
    shares = shares / shares.sum(-1, keepdim=True).clamp(min=1e-12)
    return torch.stack([torch.minimum(own[:, None], shares).sum(-1).mean(0) for own in shares.unbind(1)])


def rolled_out(maps: Iterable[Tensor]) -> Tensor:
    """The product of (A + I) / 2 over blocks, first block rightmost: (B, heads, L, L) each to (B, L, L).

    Half stands for the branch that passes each position on as it is. Rows of A sum to 1, those of the product too.

    Examples:
        >>> import torch
        >>> from oblique_clip.attention import rolled_out
        >>> even = torch.full((1, 2, 3, 3), 1 / 3)  # one picture, two heads, three positions
        >>> rolled_out([even, even])[0].double().round(decimals=3).tolist()
        [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]
    """
    product: Tensor | None = None
    for shares in maps:
        passed = torch.eye(shares.shape[-1], dtype=shares.dtype, device=shares.device)
        step = (shares.mean(1) + passed) / 2
        product = step if product is None else step @ product
    assert product is not None, "a tower has blocks"
    return product


def _last(maps: Iterable[Tensor]) -> Tensor:
    *_, last = maps
    return last


def _attending(tower: Any) -> ImageTower | OpenClipImageTower:
    if not isinstance(tower, ImageTower | OpenClipImageTower):
        raise UserError(
            f"token attention needs a ViT of ours or of open_clip: {type(tower).__name__} has no class tokens"
        )
    if not tower.is_plain:
        kind = type(tower.blocks[0]).__name__
        raise UserError(f"token attention needs blocks of attention and MLP and no more: this tower's {kind} is more")
    return tower
