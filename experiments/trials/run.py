"""Trials of settings, judged on the validation family alone: learning rates, and fixed scales.

    python -m experiments.trials.run --out runs/trials

Every trial is a run of `oblique_clip.questions.base` of 1,200 steps with seed 100, which no reported run has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oblique_clip.cli import run_script
from oblique_clip.config import TrainConfig, read_json, to_json, write_json
from oblique_clip.errors import UserError
from oblique_clip.questions.base import OBLIQUE, SPHERE
from oblique_clip.questions.temperature import fixed
from oblique_clip.sweep.question import varied
from oblique_clip.sweep.queue import run_queue, what_it_said
from oblique_clip.sweep.results import Run
from oblique_clip.sweep.run import command_of, places_of, shown_progress

RESULTS = Path(__file__).parent / "results.json"
SEED = 100
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
ARMS = {"sphere": SPHERE, "oblique": OBLIQUE, "shared": varied(OBLIQUE, model={"projection": "shared"})}
# Half, once and twice the scale that each learned in its trial of 5e-4.
SCALES = {"sphere": (8.5, 17.0, 34.0), "oblique": (0.57, 1.14, 2.28)}
LAST = 3
"""Validations at the end of a run that are averaged: 608 pictures are few."""


@dataclass(frozen=True)
class Trials:
    """Trials of learning rates and of fixed scales."""

    out: Path = Path("runs/trials")
    """Folder of the runs."""
    jobs: int = 0
    """Runs at a time; 0 takes one a core."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


def trials() -> dict[str, TrainConfig]:
    """Every trial by its name."""
    rates = {f"{arm}-lr-{lr:g}": varied(base, optim={"lr": lr}) for arm, base in ARMS.items() for lr in RATES}
    scales = {f"{arm}-scale-{scale:g}": fixed(ARMS[arm], scale) for arm, own in SCALES.items() for scale in own}
    return {**rates, **scales}


def main(command: Trials) -> None:
    """Run what results.json beside this file does not have, add it there, and print the table.

    Raises:
        UserError: for trials that failed.
    """
    known = read_json(RESULTS)["trials"] if RESULTS.exists() else {}
    wanted = {name: config for name, config in trials().items() if name not in known}
    runs = {name: replace(config, out=command.out / name, seed=SEED) for name, config in wanted.items()}
    for run in runs.values():
        if not (run.out / "config.json").exists():
            run.out.mkdir(parents=True, exist_ok=True)
            write_json(run.out / "config.json", to_json(run))
    places = places_of(command.device, command.jobs, 0)
    with shown_progress(command.out) as show:
        failed = run_queue([run.out for run in runs.values()], places, command_of(test=False), show)
    if failed:
        raise UserError(f"{failed[0]} failed: {what_it_said(failed[0])}")
    found = known | {name: figures(Run(run.out, SEED)) for name, run in runs.items()}
    found = {name: found[name] for name in trials()}
    write_json(RESULTS, {"format_version": 1, "seed": SEED, "trials": found})
    for name, own in found.items():
        print(f"{name:22} {own['mean_of_last']:6.2f} {own['last']:6.2f} {own['scale']:7.3f}")


def figures(run: Run) -> dict[str, Any]:
    """Validation top-1 in percent: of the last validation, and the mean of the last few; the curve, and the scale."""
    steps, values = run.curve("val_top1")
    percent = [round(100 * value, 2) for value in values]
    return {
        "mean_of_last": round(sum(percent[-LAST:]) / LAST, 2),
        "last": percent[-1],
        "scale": run.result["scale"],
        "curve": dict(zip(map(int, steps), percent, strict=True)),
    }


if __name__ == "__main__":
    run_script(main, Trials, "python -m experiments.trials.run")
