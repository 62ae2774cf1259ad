"""The shipped pair of models: small, loadable by name, and as good as the committed results of their runs say."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest

from oblique_clip import load
from oblique_clip.config import DataConfig
from oblique_clip.evaluate.tasks import HeldOut, evaluate_emoji

RESULTS = Path(__file__).parents[1] / "experiments" / "held_out_family"
# Matrices are shipped in float16: a handful of the 4,793 pictures may change sides.
HALF_PRECISION = 0.003


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
