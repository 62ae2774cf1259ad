"""Pictures of runs, each drawn by one function that returns a matplotlib figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .config import TrainConfig, from_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
            spec = json.loads((run / "config.json").read_text())["model"]["topology"]
            low, high = parse_topology(spec).range
            width = high - low if high - low < float("inf") else 1.0
            unit = {"scale": width, "margin": 1 / width}.get(key, factor)
            lines = [(line["step"], line[key] * unit) for line in read_metrics(run) if key in line]
            style = STYLES.get(name, {})
            axis.plot(*zip(*lines, strict=True), label=name, markevery=max(1, len(lines) // 8), markersize=4, **style)
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure


def draw_retrieval(run: Path, count: int = 8, seed: int = 0) -> Figure:
    """Pictures of the test families with their most similar names, and names with their most similar pictures.

    Pictures and names are drawn at random by `seed`, not chosen; right answers are set in bold or framed.
    """
    import numpy as np
    from matplotlib.figure import Figure

    from .checkpoint import load
    from .data.splits import split_emoji
    from .evaluate.encode import encode_images, encode_texts

    model, preprocess, tokenizer = load(run)
    config = from_json(TrainConfig, json.loads((run / "config.json").read_text()))
    test = split_emoji(config.data).test
    names = sorted({record.concept for record in test.records})
    texts = encode_texts(model, tokenizer, names)
    points = encode_images(model, test.images().split(256), preprocess)
    random = np.random.default_rng(seed)
    pictures, words = random.choice(len(test), count, False), random.choice(len(names), count, False)
    figure = Figure((1.7 * count, 8.4), layout="constrained")
    halves = figure.add_gridspec(2, 1, height_ratios=(1, 2.1))
    top, bottom = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    top.suptitle("random pictures of the held-out family, their five most similar names (right one bold)", fontsize=10)
    for axis, row in zip(top.subplots(1, count), pictures, strict=True):
        best = model.topology.similarity(points[[row]], texts)[0].topk(5).indices.tolist()
        axis.imshow(test.images(np.array([row]))[0].permute(1, 2, 0))
        axis.axis("off")
        for place, name in enumerate(names[i] for i in best):
            weight = "bold" if name == test.records[row].concept else "normal"
            label = name if len(name) < 25 else name[:23] + "…"
            axis.text(
                0.5, -0.08 - 0.15 * place, label, transform=axis.transAxes, ha="center", va="top", size=7, weight=weight
            )
    bottom.suptitle("random names, their five most similar pictures (right ones framed)", fontsize=10)
    grid = bottom.subplots(5, count)
    for column, word in enumerate(words):
        best = model.topology.similarity(texts[[word]], points)[0].topk(5).indices.tolist()
        grid[0, column].set_title(names[word] if len(names[word]) < 22 else names[word][:20] + "…", fontsize=7)
        for axis, row in zip(grid[:, column], best, strict=True):
            axis.imshow(test.images(np.array([row]))[0].permute(1, 2, 0))
            axis.set(xticks=[], yticks=[])
            right = test.records[row].concept == names[word]
            for spine in axis.spines.values():
                spine.set(visible=right, linewidth=2.5, color="black")
    return figure
