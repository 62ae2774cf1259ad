"""The optimiser's step with class tokens as points, against torch's and geoopt's over the same parameters.

Every rival moves parameters of the same shapes and values by the same gradients, and does what a training loop asks
for: gradients are set, the optimiser steps, gradients are cleared. Ours moves its schedule on besides.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable

import geoopt
import torch
from torch import nn

from ..config import OptimConfig, model_config
from ..model import create_model
from ..optim import Optimizer, decay_groups
from .measure import BenchConfig, Row, Task, faster, interleaved

STEPS = {"small": 20, "tiny": 200}
"""Of one timed run, by the model's size."""
BARE = OptimConfig(clip_grad=0.0, max_bad_steps=0)
"""Nothing but the step."""
CLIPPED = OptimConfig()
"""As in training: the gradient is clipped, and moves nothing where it is not finite."""
BETAS, EPS = (0.9, BARE.beta2), 1e-6
ADAMW, CLIPPED_ADAMW, RADAM = "fused AdamW", "clip_grad_norm_ and fused AdamW", "geoopt RiemannianAdam over all"


def rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """Cost against AdamW and gain over RiemannianAdam, with the vocabulary of CLIP and with the tiny one."""
    return [row for size in STEPS for row in _of_size(size, config, device)]


def _of_size(size: str, config: BenchConfig, device: torch.device) -> list[Row]:
    torch.manual_seed(0)
    model = create_model(model_config(size, "oblique", class_tokens="oblique")).to(device)
    gradients = [torch.randn_like(p) * 1e-3 for p in model.parameters()]
    steps = STEPS[size]
    ours, clipped = (copy.deepcopy(model) for _ in range(2))
    tasks = {
        "ours": _repeated(Optimizer(ours, BARE, total_steps=10**6).step, ours, gradients, steps),
        "ours, clipped": _repeated(Optimizer(clipped, CLIPPED, total_steps=10**6).step, clipped, gradients, steps),
        ADAMW: _adamw(_without_points(model), gradients, steps, clip=False),
        CLIPPED_ADAMW: _adamw(_without_points(model), gradients, steps, clip=True),
        RADAM: _radam(copy.deepcopy(model), gradients, steps),
    }
    timed = interleaved(tasks, config.rounds, device)
    runs = {name: [seconds / steps for seconds in own] for name, own in timed.items()}
    what = f"optimiser step, {size} ({sum(map(torch.numel, gradients)) / 1e6:.1f} M)"
    return [
        _cost(f"cost of an {what}", runs, "ours", ADAMW),
        _cost(f"cost of an {what}, clipped and looked at", runs, "ours, clipped", CLIPPED_ADAMW),
        faster("optimizer", what, runs, RADAM, ">= 3"),
    ]


def _cost(what: str, runs: dict[str, list[float]], own: str, peer: str) -> Row:
    ours, theirs = statistics.median(runs[own]), statistics.median(runs[peer])
    both = {name: runs[name] for name in (own, peer)}
    return Row("optimizer", what, ours, theirs, "s", peer, ours / theirs, "<= 1.15", runs=both)


def _repeated(step: Callable[[], object], model: nn.Module, gradients: list[torch.Tensor], steps: int) -> Task:
    # Clipping changes them in place.
    parameters, gradients = list(model.parameters()), [gradient.clone() for gradient in gradients]

    def task() -> None:
        for _ in range(steps):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            step()

    return task


def _adamw(model: nn.Module, gradients: list[torch.Tensor], steps: int, clip: bool) -> Task:
    groups = decay_groups(model.named_parameters(), BARE.weight_decay)
    longest = CLIPPED.clip_grad if clip else None
    return _stepping(torch.optim.AdamW(groups, BARE.lr, BETAS, EPS, fused=True), model, gradients, steps, longest)


def _radam(model: nn.Module, gradients: list[torch.Tensor], steps: int) -> Task:
    optimizer = geoopt.optim.RiemannianAdam(model.parameters(), BARE.lr, BETAS, EPS)
    return _stepping(optimizer, model, gradients, steps)


def _stepping(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    gradients: list[torch.Tensor],
    steps: int,
    longest: float | None = None,
) -> Task:
    def step() -> None:
        if longest is not None:
            nn.utils.clip_grad_norm_(model.parameters(), longest)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _repeated(step, model, gradients, steps)


def _without_points(model: nn.Module) -> nn.Module:
    """A copy whose class tokens are free parameters."""
    free = copy.deepcopy(model)
    for part in free.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if isinstance(parameter, geoopt.ManifoldParameter):
                setattr(part, name, nn.Parameter(parameter.detach().as_subclass(torch.Tensor).clone()))
    return free
