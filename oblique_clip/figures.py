"""Pictures of runs, each drawn by one function that returns a matplotlib figure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .config import read_run_config
from .errors import UserError
from .style import FORMS
from .topology import parse_topology

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from .data.emoji import EmojiSet
    from .page.examples import OfName, OfPicture, Retrieval


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl.

    Raises:
        UserError: for one that is damaged.
    """
    path = run / "metrics.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise UserError(f"{path} has a line that is no JSON: {error}") from error


# Figure on a curve: key in metrics.jsonl, and name of the axis.
CURVES = {
    "loss": "training loss (nats)",
    "val_top1": "validation top-1 (%)",
    "scale": "scale x width of range",
    "margin": "margin / width of range",
}
# How a figure of metrics.jsonl becomes that of a curve, by the ends of the topology's range.
CHANGES: dict[str, Callable[[float, float, float], float]] = {
    "val_top1": lambda value, low, high: 100 * value,
    "scale": lambda value, low, high: value * (high - low),
    "margin": lambda value, low, high: value / (high - low),
    "positive": lambda value, low, high: (value - low) / (high - low),
    "negative": lambda value, low, high: (value - low) / (high - low),
}


def read_curve(run: Path, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a figure in metrics.jsonl; similarities in units of the topology's range.

    An unbounded range has no width: its similarities stay as they are.
    """
    low, high = parse_topology(read_run_config(run).model.topology).range
    low, high = (low, high) if math.isfinite(high - low) else (0.0, 1.0)
    change = CHANGES.get(key, lambda value, low, high: value)
    lines = [line for line in read_metrics(run) if isinstance(line.get(key), int | float)]
    return [line["step"] for line in lines], [change(line[key], low, high) for line in lines]


def draw_curves(runs: dict[str, Path]) -> Figure:
    """Loss, validation accuracy, scale and margin over steps, a line a run; on one canvas 10 x 6 inches."""
    from matplotlib.figure import Figure

    figure = Figure((10, 6), layout="constrained")
    for axis, (key, label) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        for name, run in runs.items():
            steps, values = read_curve(run, key)
            axis.plot(steps, values, label=name, markevery=max(1, len(steps) // 8), markersize=4, **FORMS.get(name, {}))
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure


def draw_retrieval(found: Retrieval, test: EmojiSet) -> Figure:
    """Pictures with their most similar names, and names with their most similar pictures of `test`.

    Right answers are set in bold or framed.
    """
    from matplotlib.figure import Figure

    figure = Figure((1.7 * len(found.pictures), 8.4), layout="constrained")
    halves = figure.add_gridspec(2, 1, height_ratios=(1, 2.1))
    _draw_names(figure.add_subfigure(halves[0]), test, found.pictures)
    _draw_pictures(figure.add_subfigure(halves[1]), test, found.names)
    return figure


def _draw_names(figure: SubFigure, test: EmojiSet, asked: Sequence[OfPicture]) -> None:
    """Pictures of `test`, and below each the names found for it."""
    figure.suptitle("random pictures of the held-out family, their five most similar names (right one bold)", size=10)
    for axis, one in zip(figure.subplots(1, len(asked), squeeze=False).flat, asked, strict=True):
        _show(axis, test, one.row)
        axis.axis("off")
        style = {"transform": axis.transAxes, "ha": "center", "va": "top", "size": 7}
        for place, (name, right) in enumerate(one.found):
            weight = "bold" if right else "normal"
            axis.text(0.5, -0.08 - 0.15 * place, shortened(name, 25), weight=weight, parse_math=False, **style)


def _draw_pictures(figure: SubFigure, test: EmojiSet, asked: Sequence[OfName]) -> None:
    """Names, and below each the pictures of `test` found for it."""
    figure.suptitle("random names, their five most similar pictures (right ones framed)", size=10)
    rows = max(len(one.found) for one in asked)
    for column, one in zip(figure.subplots(rows, len(asked), squeeze=False).T, asked, strict=True):
        column[0].set_title(shortened(one.name, 22), fontsize=7, parse_math=False)
        for axis, (row, right) in zip(column, one.found, strict=True):
            _show(axis, test, row)
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(visible=right, linewidth=2.5, color="black")


def _show(axis: Axes, test: EmojiSet, row: int) -> None:
    axis.imshow(test.images(np.array([row]))[0].permute(1, 2, 0))


def shortened(name: str, length: int) -> str:
    return name if len(name) < length else name[: length - 2] + "…"
