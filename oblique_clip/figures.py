"""Pictures of runs, each drawn by one function that returns a matplotlib figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .config import read_run_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from .data.emoji import EmojiSet

# Legible in grey: forms differ in line style and marker, not in colour alone.
STYLES = {
    "clip": {"color": "#777777", "linestyle": ":", "marker": "s"},
    "sphere": {"color": "#1f77b4", "linestyle": "--", "marker": "o"},
    "oblique": {"color": "#d62728", "linestyle": "-", "marker": "^"},
}


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# Figure on a curve: key in metrics.jsonl, name of the axis, factor.
CURVES = (
    ("loss", "training loss (nats)", 1),
    ("val_top1", "validation top-1 (%)", 100),
    ("scale", "scale x width of range", 1),
    ("margin", "margin / width of range", 1),
)


def draw_curves(runs: dict[str, Path]) -> Figure:
    """Loss, validation accuracy, scale and margin over steps, a line a run; on one canvas 10 x 6 inches."""
    from matplotlib.figure import Figure

    from .topology import parse_topology

    figure = Figure((10, 6), layout="constrained")
    for axis, (key, label, factor) in zip(figure.subplots(2, 2).flat, CURVES, strict=True):
        for name, run in runs.items():
            low, high = parse_topology(read_run_config(run).model.topology).range
            width = high - low if high - low < float("inf") else 1.0
            unit = {"scale": width, "margin": 1 / width}.get(key, factor)
            lines = [(line["step"], line[key] * unit) for line in read_metrics(run) if key in line]
            style = STYLES.get(name, {})
            axis.plot(*zip(*lines, strict=True), label=name, markevery=max(1, len(lines) // 8), markersize=4, **style)
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure


# How many of the most similar ones a retrieval picture shows.
SHOWN = 5


def draw_retrieval(run: Path, count: int = 8, seed: int = 0) -> Figure:
    """Pictures of the test families with their most similar names, and names with their most similar pictures.

    Pictures and names are drawn at random by `seed`, not chosen; right answers are set in bold or framed.
    """
    from matplotlib.figure import Figure

    from .checkpoint import load
    from .data.splits import split_emoji
    from .evaluate.encode import encode_images, encode_texts

    model, preprocess, tokenizer = load(run)
    test = split_emoji(read_run_config(run).data).test
    names = sorted({record.concept for record in test.records})
    texts = encode_texts(model, tokenizer, names)
    points = encode_images(model, test.images().split(256), preprocess)
    random = np.random.default_rng(seed)
    pictures, words = random.choice(len(test), count, False), random.choice(len(names), count, False)
    to_names = model.topology.similarity(points[pictures], texts).topk(SHOWN).indices.tolist()
    to_pictures = model.topology.similarity(texts[words], points).topk(SHOWN).indices.tolist()
    figure = Figure((1.7 * count, 8.4), layout="constrained")
    halves = figure.add_gridspec(2, 1, height_ratios=(1, 2.1))
    top, bottom = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    _draw_names(top, test, {row: [names[i] for i in best] for row, best in zip(pictures, to_names, strict=True)})
    _draw_pictures(bottom, test, {names[word]: best for word, best in zip(words, to_pictures, strict=True)})
    return figure


def _draw_names(figure: SubFigure, test: EmojiSet, found: dict[int, list[str]]) -> None:
    """Pictures of `test`, by row, and below each the names found for it."""
    figure.suptitle("random pictures of the held-out family, their five most similar names (right one bold)", size=10)
    for axis, (row, names) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        _show(axis, test, row)
        axis.axis("off")
        style = {"transform": axis.transAxes, "ha": "center", "va": "top", "size": 7}
        for place, name in enumerate(names):
            weight = "bold" if name == test.records[row].concept else "normal"
            axis.text(0.5, -0.08 - 0.15 * place, shortened(name, 25), weight=weight, **style)


def _draw_pictures(figure: SubFigure, test: EmojiSet, found: dict[str, list[int]]) -> None:
    """Names, and below each the pictures of `test` found for it, by row."""
    figure.suptitle("random names, their five most similar pictures (right ones framed)", size=10)
    for column, (name, rows) in zip(figure.subplots(SHOWN, len(found)).T, found.items(), strict=True):
        column[0].set_title(shortened(name, 22), fontsize=7)
        for axis, row in zip(column, rows, strict=True):
            _show(axis, test, row)
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(visible=test.records[row].concept == name, linewidth=2.5, color="black")


def _show(axis: Axes, test: EmojiSet, row: int) -> None:
    axis.imshow(test.images(np.array([row]))[0].permute(1, 2, 0))


def shortened(name: str, length: int) -> str:
    return name if len(name) < length else name[: length - 2] + "…"
