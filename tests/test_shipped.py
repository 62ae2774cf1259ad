"""The shipped pair of models: small, loadable by name, and as good as the committed results of their runs say."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
import torch

from experiments.held_out_family.ship import ASSETS, ship
from oblique_clip import load
from oblique_clip.checkpoint import data_of
from oblique_clip.config import DataConfig
from oblique_clip.evaluate.calibration import FITTED
from oblique_clip.evaluate.tasks import HeldOut, calibration_scales, evaluate_emoji

RESULTS = Path(__file__).parents[1] / "experiments" / "held_out_family"
# Matrices are shipped in float16: a handful of the 4,793 pictures may change sides.
HALF_PRECISION = 0.003
FIT = 1e-4
"""Relative difference of two minimisers of one smooth function, from similarities in float32 of another machine."""


@pytest.mark.parametrize("form", ["sphere", "oblique"])
def test_a_shipped_model_gives_the_committed_figures(form: str) -> None:
    committed = json.loads((RESULTS / f"{form}.json").read_text())["evaluation"]
    found = evaluate_emoji(load(f"tiny-{form}"), HeldOut(DataConfig()))
    for part in ("family", "concepts"):
        for figure in ("top1", "top5"):
            assert found[part][figure] == pytest.approx(committed[part][figure], abs=HALF_PRECISION)
    assert found["family"]["pixel_floor"] == committed["family"]["pixel_floor"]


def test_a_shipped_model_stays_under_ten_megabytes() -> None:
    assets = [
        path for path in resources.files("oblique_clip.data").joinpath("assets").iterdir() if "tiny-" in path.name
    ]
    assert len(assets) == 2 and all(Path(str(path)).stat().st_size < 10e6 for path in assets)


@pytest.mark.parametrize("form", ["sphere", "oblique"])
def test_a_shipped_model_carries_the_scale_that_its_validation_family_asks_for(form: str) -> None:
    loaded, data = load(f"tiny-{form}"), data_of(f"tiny-{form}")
    fitted = calibration_scales(loaded, HeldOut(data))[FITTED]
    assert loaded.model.temperature.calibrated == pytest.approx(fitted, rel=FIT)


def test_shipping_again_changes_no_weight(tmp_path: Path) -> None:
    path = tmp_path / "again.safetensors"
    ship(ASSETS / "tiny-oblique.safetensors", path)
    again, shipped = load(path), load("tiny-oblique")
    weights = shipped.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())
    assert again.model.temperature.calibrated == pytest.approx(shipped.model.temperature.calibrated, rel=FIT)
