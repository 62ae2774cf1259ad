"""A timm ViT's own weights for a tower of m class tokens: read in timm's own layout, then expanded.

Loaded straight into m prefix tokens, the weights of a model with one class token would land on shifted positions, and
those of a model without positions for its prefix would not fit at all. So timm's layout is read as it is, resized by
timm to other pictures or patches, and only then the front of the line is exchanged:

| of timm's layout      | in the tower                                                                                |
|-----------------------|---------------------------------------------------------------------------------------------|
| class token           | copied to m, set apart by `SPREAD`; one alone stays as it is                                |
| its position          | copied to m; zero where the model has none (deit3)                                          |
| no class token        | m tokens and positions drawn anew (SigLIP, pooled models)                                   |
| registers             | kept behind the m tokens, with their positions (DINOv2); nothing reads them                 |
| patch positions       | unchanged, row by row                                                                       |
| norm behind a pooling | the last norm, where there is no other                                                      |
| pooling, head         | left out                                                                                    |
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import Architecture
from .errors import UserError
from .weights_file import Weights, read_state_dict

FROM_TIMM = "timm"
SPREAD = 0.1
"""Length of the noise that sets a copy apart, relative to that of the class token with its position."""
# Parts of timm's models that stand behind the last norm, or serve its training alone.
UNREAD = ("head.", "head_dist.", "fc_norm.", "attn_pool.", "mask_token", "rope.")


class OwnLayout:
    """How timm itself builds a ViT: its prefix tokens and its normalisation of pixels; reads its weights.

    Args:
        arch: with `timm_name` and `pretrained`.

    Raises:
        UserError: where timm cannot build it, or the tower's heads or width are not those of timm's weights.
    """

    def __init__(self, arch: Architecture) -> None:
        self.arch = arch
        self._model = model = _one_block(arch)
        self.has_class_token = model.cls_token is not None
        self.registers = 0 if model.reg_token is None else model.reg_token.shape[1]
        self.image_mean, self.image_std = normalisation_of(model)
        self._heads = next((int(part.num_heads) for part in model.blocks.modules() if hasattr(part, "num_heads")), None)
        native = model.embed_dim == arch.vision_width
        if (arch.pretrained == FROM_TIMM and not native) or (native and self._heads not in (None, arch.vision_heads)):
            raise UserError(
                f"{arch.timm_name} is {model.embed_dim} wide with {self._heads} heads, the tower {arch.vision_width} "
                f"with {arch.vision_heads}: add --vision-width {model.embed_dim} --vision-heads {self._heads}"
            )

    @torch.no_grad()
    def load_into(self, trunk: nn.Module, m: int) -> None:
        """Fill a trunk of m + `registers` prefix tokens; what timm's layout lacks keeps the trunk's start.

        Raises:
            UserError: where the weights cannot be read, or are another model's.
        """
        arch = self.arch
        image, patch = arch.image_size, arch.patch_size
        weights = read_weights(arch, self._model, img_size=image, patch_size=patch)
        self._check_sizes(weights)
        self._check_front(weights)
        if "norm.weight" not in weights:
            norms = {name: weights[f"fc_{name}"] for name in ("norm.weight", "norm.bias") if f"fc_{name}" in weights}
            weights |= norms
        fill(trunk, self._expanded(weights, trunk, m), arch)

    def _expanded(self, weights: Weights, trunk: Any, m: int) -> Weights:
        """The weights with m class tokens in front; `trunk` gives the tokens and positions that are drawn anew."""
        weights = dict(weights)
        token, registers = weights.pop("cls_token", None), weights.pop("reg_token", None)
        positions = weights.pop("pos_embed", None)
        front = self._positions_in_front(positions)
        tokens = trunk.reg_token[:m]
        if token is not None:
            tokens = set_apart(token[0], token[0] + front[:1], m)
        weights["reg_token"] = tokens if registers is None else torch.cat([tokens, registers[0]])
        if positions is not None:
            ours = trunk.pos_embed[0, :m] if token is None else front[:1].expand(m, -1)
            theirs = front[self.has_class_token :]
            patches = positions[0, self._positioned :]
            weights["pos_embed"] = torch.cat([ours, theirs, patches])[None]
        return weights

    @property
    def _positioned(self) -> int:
        """Rows of timm's positions that are not the patches'."""
        return 0 if self._model.no_embed_class else int(self._model.num_prefix_tokens)

    def _positions_in_front(self, positions: Tensor | None) -> Tensor:
        """Positions of timm's own prefix tokens, (prefix, width); zero where it has none."""
        if positions is None or not self._positioned:
            return torch.zeros(self._model.num_prefix_tokens, self.arch.vision_width)
        return positions[0, : self._positioned]

    def _check_front(self, weights: Weights) -> None:
        for name in ("cls_token", "reg_token", "pos_embed"):
            own = getattr(self._model, name)
            if (name in weights) != (own is not None):
                raise _misfit(self.arch, "has" if own is None else "lacks", name)
            if own is not None and weights[name].shape != (*own.shape[:2], self.arch.vision_width):
                raise _misfit(self.arch, "has another shape of", name)

    def _check_sizes(self, weights: Weights) -> None:
        arch = self.arch
        if "patch_embed.proj.weight" not in weights:
            raise UserError(f"{arch.pretrained} has no patch_embed.proj.weight: it is no ViT in timm's own layout")
        width = weights["patch_embed.proj.weight"].shape[0]
        layers = 1 + max((int(name.split(".")[1]) for name in weights if name.startswith("blocks.")), default=-1)
        if (width, layers) != (arch.vision_width, arch.vision_layers):
            heads = f" --vision-heads {self._heads}" if width == self._model.embed_dim else ""
            raise UserError(
                f"the weights of --pretrained {arch.pretrained} are {width} wide with {layers} blocks, the tower "
                f"{arch.vision_width} with {arch.vision_layers}: add --vision-width {width} "
                f"--vision-layers {layers}{heads}"
            )


def set_apart(token: Tensor, placed: Tensor, count: int) -> Tensor:
    """Copies (count, width) of a token (1, width), each moved by its own noise of length `SPREAD` * |placed|.

    One copy alone is the token itself. The noise is drawn from torch's global generator.
    """
    if count == 1:
        return token
    noise = torch.randn(count, token.shape[-1]) / math.sqrt(token.shape[-1])
    return token + SPREAD * placed.norm() * noise


def normalisation_of(model: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation of the pixels that a timm model was trained on."""
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def read_weights(arch: Architecture, own: nn.Module, **settings: Any) -> Weights:
    """The weights that `arch.pretrained` names, in timm's own layout and in float32.

    Args:
        own: a model in that layout, to whose pictures and patches timm's filter resizes what comes from a file.
        settings: what `own` was built with, for the model that timm loads itself.

    Raises:
        UserError: where there are none, or they cannot be read.
    """
    if arch.pretrained == FROM_TIMM:
        weights = _from_timm(arch.timm_name, settings)
    else:
        weights = _adapted(_from_file(Path(str(arch.pretrained))), own, arch)
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def fill(trunk: Any, weights: Weights, arch: Architecture) -> None:
    """Load weights into a timm model, every parameter of it; poolings and heads that it lacks are left out.

    Raises:
        UserError: for a parameter that is missing, unknown or of another shape.
    """
    wanted = trunk.state_dict()
    head = trunk.pretrained_cfg["classifier"] or ()
    unread = (*UNREAD, *((head,) if isinstance(head, str) else head))
    theirs = {name: value for name, value in weights.items() if not name.startswith(unread) or name in wanted}
    missing = [name for name, _ in trunk.named_parameters() if name not in theirs]
    unknown = [name for name in theirs if name not in wanted]
    other = [name for name, value in theirs.items() if name in wanted and value.shape != wanted[name].shape]
    for names, what in ((missing, "lacks"), (unknown, "has a part unknown there"), (other, "has another shape of")):
        if names:
            raise _misfit(arch, what, names[0])
    trunk.load_state_dict(theirs, strict=False)


def _misfit(arch: Architecture, what: str, name: str) -> UserError:
    source = f"--pretrained {arch.pretrained} does not hold {arch.timm_name} in timm's own layout"
    return UserError(f"{source}: it {what} {name!r}")


def timm_model(name: str, **settings: Any) -> Any:
    """`timm.create_model` without a head.

    Raises:
        UserError: where timm refuses the settings, or the tag in the name.
    """
    import timm

    try:
        return timm.create_model(name, num_classes=0, **settings)
    except (TypeError, AssertionError, RuntimeError) as error:
        why = str(error) or type(error).__name__
        raise UserError(f"timm model {name!r} does not take the settings asked for: {why}") from error


def _one_block(arch: Architecture) -> Any:
    """timm's model in its own layout, at the tower's pictures and patches, cut to one block where that can be."""
    sizes = {"img_size": arch.image_size, "patch_size": arch.patch_size}
    try:
        return timm_model(arch.timm_name, depth=1, **sizes)
    except UserError:  # some have settings for each block
        return timm_model(arch.timm_name, **sizes)


def _from_timm(name: str, settings: dict[str, Any]) -> Weights:
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(f"timm has no pretrained weights for {name!r}; --pretrained takes a path to some as well")
    try:
        weights: Weights = timm.create_model(name, pretrained=True, num_classes=0, **settings).state_dict()
    except Exception as error:  # whatever the hub's client and its network library raise
        why = str(error).strip().splitlines() or [""]
        raise UserError(
            f"timm cannot fetch the weights of {name!r} ({type(error).__name__}: {why[0]}): without a network, give "
            "--pretrained the path of a downloaded file"
        ) from error
    return weights


def _from_file(path: Path) -> Weights:
    if not path.is_file():
        raise UserError(f"--pretrained: no such file: {path} ({FROM_TIMM!r} stands for the weights that timm names)")
    try:
        return read_state_dict(path)
    except UserError as error:
        raise UserError(f"--pretrained: {error}") from error


def _adapted(weights: Weights, own: nn.Module, arch: Architecture) -> Weights:
    """Resized by the filter that most families come with, which knows their older layouts as well."""
    adapt = getattr(sys.modules[type(own).__module__], "checkpoint_filter_fn", None)
    if adapt is None:
        return weights
    try:
        adapted: Weights = adapt(weights, own)
    except Exception as error:  # the filters take their own layout for granted, each in its way
        raise UserError(
            f"--pretrained {arch.pretrained} does not hold {arch.timm_name} in a layout that timm knows "
            f"({type(error).__name__}: {' '.join(str(error).split())}): name the model that it was trained as with "
            "--timm-name"
        ) from error
    return adapted
