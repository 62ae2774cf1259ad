"""The verbs of the command line: each parses its flags and calls one function of the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .ablate import AblateConfig
from .ablate import ablate as run_ablate
from .bench.measure import BenchConfig
from .bench.run import bench as run_bench
from .check import CheckCommand, check
from .checkpoint import config_of
from .config import FORMS, SIZES, TrainConfig, model_config, read_run_config
from .describe import DataCommand, describe
from .device import keep_freed_memory
from .embed import EmbedConfig
from .embed import embed as run_embed
from .errors import UserError
from .evaluate.run import EvaluateConfig
from .evaluate.run import evaluate as run_evaluate
from .explain import ExplainConfig
from .explain import explain as run_explain
from .export import ExportConfig
from .export import export as run_export
from .flags import parse
from .report import ReportConfig, print_evaluation, print_skipped
from .report import report as run_report
from .search import SearchConfig, print_answer
from .search import search as run_search
from .start import changed
from .train import train as run_train


@dataclass(frozen=True)
class TrainCommand:
    """Train one model, or go on with a run."""

    config: TrainConfig
    resume: Path | None = None
    """Folder of a run to go on with, as if it had never stopped: its settings are those of all the flags here."""
    override: tuple[str, ...] = ()
    """Settings, such as lr, that --resume may find changed by other flags; it refuses them otherwise."""


def train(args: list[str]) -> None:
    if (run := _flag(args, "--resume")) is not None:
        return _go_on(Path(run), args)
    # Size and form, or a model to go on from, choose the defaults of all the other flags, so they are read first.
    size, form, source = _flag(args, "--size"), _flag(args, "--form"), _flag(args, "--start-from")
    if source and (size or form):
        raise UserError("--start-from brings the size and form of its model: leave out --size and --form")
    if form and form not in FORMS:
        raise UserError(f"unknown form {form!r}; there is {', '.join(FORMS)}")
    base = config_of(source) if source else model_config(size or "tiny", form or "oblique")  # type: ignore[arg-type]
    command: TrainCommand = parse(TrainCommand, "oblique-clip train", args, TrainCommand(TrainConfig(model=base)))
    if command.override:
        raise UserError("--override is for settings of a run that --resume goes on with")
    config = command.config
    _train(replace(config, model=changed(config.model, base)) if source else config)


def _go_on(run: Path, args: list[str]) -> None:
    before = replace(read_run_config(run), out=run)
    command: TrainCommand = parse(TrainCommand, "oblique-clip train", args, TrainCommand(before))
    if command.config.out != run:
        raise UserError(f"--resume {run} goes on in its own folder: leave out --out")
    _train(command.config, resume=True, override=command.override)


def _train(config: TrainConfig, **options: Any) -> None:
    keep_freed_memory()
    if result := run_train(config, **options):
        print_evaluation(result["evaluation"])
        print_skipped(result["skipped"])


def evaluate(args: list[str]) -> None:
    evaluation = run_evaluate(parse(EvaluateConfig, "oblique-clip evaluate", args))["evaluation"]
    print_evaluation(evaluation)
    print_skipped(evaluation.get("skipped", {}))


def ablate(args: list[str]) -> None:
    config: AblateConfig = parse(AblateConfig, "oblique-clip ablate", args)
    if config.size not in SIZES:
        raise UserError(f"unknown size {config.size!r}; there is {', '.join(SIZES)}")
    keep_freed_memory()
    run_ablate(replace(config, forms=tuple(dict.fromkeys(config.forms))))


def report(args: list[str]) -> None:
    run_report(parse(ReportConfig, "oblique-clip report", args))


def explain(args: list[str]) -> None:
    print(f"drawing: {run_explain(parse(ExplainConfig, 'oblique-clip explain', args))}")


def embed(args: list[str]) -> None:
    config: EmbedConfig = parse(EmbedConfig, "oblique-clip embed", args)
    info = run_embed(config)
    print(f"{info['pictures']:,} pictures on {info['topology']}: {config.out}")
    print_skipped(info["skipped"])


def search(args: list[str]) -> None:
    print_answer(run_search(parse(SearchConfig, "oblique-clip search", args)))


def export(args: list[str]) -> None:
    config: ExportConfig = parse(ExportConfig, "oblique-clip export", args)
    for name, difference in run_export(config).items():
        checked = "not run, as onnxruntime is missing" if difference is None else f"{difference:.1e} from the model"
        print(f"{config.out / name}: {checked}")


def data(args: list[str]) -> None:
    if args[:1] == ["check"]:
        check(parse(CheckCommand, "oblique-clip data check", args[1:]))
    else:
        describe(parse(DataCommand, "oblique-clip data", args))


def bench(args: list[str]) -> None:
    run_bench(parse(BenchConfig, "oblique-clip bench", args))


def _flag(args: Sequence[str], name: str) -> str | None:
    """The last value given to a flag, as `--name value` or `--name=value`; None for none."""
    for place in reversed(range(len(args))):
        if args[place].startswith(f"{name}="):
            return args[place].split("=", 1)[1]
        if args[place] == name and place + 1 < len(args):
            return args[place + 1]
    return None
