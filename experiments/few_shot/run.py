"""Few-shot adaptation of the shipped models: every method, number of shots and seed; results.json and few_shot.png.

python -m experiments.few_shot.run --fashion-mnist /usr/share/datasets/fashion-mnist
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

import oblique_clip
from oblique_clip.adapt import accuracies, linear_probe, refine_prototypes, tip_adapter
from oblique_clip.checkpoint import Loaded
from oblique_clip.cli import run_script
from oblique_clip.config import check_folder, write_json
from oblique_clip.device import versions
from oblique_clip.evaluate.encode import encode_images
from oblique_clip.evaluate.floors import pixel_neighbour, thumbnails
from oblique_clip.evaluate.zeroshot import build_classifier, rank_figures
from oblique_clip.topology import Topology

from .tasks import SHOTS, Task, emoji_task, fashion_task

HERE = Path(__file__).parent
MODELS = ("tiny-sphere", "tiny-oblique")
SEEDS = 5
# Student's t for a two-sided interval of 95 % from five seeds.
T_95 = 2.776
# Settings of the refinement that validation chooses from, the mildest first; no step keeps the zero-shot classifier.
REFINEMENTS = [(0, 0.01), *((steps, lr) for steps in (10, 30, 100, 300) for lr in (0.003, 0.01, 0.03, 0.1, 0.3))]
# Of accuracies, the one that the table and the plot show: classes of the shipped set differ in size.
HEADLINE = "mean_per_class"


@dataclass(frozen=True)
class Cell:
    """All that a method may use: points and labels of the shots, of the validation shots, and the texts."""

    prototypes: Tensor
    shots: Tensor
    labels: Tensor
    val: Tensor
    val_labels: Tensor
    topology: Topology
    scale: float
    seed: int


Scores = tuple[Callable[[Tensor], Tensor], dict[str, float]]
"""Points (N, ...) to logits (N, K), and what validation chose."""


def refined(cell: Cell) -> Scores:
    def moved(steps: int, lr: float) -> Callable[[Tensor], Tensor]:
        shots = cell.shots, cell.labels, cell.topology, cell.scale
        prototypes = refine_prototypes(cell.prototypes, *shots, steps, lr, cell.seed)
        return lambda points: cell.scale * cell.topology.similarity(points, prototypes)

    found = {setting: moved(*setting) for setting in REFINEMENTS}
    steps, lr = max(found, key=lambda setting: accuracies(found[setting](cell.val), cell.val_labels)["top1"])
    return found[steps, lr], {"steps": steps, "lr": lr}


def probed(cell: Cell) -> Scores:
    probe = linear_probe(cell.shots, cell.labels, cell.val, cell.val_labels)
    return probe.logits, {"c": probe.c}


def cached(cell: Cell) -> Scores:
    shots = cell.shots, cell.labels, cell.val, cell.val_labels
    adapter = tip_adapter(cell.prototypes, *shots, cell.topology, cell.scale)
    return adapter.logits, {"alpha": adapter.alpha, "beta": adapter.beta}


METHODS = {"refined prototypes": refined, "linear probe": probed, "Tip-Adapter": cached}
ZERO, PIXELS = "zero-shot", "nearest shot in pixels"

Row = dict[str, Any]


def measure(task: Task, models: dict[str, Loaded]) -> Iterator[Row]:
    """A row a method, number of shots and seed: figures in [0, 1] on the test, and what was chosen on validation."""
    for name, loaded in models.items():
        points = encode_images(loaded.model, task.batches(), loaded.preprocess)
        prototypes = build_classifier(loaded.model, loaded.tokenizer, task.classes)
        topology, scale = loaded.model.topology, loaded.model.temperature.scale.item()
        for seed in range(SEEDS):
            draw = task.draw(seed)
            queries, truth = points[draw.test], task.labels[draw.test]
            where = {"task": task.name, "model": name, "seed": seed}
            yield {**where, "method": ZERO, "shots": 0, **accuracies(topology.similarity(queries, prototypes), truth)}
            for k in SHOTS:
                shots, val = draw.of(k)
                labels, val_labels = task.labels[shots], task.labels[val]
                cell = Cell(prototypes, points[shots], labels, points[val], val_labels, topology, scale, seed)
                for method, fit in METHODS.items():
                    logits, chosen = fit(cell)
                    figures = accuracies(logits(queries), truth)
                    yield {**where, "method": method, "shots": k, **figures, "chosen": chosen}


def measure_floor(task: Task) -> Iterator[Row]:
    """The same for the nearest shot on 16 x 16 pixels, which knows no model."""
    pixels = thumbnails(task.batches())
    for seed in range(SEEDS):
        draw = task.draw(seed)
        for k in SHOTS:
            shots, _ = draw.of(k)
            truth, classes = task.labels[draw.test], len(task.classes)
            ranks = pixel_neighbour(pixels[draw.test], truth, pixels[shots], task.labels[shots], classes)
            where = {"task": task.name, "model": "none", "seed": seed, "method": PIXELS, "shots": k}
            yield {**where, **rank_figures(ranks, truth, classes)}


def summarise(rows: list[Row]) -> list[Row]:
    """Mean over seeds of the headline figure in percent, and half of its 95 % t interval."""
    cells: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        key = tuple(row[part] for part in ("task", "model", "method", "shots"))
        cells.setdefault(key, []).append(100 * row[HEADLINE])
    names = ("task", "model", "method", "shots")
    return [{**dict(zip(names, key, strict=True)), **interval(values)} for key, values in cells.items()]


def interval(values: list[float]) -> dict[str, float]:
    """Mean of a sample of five, and half of its 95 % t interval."""
    sample = torch.tensor(values, dtype=torch.float64)
    return {"mean": sample.mean().item(), "half": T_95 * sample.std().item() / math.sqrt(len(values))}


def differences(rows: list[Row], first: str, others: Sequence[str]) -> list[Row]:
    """How far one method is ahead of others, in points of the headline figure, seed by seed; laid out as a summary."""
    figures = {tuple(row[p] for p in ("task", "model", "method", "shots", "seed")): 100 * row[HEADLINE] for row in rows}
    ahead = []
    for task, model in dict.fromkeys((row["task"], row["model"]) for row in rows if row["method"] == first):
        for other, k in itertools.product(others, SHOTS):
            there = ("none" if other == PIXELS else model, other, 0 if other == ZERO else k)
            keys = [((task, model, first, k, seed), (task, *there, seed)) for seed in range(SEEDS)]
            pairs = [figures[ours] - figures[theirs] for ours, theirs in keys]
            ahead.append({"task": task, "model": model, "method": other, "shots": k, **interval(pairs)})
    return ahead


def markdown(summary: list[Row]) -> str:
    """A table a task: a row a model and method, a column a number of shots; means and half intervals in percent."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in summary):
        own = [row for row in summary if row["task"] == task]
        lines += [f"**{task}**", "", "| model | method | " + " | ".join(map(str, SHOTS)) + " |", "|---" * 7 + "|"]
        for model, method in dict.fromkeys((row["model"], row["method"]) for row in own):
            found = {row["shots"]: row for row in own if (row["model"], row["method"]) == (model, method)}
            cells = [found.get(k, found.get(0)) for k in SHOTS]
            texts = [f"{cell['mean']:.1f} ± {cell['half']:.1f}" for cell in cells if cell]
            lines.append(f"| {model} | {method} | " + " | ".join(texts) + " |")
        lines.append("")
    return "\n".join(lines)


# Legible in grey: methods differ in marker and line style too.
STYLES = {
    "refined prototypes": {"color": "#d62728", "marker": "^", "linestyle": "-"},
    "linear probe": {"color": "#1f77b4", "marker": "o", "linestyle": "--"},
    "Tip-Adapter": {"color": "#2ca02c", "marker": "s", "linestyle": "-."},
    PIXELS: {"color": "#777777", "marker": "x", "linestyle": ":"},
}


def draw_plot(summary: list[Row], chance: dict[str, float]) -> Figure:
    """A panel a task and model: accuracy over shots, a line a method with its interval; zero-shot and chance level."""
    tasks = list(chance)
    figure = Figure((10, 3.7 * len(tasks) + 0.5), layout="constrained")
    panels = figure.subplots(len(tasks), len(MODELS), sharey="row", squeeze=False)
    for task, line in zip(tasks, panels, strict=True):
        for model, axis in zip(MODELS, line, strict=True):
            own = [row for row in summary if row["task"] == task and row["model"] in (model, "none")]
            for place, (method, style) in enumerate(STYLES.items()):
                rows = [row for row in own if row["method"] == method]
                values, halves = [row["mean"] for row in rows], [row["half"] for row in rows]
                # Side by side, so that no interval hides another.
                shots = [row["shots"] * 1.045 ** (place - 1.5) for row in rows]
                axis.errorbar(shots, values, halves, label=method, capsize=2, markersize=5, **style)
            zero = next(row["mean"] for row in own if row["method"] == ZERO)
            axis.axhline(zero, color="black", linewidth=1, label=ZERO)
            axis.axhline(100 * chance[task], color="black", linewidth=0.8, linestyle=(0, (1, 4)), label="chance")
            axis.set(title=f"{task}, {model}", xlabel="shots a class", xscale="log", ylabel="mean class accuracy (%)")
            axis.set_xticks(SHOTS, [str(k) for k in SHOTS])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9)
    return figure


@dataclass(frozen=True)
class FewShot:
    """Few-shot adaptation of the shipped models: every method, number of shots and seed."""

    fashion_mnist: Path | None = None
    """Folder of the four IDX files; the task is left out without it."""
    out: Annotated[Path, tyro.conf.arg(help_behavior_hint="(default: this folder)")] = HERE
    """Folder for results.json and few_shot.png."""


def main(command: FewShot) -> None:
    """Print the tables, and write the figures and the plot.

    Raises:
        UserError: for missing files of Fashion-MNIST, or an `out` that is no folder.
    """
    check_folder(command.out)
    tasks = [emoji_task(), *([fashion_task(command.fashion_mnist)] if command.fashion_mnist else [])]
    models = {name: oblique_clip.load(name) for name in MODELS}
    rows = [row for task in tasks for part in (measure_floor(task), measure(task, models)) for row in part]
    summary = summarise(rows)
    report = {"format_version": 1, "headline": HEADLINE, "versions": versions(), "summary": summary, "rows": rows}
    command.out.mkdir(parents=True, exist_ok=True)
    write_json(command.out / "results.json", report)
    chance = {task.name: 1 / len(task.classes) for task in tasks}
    draw_plot(summary, chance).savefig(command.out / "few_shot.png", dpi=110)
    print(markdown(summary))
    print("Points that refined prototypes are ahead of each, paired by seed:\n")
    print(markdown(differences(rows, "refined prototypes", (ZERO, "linear probe", "Tip-Adapter", PIXELS))))


if __name__ == "__main__":
    run_script(main, FewShot, "python -m experiments.few_shot.run")
