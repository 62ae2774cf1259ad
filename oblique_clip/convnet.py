"""The image tower for what has no tokens: a convnet of timm, its feature map read by m queries."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from .config import Architecture
from .errors import UserError
from .pretrained import fill, normalisation_of, read_weights, timm_model
from .towers import CLIP_MEAN, CLIP_STD, Part, Projection, TokenProjection, Tower, make_class_tokens

HEAD_WIDTH = 64
"""Channels of an attention head, at least."""


class ConvTower(Tower):
    """A timm convnet behind attention pooling: images (B, 3, H, W), normalised, to features (B, m, n).

    Its class tokens are m latent queries that look at the last feature map: timm's `AttentionPoolLatent`, SigLIP's head
    with m queries for one. The convnet keeps its own sizes. Batch norms see one micro-batch at a time.

    Args:
        arch: `timm_name` names the convnet; of the sizes only `image_size` counts.
        n: features a query.
        m: queries, and spheres; with `projection="reshaped"` there is one query whatever m is.
        weights: False builds what `arch.pretrained` asks for and reads no weights.

    Raises:
        UserError: for a model that gives no feature map of two places or more, or weights that do not fit.

    Examples:
        >>> import torch
        >>> from oblique_clip.config import Architecture
        >>> from oblique_clip.convnet import ConvTower
        >>> tower = ConvTower(Architecture(timm_name="test_resnet", image_size=64), n=16, m=8)
        >>> tower(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 8, 16])
    """

    def __init__(
        self,
        arch: Architecture,
        n: int,
        m: int,
        projection: Projection = "per_token",
        class_tokens: Literal["free", "oblique"] = "free",
        weights: bool = True,
    ) -> None:
        super().__init__()
        if arch.patch_dropout:
            raise UserError(f"timm model {arch.timm_name!r} has no patches to drop: leave --patch-dropout at 0")
        self.image_size = (arch.image_size, arch.image_size)
        self.num_tokens = 1 if projection == "reshaped" else m
        self.trunk = timm_model(arch.timm_name, global_pool="")
        width, self.places = _map_size(self.trunk, arch)
        self.image_mean, self.image_std = CLIP_MEAN, CLIP_STD
        if arch.pretrained is not None:
            self.image_mean, self.image_std = normalisation_of(self.trunk)
            if weights:
                fill(self.trunk, read_weights(arch, self.trunk, global_pool=""), arch)
        self.norm = nn.LayerNorm(width)
        self.pool = _pool(width, self.places, self.num_tokens, class_tokens)
        self.projection = TokenProjection(projection, width, n, m)

    def forward(self, images: Tensor) -> Tensor:
        places = self.trunk(images).flatten(2).transpose(1, 2)
        return self.projection(self.pool(self.norm(places)))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.trunk.set_grad_checkpointing(enable)

    def groups(self) -> list[list[Part]]:
        return [[self.trunk], [self.norm, self.pool], [self.projection]]


def _pool(width: int, places: int, m: int, class_tokens: Literal["free", "oblique"]) -> Any:
    """m queries over a map of so many places: (B, places, width) to (B, m, width)."""
    from timm.layers import AttentionPoolLatent

    heads = max(count for count in range(1, max(1, width // HEAD_WIDTH) + 1) if width % count == 0)
    # At a convnet's width the MLP of timm's default ratio, 4, would outweigh the net.
    pool = AttentionPoolLatent(
        width, num_heads=heads, feat_size=places, mlp_ratio=1.0, latent_len=m, pos_embed="abs", pool_type="",
        norm_layer=nn.LayerNorm,
    )  # fmt: skip
    pool.latent = make_class_tokens(m, width, class_tokens)
    # Queries and keys of about unit entries, so that the queries, of length 1, look at different places from the start.
    nn.init.normal_(pool.q.weight)
    nn.init.normal_(pool.kv.weight, std=width**-0.5)
    return pool


def _map_size(trunk: Any, arch: Architecture) -> tuple[int, int]:
    """Channels and places of the last feature map, found by one blank picture."""
    training = trunk.training
    try:
        with torch.no_grad():
            found = trunk.eval()(torch.zeros(1, 3, arch.image_size, arch.image_size))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise _unfit(arch, f"at {arch.image_size} pixels: {error}") from error
    trunk.train(training)
    if not isinstance(found, Tensor) or found.ndim != 4 or getattr(trunk, "output_fmt", "NCHW") != "NCHW":
        raise _unfit(arch, "its output is no feature map (B, C, h, w)")
    width, places = found.shape[1], found.shape[2] * found.shape[3]
    if places < 2:
        raise UserError(
            f"timm model {arch.timm_name!r} leaves {places} place of a picture of {arch.image_size} pixels, so its "
            "queries have nothing to choose from: raise --image-size"
        )
    return width, places


def _unfit(arch: Architecture, why: str) -> UserError:
    return UserError(
        f"timm model {arch.timm_name!r} has neither class tokens to read (timm's VisionTransformer and Eva have) nor a "
        f"feature map to pool: {why}"
    )
