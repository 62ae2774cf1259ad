"""Pictures of a question's runs: every seed and its interval, and curves over training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..style import line
from .results import HEADLINES, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = (
    ("loss", "training loss (nats)", 1),
    ("val_top1", "validation top-1 (%)", 100),
    ("scale", "scale x width of range", 1),
    ("val_gap", "validation gap / width of range", 1),
)


def draw_forest(results: Results) -> Figure:
    """A row an arm: every seed as a dot, mean and 95 % interval, for the headline measures."""
    from matplotlib.figure import Figure

    arms = [arm.name for arm in results.begun]
    figure = Figure((10, 1.2 + 0.36 * len(arms)), layout="constrained")
    for axis, measure in zip(figure.subplots(1, len(HEADLINES), sharey=True), HEADLINES, strict=True):
        for row, arm in enumerate(arms):
            values = list(results.values(arm, measure).values())
            found = results.mean(arm, measure)
            if found is None:
                continue
            axis.plot(values, [row] * len(values), "o", color="#999999", markersize=4)
            half = found.half if math.isfinite(found.half) else 0.0
            axis.errorbar(found.mean, row, xerr=half, fmt="|", color="black", capsize=3, markersize=9)
        axis.set(xlabel=f"{measure.title} (%)", yticks=range(len(arms)), yticklabels=arms)
        axis.grid(axis="x", alpha=0.3)
    figure.axes[0].set_ylim(len(arms) - 0.5, -0.5)
    return figure


def draw_curves(results: Results) -> Figure:
    """Loss, validation accuracy, scale and gap over steps: a line an arm of the question's `curves`, the mean of its
    seeds."""
    from matplotlib.figure import Figure

    drawn = [arm.name for arm in results.begun if arm.name in results.question.curves or not results.question.curves]
    figure = Figure((10, 6.5), layout="constrained")
    for axis, (key, label, factor) in zip(figure.subplots(2, 2).flat, CURVES, strict=True):
        for place, arm in enumerate(drawn):
            draw_mean_curve(axis, results, arm, key, factor, place)
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def draw_mean_curve(axis: Axes, results: Results, arm: str, key: str, factor: float, place: int) -> None:
    """The mean over seeds of one arm's curve, where all its runs have it at the same steps."""
    curves = [run.curve(key) for run in results.runs(arm).values()]
    if not curves or not curves[0][0] or any(curve[0] != curves[0][0] for curve in curves):
        return
    width = width_of(next(iter(results.runs(arm).values())).result["topology"]) if key == "scale" else 1.0
    values = np.mean([curve[1] for curve in curves], axis=0) * factor * width
    axis.plot(curves[0][0], values, label=arm, **line(place) | {"marker": ""})


def width_of(spec: str) -> float:
    """Width of the range of a topology; 1 for an unbounded one."""
    from ..topology import parse_topology

    low, high = parse_topology(spec).range
    return high - low if math.isfinite(high - low) else 1.0
