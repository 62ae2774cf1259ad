"""The scale of the logits, 1/tau: learned as in CLIP, or a function of training progress.

Both kinds are modules with the same members: `log_scale` (a tensor, so that it is saved with the model), `scale` (its
exponential), `update(progress)`, called after each optimiser step, and `calibrated`, the scale under which
probabilities are right as often as they say. That one is fitted after training (`calibrate`), on pictures that training
did not see; None before.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .config import TemperatureConfig
from .errors import UserError


class LearnedTemperature(nn.Module):
    """CLIP's temperature: exp of a learned number, clamped from above after each step (Radford et al. 2021, 2.4).

    Args:
        initial: scale at the start, > 0.
        maximum: clamp of the scale; `inf` for none. There is none from below.

    Examples:
        >>> from oblique_clip.temperature import LearnedTemperature
        >>> temperature = LearnedTemperature(initial=1 / 0.07, maximum=100)
        >>> temperature.log_scale.data += 3  # as a long step of the optimiser would
        >>> round(temperature.scale.item(), 1)
        286.9
        >>> temperature.update(progress=0.5)
        >>> round(temperature.scale.item(), 1)
        100.0
    """

    calibrated: float | None = None

    def __init__(self, initial: float, maximum: float = math.inf) -> None:
        super().__init__()
        self.maximum = maximum
        self.log_scale = nn.Parameter(torch.tensor(math.log(min(initial, maximum))))

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    @torch.no_grad()
    def update(self, progress: float) -> None:
        self.log_scale.clamp_(max=math.log(self.maximum))


def _exponential(start: float, end: float, progress: float) -> float:
    return float(start * (end / start) ** progress)


# Each maps (first scale, last scale, progress in [0, 1]) to a scale.
SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "constant": lambda start, end, progress: start,
    "linear": lambda start, end, progress: start + (end - start) * progress,
    "cosine": lambda start, end, progress: end + (start - end) * (1 + math.cos(math.pi * progress)) / 2,
    "exponential": _exponential,
}


class ScheduledTemperature(nn.Module):
    """A scale that no gradient moves: one of `SCHEDULES` between two values, both > 0.

    Examples:
        >>> from oblique_clip.temperature import ScheduledTemperature
        >>> temperature = ScheduledTemperature("linear", initial=1.0, final=5.0)
        >>> for progress in (0.0, 0.5, 1.0):
        ...     temperature.update(progress)
        ...     print(round(temperature.scale.item(), 3))
        1.0
        3.0
        5.0
    """

    log_scale: Tensor
    calibrated: float | None = None

    def __init__(self, schedule: str, initial: float, final: float) -> None:
        super().__init__()
        self._at = SCHEDULES[schedule]
        self.initial, self.final = initial, final
        self.register_buffer("log_scale", torch.tensor(math.log(initial)))

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    @torch.no_grad()
    def update(self, progress: float) -> None:
        self.log_scale.fill_(math.log(self._at(self.initial, self.final, min(max(progress, 0.0), 1.0))))


Temperature = LearnedTemperature | ScheduledTemperature


def make_temperature(config: TemperatureConfig, initial: float, maximum: float) -> Temperature:
    """A temperature as configured; `initial` and `maximum` are the topology's, used where the config is silent.

    Raises:
        UserError: for a scale that is not positive and finite (the clamp may be `inf`), an unknown kind, or an annealed
            kind without a last scale.

    Examples:
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.config import TemperatureConfig
        >>> from oblique_clip.temperature import make_temperature
        >>> for spec in ("sphere(512)", "oblique(32,16)"):  # equal scale x width of range
        ...     topology = parse_topology(spec)
        ...     temperature = make_temperature(TemperatureConfig(), topology.initial_scale(), topology.max_scale)
        ...     print(spec, round(temperature.scale.item(), 3), temperature.maximum)
        sphere(512) 14.286 100.0
        oblique(32,16) 0.893 6.25
    """
    start = initial if config.init_scale is None else config.init_scale
    bound = maximum if config.max_scale is None else config.max_scale
    for name, value in (("init-scale", start), ("max-scale", bound), ("final-scale", config.final_scale)):
        if value is not None and not value > 0:
            raise UserError(f"--{name} must be greater than 0, not {value}")
        if value == math.inf and name != "max-scale":
            raise UserError(f"--{name} must be finite")
    if config.temperature == "learned":
        return LearnedTemperature(start, bound)
    if config.temperature not in SCHEDULES:
        raise UserError(f"unknown temperature {config.temperature!r}; there is learned, {', '.join(SCHEDULES)}")
    if config.temperature != "constant" and config.final_scale is None:
        raise UserError(f"temperature {config.temperature} needs --final-scale, the scale at the last step")
    final = start if config.final_scale is None else config.final_scale
    return ScheduledTemperature(config.temperature, start, final)
