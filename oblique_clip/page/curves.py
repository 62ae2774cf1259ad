"""Figures over training, as the page's script draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..figures import read_curve

POINTS = 250
"""Of one line; of longer ones every so many-th step is drawn."""


@dataclass(frozen=True)
class Curve:
    """A figure of metrics.jsonl and the names of its axis."""

    key: str
    title: str
    unit: str


CURVES = (
    Curve("loss", "Training loss", "nats"),
    Curve("val_top1", "Validation top-1", "%"),
    Curve("scale", "Scale of the logits", "scale × width of range"),
    Curve("margin", "Margin within a batch", "margin / width of range"),
    Curve("positive", "Similarity of pairs", "place in the range"),
    Curve("negative", "Similarity of all others", "place in the range"),
    Curve("val_gap", "Validation gap", "gap / width of range"),
)


def curves(runs: dict[str, Path]) -> list[dict[str, Any]]:
    """Those that any run has: title, unit and for each run its number, steps and values; None for what is no number."""
    drawn = []
    for curve in CURVES:
        lines = []
        for number, run in enumerate(runs.values()):
            steps, values = read_curve(run, curve.key)
            if steps:
                lines.append({"run": number, **thinned(steps, values)})
        if lines:
            drawn.append({"title": curve.title, "unit": curve.unit, "lines": lines})
    return drawn


def thinned(steps: list[float], values: list[float], points: int = POINTS) -> dict[str, list[float | None]]:
    """At most about so many points, evenly, the last among them, to four digits.

    Examples:
        >>> from oblique_clip.page.curves import thinned
        >>> thinned([1, 2, 3, 4, 5], [0.5, 0.25, float("nan"), 0.123456, 0.1], points=3)
        {'x': [1, 3, 5], 'y': [0.5, None, 0.1]}
    """
    every = max(1, math.ceil(len(steps) / points))
    kept = range((len(steps) - 1) % every, len(steps), every)
    return {"x": [steps[i] for i in kept], "y": [_short(values[i]) for i in kept]}


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
