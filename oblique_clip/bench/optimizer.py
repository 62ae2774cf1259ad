"""The optimiser's step with class tokens as points, against torch's and geoopt's over the same parameters.

Every rival moves parameters of the same shapes and values by the same gradients, unclipped, and does what a training
loop asks for: gradients are set, the optimiser steps, gradients are cleared. Ours moves its schedule on besides.
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
SETTINGS = OptimConfig(clip_grad=0.0)
BETAS, EPS = (0.9, SETTINGS.beta2), 1e-6
ADAMW, RADAM = "fused AdamW", "geoopt RiemannianAdam over all"


def rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """Cost against AdamW and gain over RiemannianAdam, with the vocabulary of CLIP and with the tiny one."""
    return [row for size in STEPS for row in _of_size(size, config, device)]


def _of_size(size: str, config: BenchConfig, device: torch.device) -> list[Row]:
    torch.manual_seed(0)
    model = create_model(model_config(size, "oblique", class_tokens="oblique")).to(device)
    gradients = [torch.randn_like(p) * 1e-3 for p in model.parameters()]
    steps = STEPS[size]
    tasks = {
        "ours": _repeated(Optimizer(model, SETTINGS, total_steps=10**6).step, model, gradients, steps),
        ADAMW: _adamw(_without_points(model), gradients, steps),
        RADAM: _radam(copy.deepcopy(model), gradients, steps),
    }
    timed = interleaved(tasks, config.rounds, device)
    runs = {name: [seconds / steps for seconds in own] for name, own in timed.items()}
    ours, adamw = statistics.median(runs["ours"]), statistics.median(runs[ADAMW])
    what = f"optimiser step, {size} ({sum(map(torch.numel, gradients)) / 1e6:.1f} M)"
    both = {name: runs[name] for name in ("ours", ADAMW)}
    return [
        Row("optimizer", f"cost of an {what}", ours, adamw, "s", ADAMW, ours / adamw, "<= 1.15", runs=both),
        faster("optimizer", what, runs, RADAM, ">= 3"),
    ]


def _repeated(step: Callable[[], object], model: nn.Module, gradients: list[torch.Tensor], steps: int) -> Task:
    parameters = list(model.parameters())

    def task() -> None:
        for _ in range(steps):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            step()

    return task


def _adamw(model: nn.Module, gradients: list[torch.Tensor], steps: int) -> Task:
    groups = decay_groups(model.named_parameters(), SETTINGS.weight_decay)
    return _stepping(torch.optim.AdamW(groups, SETTINGS.lr, BETAS, EPS, fused=True), model, gradients, steps)


def _radam(model: nn.Module, gradients: list[torch.Tensor], steps: int) -> Task:
    optimizer = geoopt.optim.RiemannianAdam(model.parameters(), SETTINGS.lr, BETAS, EPS)
    return _stepping(optimizer, model, gradients, steps)


def _stepping(optimizer: torch.optim.Optimizer, model: nn.Module, gradients: list[torch.Tensor], steps: int) -> Task:
    def step() -> None:
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
