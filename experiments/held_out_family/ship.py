"""Store the best checkpoints of the two runs as the models that the package ships, matrices in float16.

python -m experiments.held_out_family.ship runs/long
"""

from __future__ import annotations

import sys
from pathlib import Path

from oblique_clip.checkpoint import load, save_model
from oblique_clip.config import read_run_config

ASSETS = Path(__file__).parents[2] / "oblique_clip" / "data" / "assets"
FORMS = ("sphere", "oblique")


def ship(runs: Path) -> None:
    """Write `tiny-<form>.safetensors` from each `<runs>/<form>`."""
    for form in FORMS:
        run = runs / form
        config = read_run_config(run)
        path = ASSETS / f"tiny-{form}.safetensors"
        save_model(load(run).model, config.model, path, config.data, half=True)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    ship(Path(sys.argv[1]))
