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
from ..optim import Optimizer, is_decayed
from .measure import BenchConfig, Row, Task, faster, interleaved

STEPS = 20
"""Of one timed run."""
SETTINGS = OptimConfig(clip_grad=0.0)
BETAS, EPS = (0.9, SETTINGS.beta2), 1e-6
ADAMW, RADAM = "fused AdamW", "geoopt RiemannianAdam over all"


def rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """Cost against AdamW and gain over RiemannianAdam, with aims where the model has the vocabulary of CLIP."""
    return [*_of_size("small", config, device, "<= 1.15", ">= 3"), *_of_size("tiny", config, device)]


def _of_size(
    size: str, config: BenchConfig, device: torch.device, cost_aim: str = "", speed_aim: str = ""
) -> list[Row]:
    torch.manual_seed(0)
    model = create_model(model_config(size, "oblique", class_tokens="oblique")).to(device)
    gradients = [torch.randn_like(p) * 1e-3 for p in model.parameters()]
    tasks = {
        "ours": _repeated(Optimizer(model, SETTINGS, total_steps=10**6).step, model, gradients),
        ADAMW: _adamw(_without_points(model), gradients),
        RADAM: _radam(copy.deepcopy(model), gradients),
    }
    timed = interleaved(tasks, config.rounds, device)
    runs = {name: [seconds / STEPS for seconds in own] for name, own in timed.items()}
    ours, adamw = statistics.median(runs["ours"]), statistics.median(runs[ADAMW])
    what = f"optimiser step, {size} ({sum(map(torch.numel, gradients)) / 1e6:.1f} M)"
    both = {name: runs[name] for name in ("ours", ADAMW)}
    return [
        Row("optimizer", f"cost of an {what}", ours, adamw, "s", ADAMW, ours / adamw, cost_aim, runs=both),
        faster("optimizer", what, runs, RADAM, speed_aim),
    ]


def _repeated(step: Callable[[], None], model: nn.Module, gradients: list[torch.Tensor]) -> Task:
    parameters = list(model.parameters())

    def task() -> None:
        for _ in range(STEPS):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            step()

    return task


def _adamw(model: nn.Module, gradients: list[torch.Tensor]) -> Task:
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if is_decayed(name, p)], "weight_decay": SETTINGS.weight_decay},
        {"params": [p for name, p in named if not is_decayed(name, p)], "weight_decay": 0.0},
    ]
    return _stepping(torch.optim.AdamW(groups, SETTINGS.lr, BETAS, EPS, fused=True), model, gradients)


def _radam(model: nn.Module, gradients: list[torch.Tensor]) -> Task:
    return _stepping(geoopt.optim.RiemannianAdam(model.parameters(), SETTINGS.lr, BETAS, EPS), model, gradients)


def _stepping(optimizer: torch.optim.Optimizer, model: nn.Module, gradients: list[torch.Tensor]) -> Task:
    def step() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _repeated(step, model, gradients)


def _without_points(model: nn.Module) -> nn.Module:
    """A copy whose class tokens are free parameters."""
    free = copy.deepcopy(model)
    for part in free.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if isinstance(parameter, geoopt.ManifoldParameter):
                setattr(part, name, nn.Parameter(parameter.detach().as_subclass(torch.Tensor).clone()))
    return free
