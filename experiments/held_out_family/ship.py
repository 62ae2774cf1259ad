"""Store two models as those that the package ships: matrices in float16, and the scale that fits their validation.

python -m experiments.held_out_family.ship runs/long    # the best checkpoints of the two runs
python -m experiments.held_out_family.ship              # the shipped ones again, their weights as they are
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from oblique_clip.checkpoint import config_of, data_of, load, save_model
from oblique_clip.cli import run_script
from oblique_clip.evaluate.calibration import FITTED
from oblique_clip.evaluate.tasks import HeldOut, calibration_scales

ASSETS = Path(__file__).parents[2] / "oblique_clip" / "data" / "assets"
FORMS = ("sphere", "oblique")


@dataclass(frozen=True)
class Ship:
    """Store two models as those that the package ships."""

    runs: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of the runs `sphere` and `oblique`; default the shipped models."""
    out: Path = ASSETS
    """Folder for the two files."""


def main(command: Ship) -> None:
    """Write `tiny-<form>.safetensors` of both forms, and print their scales."""
    for form in FORMS:
        path = command.out / f"tiny-{form}.safetensors"
        source = ASSETS / path.name if command.runs is None else command.runs / form
        ship(source, path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, scale {load(path).model.temperature.calibrated:.3f}")


def ship(source: Path, path: Path) -> None:
    """Write one model; its scale is fitted to the weights as they are stored."""
    config, data = config_of(source), data_of(source)
    save_model(load(source).model, config, path, data, half=True)
    loaded = load(path)
    loaded.model.temperature.calibrated = calibration_scales(loaded, HeldOut(data))[FITTED]
    save_model(loaded.model, config, path, data, half=True)


if __name__ == "__main__":
    run_script(main, Ship, "python -m experiments.held_out_family.ship")
