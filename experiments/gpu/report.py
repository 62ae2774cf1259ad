"""What the runs on a data set come to: means over seeds, paired differences, costs, curves."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.zero_shot import folders, retrieval
from oblique_clip.columns import Column, value_at
from oblique_clip.config import read_run_config, to_json, write_json
from oblique_clip.files import write_whole
from oblique_clip.report import ReportConfig, report
from oblique_clip.sweep.answer import Table, between, plus_minus
from oblique_clip.sweep.statistics import paired, t_interval

from .settings import ARMS, CONTRASTS, PRIMARY

SUITE = (
    Column("top-1 %", ("classification", "top1")),
    Column("text to image R@5 %", ("retrieval", "text_to_image_r@5")),
    Column("image to text R@5 %", ("retrieval", "image_to_text_r@5")),
)
COLUMNS = {"imagenet": folders.COLUMNS[:-1], "captions": retrieval.COLUMNS, "suite": SUITE}
"""Figures by the folder of the evaluation; chance, the last of ImageNet's, is the same for all."""


@dataclass(frozen=True)
class Judged:
    """A finished run."""

    size: str
    arm: str
    seed: int
    out: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "result.json").read_text(encoding="utf-8")))


Figures = dict[str, float]
"""In %, by the name of the evaluation and the heading of the column."""


def write_report(root: Path, dataset: str, runs: Sequence[Judged]) -> Path:
    """Write `root/report.md`, `root/results.json` and the curves of each size, and print the tables."""
    figures = {run.out: figures_of(root / "evaluations", run) for run in runs}
    parts = [f"# {dataset}: oblique(32,16) against CLIP"]
    for size in dict.fromkeys(run.size for run in runs):
        own = [run for run in runs if run.size == size]
        parts += [f"## {size}", *(f"{table.title}\n\n{table.markdown()}" for table in tables(own, figures))]
        page = _draw(root / "curves" / size, own).relative_to(root)
        parts.append(f"[Curves, and what the arms differ in besides]({page.as_posix()})")
    text = "\n\n".join(parts) + "\n"
    print(text)
    write_json(root / "results.json", summary(dataset, runs, figures))
    write_whole(root / "report.md", text)
    return root / "report.md"


def _draw(folder: Path, runs: Sequence[Judged]) -> Path:
    """The page of `oblique-clip report`; its tables are of the shipped set, which these runs have not seen."""
    with redirect_stdout(io.StringIO()):
        report(ReportConfig(tuple(run.out for run in runs), folder))
    return folder / "report.html"


def figures_of(evaluations: Path, run: Judged) -> Figures:
    """Everything that was measured of a run."""
    found: Figures = {}
    for kind, columns in COLUMNS.items():
        path = evaluations / kind / "results.json"
        reports: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for name, judged in reports.items():
            # The suite's are named by the model and the data set.
            if name != f"{run.out}" and not name.startswith(f"{run.out} "):
                continue
            data = name.removeprefix(f"{run.out}").strip() or kind
            for column in columns:
                value = value_at(judged["evaluation"], column.path)
                if isinstance(value, int | float):
                    found[f"{data} {column.heading}"] = 100 * float(value)
    return found


def tables(runs: Sequence[Judged], figures: Mapping[Path, Figures]) -> Iterator[Table]:
    """Of the runs of one size: means, differences with every seed, and costs."""
    arms = [arm for arm in ARMS if any(run.arm == arm for run in runs)]
    names = list(dict.fromkeys(name for run in runs for name in figures[run.out]))
    values = {(arm, name): by_seed(runs, figures, arm, name) for arm in arms for name in names}
    rows = [(name, *(_mean(values[arm, name]) for arm in arms)) for name in names]
    yield Table("Mean over seeds ± half of its 95 % interval", ("figure", *arms), tuple(rows))
    ahead = [
        (f"{'primary: ' * (pair == PRIMARY)}{' - '.join(pair)}", name, between(paired(one, other)),
         ", ".join(f"{one[seed] - other[seed]:+.2f}" for seed in sorted(one.keys() & other.keys())))
        for pair in CONTRASTS if set(pair) <= set(arms)
        for name in names
        for one, other in [(values[pair[0], name], values[pair[1], name])]
        if one.keys() & other.keys()
    ]  # fmt: skip
    yield Table("Differences in points, paired by seed", ("arms", "figure", "mean [95 %]", "each seed"), tuple(ahead))
    yield costs([run for arm in arms for run in runs if run.arm == arm])


def by_seed(runs: Sequence[Judged], figures: Mapping[Path, Figures], arm: str, name: str) -> dict[int, float]:
    """A figure of each run of an arm, by its seed."""
    own = [run for run in runs if run.arm == arm and name in figures[run.out]]
    return {run.seed: figures[run.out][name] for run in own}


def _mean(values: Mapping[int, float]) -> str:
    return plus_minus(t_interval(list(values.values()))) if values else "-"


def costs(runs: Sequence[Judged]) -> Table:
    """What each run took, and what became of its scale."""
    rows = []
    for run in runs:
        result = run.result
        hours = result["train_seconds"] * result["processes"] / 3600
        counts = (f"{result['parameters']:,}", f"{result['steps']:,}", f"{sum(result['skipped'].values()):,}")
        figures = (f"{result['loss']:.3f}", f"{result['scale']:.2f}", f"{result['images_per_second']:,.0f}")
        rows.append((f"{run.arm}-{run.seed}", *counts, *figures, f"{hours:.2f}", str(result["bad_steps"])))
    headings = ("run", "parameters", "steps", "skipped", "loss", "scale", "images/s", "hours x processes", "bad steps")
    return Table("What runs took", headings, tuple(rows))


def summary(dataset: str, runs: Sequence[Judged], figures: Mapping[Path, Figures]) -> dict[str, Any]:
    """As JSON: of every run its settings, what it took, and its figures."""
    told = ("loss", "scale", "steps", "parameters", "images_per_second", "train_seconds", "processes", "skipped",
            "bad_steps", "warnings", "versions")  # fmt: skip
    every = []
    for run in runs:
        settings = {name: value for name, value in to_json(read_run_config(run.out)).items() if name != "out"}
        took = {name: run.result[name] for name in told}
        every.append(
            {
                "size": run.size,
                "arm": run.arm,
                "seed": run.seed,
                "figures": figures[run.out],
                **took,
                "config": settings,
            }
        )
    return {"format_version": 1, "dataset": dataset, "primary": PRIMARY, "runs": every}
