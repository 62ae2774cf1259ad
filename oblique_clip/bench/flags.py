"""What two flags of `train` buy: half of the patches dropped and, in a full run, a compiled image tower."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..config import model_config
from .measure import BenchConfig, Rival, Row, faster, race
from .step import preset_step


def rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """A training step of the small sphere model, float32, with each flag and without."""
    preset = model_config("small", "sphere")
    dropped = replace(preset, arch=replace(preset.arch, patch_dropout=0.5))
    plain = Rival(preset_step, (device, preset))
    runs, _ = race({"ours": Rival(preset_step, (device, dropped)), "without": plain}, config.rounds, device)
    found = [faster("flags", "--patch-dropout 0.5", runs, "without", note="less work, not the same numbers")]
    if config.full:
        compiled = Rival(preset_step, (device, preset, True))
        first, _ = race({"compiled": compiled}, 1, device, warmup=0)
        runs, _ = race({"ours": compiled, "without": plain}, config.rounds, device)
        note = f"its first step takes {first['compiled'][0]:.0f} s"
        found.append(faster("flags", "--compile", runs, "without", note=note))
    return found
