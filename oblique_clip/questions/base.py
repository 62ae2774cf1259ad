"""What the shipped questions share: one budget, and the arms that more than one of them compares.

Towers of 4 + 2 blocks and width 128 on pictures of 32 px, D = 512 numbers. Headline arms train for 3,000 steps of 128
pairs (40 passes), the others for 1,200 (16 passes).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from oblique_clip.config import Architecture, OptimConfig, TrainConfig, model_config
from oblique_clip.sweep.question import Arm, varied

D, M = 512, 16
ON_CPU = "-cpu"
"""Ends the names of arms that are held to a CPU."""
HEADLINE_STEPS, STEPS = 3000, 1200
HEADLINE_SEEDS = 5
# Steps of the arms of more than headline length, in headline lengths. The second is the ratio of the times that a step
# of the two topologies takes on a CPU, see `experiments/topology`.
AS_LONG = 2.3
EQUAL_TIME = 1.75
CLIP_SCALE = 1 / 0.07
# Chosen by trials on the validation family (`experiments/trials`), the same trials for each.
LR = {"sphere": 5e-4, "oblique": 5e-4}

_OPTIM = OptimConfig(steps=STEPS, batch_size=128, lr=LR["sphere"], precision="bf16")
_MODEL = model_config(
    "tiny", "sphere", topology=f"sphere({D})", embed_dim=D, arch=Architecture(vision_layers=4, text_layers=2)
)
SPHERE = TrainConfig(model=_MODEL, optim=_OPTIM, test=False, log="", log_every=50)
OBLIQUE = varied(SPHERE, model={"form": "oblique", "topology": f"oblique({D // M},{M})"}, optim={"lr": LR["oblique"]})


def long(config: TrainConfig, factor: float = 1.0) -> TrainConfig:
    """The same run at the length of the headline arms, or `factor` times that."""
    return varied(config, optim={"steps": round(HEADLINE_STEPS * factor)})


def on_cpu(arm: Arm, seeds: int | None = None) -> Arm:
    """The same arm, held to a CPU, beside that of the sweep's device."""
    return Arm(f"{arm.name}{ON_CPU}", replace(arm.config, device="cpu"), arm.seeds if seeds is None else seeds)


def both(suffix: str, seeds: int = 3, **changes: Any) -> tuple[Arm, Arm]:
    """The sphere and the oblique of 16 spheres, changed alike."""
    sphere, oblique = varied(SPHERE, **changes), varied(OBLIQUE, **changes)
    return Arm(f"sphere-{suffix}", sphere, seeds), Arm(f"oblique-{suffix}", oblique, seeds)


HEADLINE = (Arm("sphere", long(SPHERE), HEADLINE_SEEDS), Arm("oblique-16", long(OBLIQUE), HEADLINE_SEEDS))
"""The arms of the primary contrast: 3,000 steps."""
LONGER = (
    Arm("sphere-as-long", long(SPHERE, AS_LONG), HEADLINE_SEEDS),
    Arm("oblique-as-long", long(OBLIQUE, AS_LONG), HEADLINE_SEEDS),
)
"""The same with 6,900 steps."""
SHORT = (Arm("sphere-short", SPHERE), Arm("oblique-short", OBLIQUE))
"""What exploratory arms are compared with: 1,200 steps."""
