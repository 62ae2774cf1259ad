"""From a trained sphere to an oblique manifold, as a start for fine-tuning: `to_oblique`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import geoopt
import torch
from timm.layers import PatchDropout
from torch import Tensor, nn

from ..blocks import first_places, run_blocks
from ..config import ModelConfig
from ..errors import UserError
from ..model import DualEncoder, ImageEncoder, TextEncoder
from ..temperature import LearnedTemperature, ScheduledTemperature, Temperature
from ..topology import Topology, parse_topology
from ..towers import ImageTower, OpenClipImageTower, OpenClipTextTower, TextTower, TokenProjection, one_share

Split = Callable[[Tensor], Tensor]
"""A projection (width, D) to one for each of m class tokens, (m, width, n)."""


def to_oblique(model: DualEncoder, n: int, m: int, seed: int = 0, spread: float = 0.01) -> DualEncoder:
    """A model on `sphere(n*m)` as one on `oblique(n,m)` with m class tokens; the given one stays as it is.

    Each class token becomes m, told apart by noise, with a copy of its position each; together they draw the attention
    of one (`Architecture.shared_attention`), so that without noise each of them has the old token's features. The
    projections are cut by columns into m heads of n. A text tower that is read at its end token has no class tokens:
    its one projection is cut alike. The scale falls so that logits keep their spread (by m for the inner distance).

    What changes is the score: each head is normalised by its own length. Were all heads of a vector equally long, the
    logits would be the old ones; with m = 1 and no noise they are.

    Args:
        spread: deviation of the noise, relative to the token's root mean square.

    Raises:
        UserError: where n*m is not the model's dimension, or for towers that have neither class tokens nor an end token
            that are read: convnets, and open_clip's other than plain transformers.

    Examples:
        >>> from oblique_clip import load
        >>> from oblique_clip.interop.surgery import to_oblique
        >>> sphere = load("tiny-sphere")
        >>> oblique = to_oblique(sphere.model, n=16, m=8)
        >>> oblique.topology.spec, oblique.encode_text(sphere.tokenizer(["dog"])).shape
        ('oblique(16,8)', torch.Size([1, 8, 16]))
        >>> round((sphere.model.temperature.scale / oblique.temperature.scale).item(), 3)
        8.0
    """
    old = model.topology
    if old.family != "sphere" or n * m != old.n:
        raise UserError(f"a model on sphere({n * m}) can go to oblique({n},{m}), one on {old.spec} cannot")
    new = parse_topology(f"oblique({n},{m})/{old.distance}")
    generator = torch.Generator().manual_seed(seed)

    def split(projection: Tensor) -> Tensor:
        return projection.detach().unflatten(-1, (m, n)).movedim(1, 0).contiguous()

    def multiply(token: Tensor) -> Tensor:
        noise = torch.randn(m, token.shape[-1], generator=generator).to(token)
        return token.detach() + spread * token.detach().square().mean().sqrt() * noise

    visual = _image_tower(copy.deepcopy(model.visual), split, multiply)
    text = _text_tower(copy.deepcopy(model.text), split, multiply)
    encoder = DualEncoder(visual, text, new, _temperature(model.temperature, old, new), output_dict=model.output_dict)
    encoder.logit_bias = copy.deepcopy(model.logit_bias)
    return encoder.train(model.training)


def oblique_config(config: ModelConfig, n: int, m: int) -> ModelConfig:
    """What `save_model` has to be given with `to_oblique` of a model of this configuration.

    Raises:
        UserError: for the form `clip` of our sizes, whose towers have no name in open_clip, and for an oblique model.

    Examples:
        >>> from oblique_clip import model_config
        >>> from oblique_clip.interop.surgery import oblique_config
        >>> config = oblique_config(model_config("tiny", "sphere"), n=16, m=8)
        >>> config.form, config.topology, config.arch.shared_attention
        ('oblique', 'oblique(16,8)/inner', True)
    """
    if config.form != "sphere" and not (config.form == "clip" and config.open_clip):
        raise UserError(
            f"the form 'sphere' and open_clip's named models become the form 'oblique'; this one is {config.form!r}"
        )
    distance = parse_topology(config.topology).distance
    config = replace(config, form="oblique", topology=f"oblique({n},{m})/{distance}", projection="per_token")
    return config if config.open_clip else replace(config, arch=replace(config.arch, shared_attention=True))


def _temperature(old: Temperature, before: Topology, after: Topology) -> Temperature:
    factor = after.max_scale / before.max_scale
    if isinstance(old, ScheduledTemperature):
        new: Temperature = copy.deepcopy(old)
        new.initial, new.final = old.initial * factor, old.final * factor
        new.log_scale.add_(math.log(factor))
        new.calibrated = None
        return new
    new = LearnedTemperature(1.0, old.maximum * factor)
    new.log_scale = _like(old.log_scale, old.log_scale.detach() + math.log(factor))
    return new


def _projection(split: Split, weight: nn.Parameter) -> TokenProjection:
    """A TokenProjection `per_token` with the heads of a projection (width, D) or (1, width, D)."""
    heads = split(weight.view(weight.shape[-2:]))
    m, width, n = heads.shape
    projection = TokenProjection("per_token", width, n, m)
    projection.weight = _like(weight, heads)
    return projection


def _image_tower(tower: Any, split: Split, multiply: Split) -> ImageEncoder:
    if isinstance(tower, OpenClipImageTower):
        return _ManyTokens(tower, split, multiply)
    if not isinstance(tower, ImageTower) or not tower.is_plain or tower.trunk.pos_embed is None:
        raise UserError(f"an image tower of type {type(tower).__name__} has no class token that could be multiplied")
    trunk, projection = tower.trunk, _projection(split, tower.projection.weight)
    m = projection.m
    registers = trunk.num_prefix_tokens - 1
    trunk.reg_token = _tokens(trunk.reg_token, multiply)
    trunk.pos_embed = _repeated(trunk.pos_embed, m)
    trunk.num_prefix_tokens = trunk.num_reg_tokens = m + registers
    if isinstance(trunk.patch_drop, PatchDropout):
        trunk.patch_drop.num_prefix_tokens = m + registers
    tower.projection, tower.num_tokens = projection, m
    tower.shared_attention = True
    return tower


def _text_tower(tower: Any, split: Split, multiply: Split) -> TextEncoder:
    if isinstance(tower, OpenClipTextTower):
        return _CutEndToken(tower, split)
    if not isinstance(tower, TextTower):
        raise UserError(f"a text tower of type {type(tower).__name__} has no token that could be multiplied or cut")
    projection = _projection(split, tower.projection.weight)
    m = projection.m
    tower.class_tokens = _tokens(tower.class_tokens, multiply)
    tower.positional_embedding = _repeated(tower.positional_embedding, m)
    tower.projection, tower.num_tokens = projection, m
    tower.shared_attention = True
    return tower


def _like(old: Tensor, value: Tensor) -> nn.Parameter:
    """A parameter in the place of an old one, frozen where that is."""
    return nn.Parameter(value, requires_grad=old.requires_grad)


def _tokens(tokens: nn.Parameter, multiply: Split) -> nn.Parameter:
    """Tokens (1 + registers, width) with the first m times; points stay points."""
    multiplied = torch.cat([multiply(tokens[:1]), tokens[1:].detach()])
    if not isinstance(tokens, geoopt.ManifoldParameter):
        return _like(tokens, multiplied)
    points = tokens.manifold.projx(multiplied)
    return geoopt.ManifoldParameter(points, manifold=tokens.manifold, requires_grad=tokens.requires_grad)


def _repeated(positions: nn.Parameter, m: int) -> nn.Parameter:
    """Positions (..., 1 + N, width) with the first m times."""
    first, rest = positions.detach()[..., :1, :], positions.detach()[..., 1:, :]
    return _like(positions, torch.cat([first] * m + [rest], -2))


class _ManyTokens(OpenClipImageTower):
    """open_clip's `VisionTransformer` read at m class tokens, each with a projection of its own."""

    def __init__(self, tower: OpenClipImageTower, split: Split, multiply: Split) -> None:
        trunk, projection = tower.trunk, _projection(split, tower.trunk.proj)
        super().__init__(trunk, tower.preprocess, getattr(tower.patch_drop, "prob", 0.0), len(projection.weight))
        self.projection = projection
        trunk.class_embedding = _like(trunk.class_embedding, multiply(trunk.class_embedding))
        trunk.positional_embedding = _repeated(trunk.positional_embedding, self.num_tokens)
        trunk.proj = None

    def embed(self, images: Tensor) -> Tensor:
        trunk = self.trunk
        patches = trunk.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([trunk.class_embedding.expand(len(patches), -1, -1), patches], 1) + trunk.positional_embedding
        return trunk.ln_pre(self.patch_drop(x))

    def key_mask(self, x: Tensor) -> Tensor:
        return one_share(x.new_ones(x.shape[:2], dtype=torch.bool), self.num_tokens, x.dtype)

    def forward(self, images: Tensor) -> Tensor:
        transformer = self.trunk.transformer
        x = self.embed(images)
        x = run_blocks(
            transformer.resblocks, x, first_places(self.num_tokens), key_mask=self.key_mask(x),
            checkpointing=transformer.grad_checkpointing,
        )  # fmt: skip
        return self.projection(self.trunk.ln_post(x))

    def groups(self) -> list[list[nn.Module | nn.Parameter]]:
        return [*super().groups()[:-1], [self.projection]]


class _CutEndToken(OpenClipTextTower):
    """open_clip's causal text transformer; the features of its end token are cut into m rows of n."""

    def __init__(self, tower: OpenClipTextTower, split: Split) -> None:
        super().__init__(tower.trunk)
        projection = self.trunk.text_projection
        heads = split(projection)
        self.n = heads.shape[-1]
        self.trunk.text_projection = _like(projection, heads.movedim(0, 1).flatten(1))

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).squeeze(1).unflatten(-1, (-1, self.n))
