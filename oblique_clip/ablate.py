"""The main job: the same data, steps and seed for every form, one table and one page at the end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .config import (
    FORMS,
    DataConfig,
    Form,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    check_ranges,
    model_config,
    read_run_config,
    write_json,
)
from .errors import UserError
from .page.write import write_page
from .report import differences, print_tables
from .train import train


@dataclass(frozen=True)
class AblateConfig:
    """Train and judge several forms under one budget."""

    size: str = "tiny"
    """A name in the table of sizes."""
    forms: tuple[Form, ...] = FORMS
    """Forms to compare: clip, sphere and oblique."""
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(epochs=12, batch_size=64))
    out: Path = Path("runs/ablate")
    """Folder with a run folder a form, result.json and report.html."""
    seed: int = 0
    """Seed of weights, data order and augmentation, the same for every form."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    threads: int = 0
    """CPU threads of a run; 0 leaves torch's choice, or with --preset shares the cores among the jobs."""
    preset: str | None = None
    """Run a question in place of the forms: topology, temperature, noise, equilibrium, distance, tokens, nested, scale,
    all, or a Python file with a QUESTION. Its runs bring their own settings; flags of these are refused."""
    seeds: int | None = None
    """Seeds of every arm of a question; the question's own where it is not given."""
    length: float = 1.0
    """Length of the runs of a question in units of its own; 0.01 for a dry run."""
    jobs: int = 0
    """Runs of a question at a time; 0 takes one a GPU, or one a core."""
    built: Path | None = None
    """Folder of shards built by experiments/data: runs of a question are judged on its openmoji, art4apps and tuxpaint
    too."""


OF_FORMS = ("size", "forms", "data", "loss", "optim", "seed")
OF_QUESTIONS = ("seeds", "length", "jobs", "built")


def ablate(config: AblateConfig) -> dict[str, Any]:
    """Train what is not trained yet, compare, and write result.json and report.html; or answer a question.

    Raises:
        UserError: for a configuration that cannot be run, or a folder with runs of another configuration.
    """
    check_ranges(config)
    _refuse_unread(config)
    if config.preset is not None:
        from .sweep.run import sweep

        return sweep(config)
    if not config.forms:
        raise UserError(f"--forms names no form; there is {', '.join(FORMS)}")
    runs: dict[str, TrainConfig] = {form: _run_config(config, form) for form in config.forms}
    for run in runs.values():
        _refuse_other(run)
    results = {form: _train_once(run) for form, run in runs.items()}
    remaining = differences({form: run.model for form, run in runs.items()})
    report = {"format_version": 1, "runs": results, "differences": remaining}
    write_json(config.out / "result.json", report)
    page = write_page(
        config.out, {form: run.out for form, run in runs.items()}, results, remaining, device=config.device
    )
    print_tables(results, remaining)
    print(f"page: {page}")
    return report


def _refuse_unread(config: AblateConfig) -> None:
    """A flag that decides nothing is a mistake: runs of a question bring their own settings."""
    unread = OF_FORMS if config.preset is not None else OF_QUESTIONS
    given = [name for name in unread if getattr(config, name) != getattr(AblateConfig(), name)]
    if given:
        said = {"data": "data options do", "loss": "loss options do", "optim": "optim options do"}
        when = "with" if config.preset is not None else "without"
        raise UserError(f"{said.get(given[0], f'--{given[0]} does')} nothing {when} --preset")


def _run_config(config: AblateConfig, form: Form) -> TrainConfig:
    model: ModelConfig = model_config(config.size, form)
    return TrainConfig(
        model, config.data, config.loss, config.optim, config.out / form, config.seed, config.device, config.threads
    )


def _train_once(run: TrainConfig) -> dict[str, Any]:
    finished = run.out / "result.json"
    if finished.exists():
        print(f"{run.out}: finished before, kept")
        return dict(json.loads(finished.read_text()))
    # One that was stopped goes on.
    return train(run, resume=(run.out / "config.json").exists())


def _refuse_other(run: TrainConfig) -> None:
    """A finished run counts only where it is the run asked for; where it was computed does not matter."""
    if not all((run.out / name).exists() for name in ("result.json", "config.json")):
        return
    there = read_run_config(run.out)
    names = [part.name for part in fields(run) if part.name not in ("out", "device", "threads")]
    different = [name for name in names if getattr(there, name) != getattr(run, name)]
    if different:
        raise UserError(f"{run.out} holds a run of another {different[0]}; name another --out or remove it")
