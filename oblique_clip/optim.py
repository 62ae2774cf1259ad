"""One optimiser to the loop: fused AdamW for Euclidean parameters, RiemannianAdam for points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import geoopt
import torch
from torch import nn

from .config import OptimConfig

# Decay pulls matrices towards zero; these are read additively, or set a scale, and are left alone in every form alike.
NO_DECAY = ("reg_token", "cls_token", "class_tokens", "class_embedding", "latent", "pos_embed", "positional_embedding")


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, but neither to class tokens nor to positions.

    Examples:
        >>> from oblique_clip import create_model, model_config
        >>> from oblique_clip.optim import is_decayed
        >>> model = create_model(model_config("tiny", "oblique"))
        >>> [name for name, value in model.named_parameters() if value.ndim >= 2 and not is_decayed(name, value)]
        ['visual.trunk.reg_token', 'visual.trunk.pos_embed', 'text.class_tokens', 'text.positional_embedding']
    """
    return parameter.ndim >= 2 and name.rsplit(".", 1)[-1] not in NO_DECAY


def decay_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Named parameters as AdamW's two groups: those that `is_decayed` tells, and the rest.

    Examples:
        >>> from oblique_clip import create_model, model_config
        >>> from oblique_clip.optim import decay_groups
        >>> model = create_model(model_config("tiny", "clip"))
        >>> [(len(group["params"]), group["weight_decay"]) for group in decay_groups(model.named_parameters(), 0.1)]
        [(40, 0.1), (77, 0.0)]
    """
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for name, parameter in named:
        groups[0 if is_decayed(name, parameter) else 1]["params"].append(parameter)
    return groups


class Optimizer:
    """AdamW and RiemannianAdam behind one `step`, with one schedule for both.

    Points never reach AdamW: it would walk off the manifold. RiemannianAdam's own decay does nothing on spheres.

    Args:
        total_steps: length of the schedule: a linear warm-up, then a cosine to zero.

    Examples:
        >>> import torch
        >>> from oblique_clip import create_model, model_config
        >>> from oblique_clip.config import OptimConfig
        >>> from oblique_clip.optim import Optimizer
        >>> from oblique_clip.step import train_step
        >>> model = create_model(model_config("tiny", "oblique", class_tokens="oblique"))
        >>> optimizer = Optimizer(model, OptimConfig(lr=1e-3, warmup=0.5), total_steps=4)
        >>> images, ids = torch.randn(4, 3, 32, 32), torch.randint(1, 4095, (4, 5))
        >>> for _ in range(4):
        ...     loss, _, _ = train_step(model, images, ids, None, "info_nce", "float32")
        ...     print(f"{optimizer.lr:.4f}")
        ...     optimizer.step()
        0.0005
        0.0010
        0.0010
        0.0005
        >>> lengths = model.visual.trunk.reg_token.norm(dim=-1)  # class tokens on a manifold
        >>> torch.allclose(lengths, torch.ones(8), atol=1e-5)
        True
    """

    def __init__(self, model: nn.Module, config: OptimConfig, total_steps: int) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        points = [p for _, p in named if isinstance(p, geoopt.ManifoldParameter)]
        free = [(name, p) for name, p in named if not isinstance(p, geoopt.ManifoldParameter)]
        groups = decay_groups(free, config.weight_decay)
        betas = (0.9, config.beta2)
        self._parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, config.lr, betas, 1e-6, fused=True)]
        if points:
            self._parts.append(geoopt.optim.RiemannianAdam(points, config.point_lr, betas, 1e-6))
        self._parameters = [p for _, p in named]
        self._clip_grad = config.clip_grad
        schedule = _schedule(total_steps, config.warmup)
        self._schedules = [torch.optim.lr_scheduler.LambdaLR(part, schedule) for part in self._parts]

    @property
    def lr(self) -> float:
        """Learning rate of the next step, of Euclidean parameters."""
        return float(self._parts[0].param_groups[0]["lr"])

    def step(self) -> None:
        """Clip the gradient, move every parameter, clear the gradient and advance the schedule."""
        if self._clip_grad:
            nn.utils.clip_grad_norm_(self._parameters, self._clip_grad)
        for part in self._parts:
            part.step()
            part.zero_grad(set_to_none=True)
        for schedule in self._schedules:
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [p.state_dict() for p in self._parts], "schedules": [s.state_dict() for s in self._schedules]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)
            if isinstance(part, geoopt.optim.RiemannianAdam):
                # Loading makes the counts float32 tensors, as AdamW has them; geoopt's correction of bias would round.
                for moments in part.state.values():
                    moments["step"] = int(moments["step"])
        for schedule, saved in zip(self._schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)


def _schedule(total: int, warmup: float) -> Callable[[int], float]:
    rise = max(1, round(total * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total - rise))))

    return factor
