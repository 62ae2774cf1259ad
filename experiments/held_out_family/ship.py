"""Store the best checkpoints of the two runs as the models that the package ships, matrices in float16.

python -m experiments.held_out_family.ship runs/long
"""

from __future__ import annotations

import sys
from pathlib import Path

from oblique_clip.checkpoint import load, save_model
from oblique_clip.config import read_run_config
from oblique_clip.evaluate.calibration import FITTED
from oblique_clip.evaluate.tasks import HeldOut, calibration_scales

ASSETS = Path(__file__).parents[2] / "oblique_clip" / "data" / "assets"
FORMS = ("sphere", "oblique")


def ship(runs: Path) -> None:
    """Write `tiny-<form>.safetensors` from each `<runs>/<form>`."""
    for form in FORMS:
        run = runs / form
        config = read_run_config(run)
        path = ASSETS / f"tiny-{form}.safetensors"
        loaded, held_out = load(run), HeldOut(config.data)
        loaded.model.temperature.calibrated = calibration_scales(loaded, held_out).get(FITTED)
        save_model(loaded.model, config.model, path, config.data, half=True)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    ship(Path(sys.argv[1]))
