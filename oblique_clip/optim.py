"""One optimiser to the loop: fused AdamW for Euclidean parameters, RiemannianAdam for points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import geoopt
import torch
from torch import Tensor, nn

from .config import OptimConfig
from .distributed import clip_gradients, placed, whole
from .errors import UserError

SCALE = "temperature.log_scale"
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
        [(40, 0.1), (82, 0.0)]
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
        ...     _ = optimizer.step(loss)
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
        betas = (0.9, config.beta2)
        own = [(name, p) for name, p in free if name == SCALE and config.scale_lr is not None]
        names = {name for name, _ in own}
        groups = decay_groups([(name, p) for name, p in free if name not in names], config.weight_decay)
        adam: torch.optim.Optimizer = torch.optim.AdamW(groups, config.lr, betas, 1e-6, fused=True)
        # Each optimiser, and the highest rate of each of its groups.
        self._parts: list[tuple[torch.optim.Optimizer, list[float]]] = [(adam, [config.lr] * len(groups))]
        if own and config.scale_lr is not None:
            adam.add_param_group({"params": [p for _, p in own], "weight_decay": 0.0})
            self._parts[0][1].append(config.scale_lr)
        if points:
            riemannian = geoopt.optim.RiemannianAdam(points, config.point_lr, betas, 1e-6)
            self._parts.append((riemannian, [config.point_lr]))
        self._named = dict(named)
        self._clip_grad, self._guarded = config.clip_grad or math.inf, bool(config.clip_grad or config.max_bad_steps)
        self._schedule = _schedule(total_steps, config.warmup)
        self._done = 0
        self._set_rates()

    @property
    def lr(self) -> float:
        """Learning rate of the next step, of Euclidean parameters."""
        return float(self._parts[0][0].param_groups[0]["lr"])

    def step(self, loss: Tensor | None = None) -> Tensor | None:
        """Clip the gradient, move every parameter, clear the gradient and advance the schedule.

        A gradient, or a `loss`, that is not finite moves nothing, neither parameters nor moments.

        Returns:
            Whether that was so, a bool on the parameters' device; None where nobody looked, as neither `clip_grad` nor
            `max_bad_steps` ask for it.
        """
        bad: Tensor | None = None
        if self._guarded:
            norm = clip_gradients(self._named.values(), self._clip_grad)
            bad = ~(norm if loss is None else norm + loss.to(norm)).isfinite()
        for part, _ in self._parts:
            _guarded_step(part, bad)
            part.zero_grad(set_to_none=True)
        self._done += 1
        self._set_rates()
        return bad

    def _set_rates(self) -> None:
        for part, highest in self._parts:
            for group, rate in zip(part.param_groups, highest, strict=True):
                group["lr"] = rate * self._schedule(self._done)

    def state_dict(self) -> dict[str, Any]:
        """`steps` taken, and every moment as "parameter/name": of sharded parameters whole, for which all ranks ask."""
        name_of: dict[Tensor, str] = {parameter: name for name, parameter in self._named.items()}
        moments = {
            f"{name_of[parameter]}/{key}": whole(torch.as_tensor(value)).cpu()
            for part, _ in self._parts
            for parameter, own in part.state.items()
            for key, value in own.items()
        }
        return {"steps": self._done, "moments": moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was asked; rates are those of this optimiser's own settings.

        Raises:
            UserError: for moments of other parameters.
        """
        for place, value in state["moments"].items():
            name, key = place.rsplit("/", 1)
            if name not in self._named:
                raise UserError(f"no parameter {name!r} is trained here, but there are moments of one")
            parameter = self._named[name]
            points = isinstance(parameter, geoopt.ManifoldParameter)
            own = self._parts[-1 if points else 0][0].state[parameter]
            # geoopt counts in Python, where its correction of bias does not round.
            own[key] = int(value) if points and key == "step" else placed(value, parameter)
        self._done = int(state["steps"])
        self._set_rates()


def _guarded_step(part: torch.optim.Optimizer, bad: Tensor | None) -> None:
    """A step, unless `bad` is true. On a GPU nothing waits for the device to say so: AdamW's kernel looks itself."""
    if bad is None:
        part.step()
    elif not _costs_to_ask(bad.device):
        if not bad:
            part.step()
    elif isinstance(part, torch.optim.AdamW):
        part.grad_scale, part.found_inf = None, bad.float()  # type: ignore[attr-defined]  # as torch.amp.GradScaler does
        part.step()
    else:
        _undone_step(part, bad)


def _costs_to_ask(device: torch.device) -> bool:
    """Whether to read a number would wait for all that the device still computes."""
    return device.type == "cuda"


def _undone_step(part: torch.optim.Optimizer, bad: Tensor) -> None:
    """A step, then everything put back that it moved if `bad` is true."""
    parameters = [p for group in part.param_groups for p in group["params"]]
    before = {p: (p.detach().clone(), {key: _copy(value) for key, value in part.state[p].items()}) for p in parameters}
    part.step()
    with torch.no_grad():
        for parameter, (point, moments) in before.items():
            parameter.copy_(torch.where(bad, point, parameter))
            state = part.state[parameter]
            for key, value in state.items():
                # geoopt counts steps in Python, and reckons with a count on the device as well.
                found = value if isinstance(value, Tensor) else _number(value, bad.device)
                # What the first step began was zero before it.
                state[key] = torch.where(bad, moments.get(key, torch.zeros_like(found)), found)


def _copy(value: Any) -> Tensor | float:
    return value.clone() if isinstance(value, Tensor) else value


def _number(value: float, device: torch.device) -> Tensor:
    """In float64, as Python's own; filled in on the device, since a copy to it would wait."""
    return torch.full((), float(value), dtype=torch.float64, device=device)


def _schedule(total: int, warmup: float) -> Callable[[int], float]:
    rise = max(1, round(total * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total - rise))))

    return factor
