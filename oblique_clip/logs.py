"""Where a run's figures go while it runs: metrics.jsonl always, and the loggers that `--log` names.

wandb and trackio are optional and keep their own settings: `WANDB_MODE=offline` and `WANDB_PROJECT`, `TRACKIO_DIR`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .config import TrainConfig, to_json
from .errors import UserError
from .files import write_whole

PROJECT = "oblique_clip"
BAD_STEPS = "bad_steps.jsonl"
"""The samples of steps that were not finite."""


class Logger(Protocol):
    """What takes the figures of a step; `failed` says that the run ends with an exception."""

    def log(self, step: int, figures: dict[str, float]) -> None: ...

    def close(self, failed: bool) -> None: ...


class _TensorBoard:
    def __init__(self, config: TrainConfig, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What was said of later steps, before the run was stopped, is not shown.
        purge = {"purge_step": done + 1} if done else {}
        self._writer: Any = SummaryWriter(str(config.out / "tensorboard"), **purge)  # type: ignore[no-untyped-call]

    def log(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, config: TrainConfig, done: int) -> None:
        import wandb

        project, known = os.environ.get("WANDB_PROJECT", PROJECT), config.out / "wandb_id"
        again: dict[str, Any] = (
            {"id": known.read_text(encoding="utf-8"), "resume": "allow"} if done and known.exists() else {}
        )
        try:
            self._run: Any = wandb.init(
                project=project, name=config.out.name, dir=str(config.out), config=to_json(config), **again
            )
            known.write_text(self._run.id, encoding="utf-8")
        except wandb.Error as error:
            raise UserError(f"--log wandb: {_first_line(error)}; `wandb login`, or set WANDB_MODE=offline") from error

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Trackio:
    def __init__(self, config: TrainConfig, done: int) -> None:
        import trackio

        try:
            resume = "allow" if done else "never"
            self._run: Any = trackio.init(project=PROJECT, name=config.out.name, config=to_json(config), resume=resume)
        except Exception as error:  # it has no class of its own: those of sqlite, the disk and its server come through
            raise UserError(f"--log trackio: {_first_line(error)}; see $TRACKIO_DIR") from error

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class _Kind(NamedTuple):
    open: Callable[[TrainConfig, int], Logger]
    """For a run that begins, or that goes on behind so many steps."""
    package: str
    install: str


LOGGERS = {
    "tensorboard": _Kind(_TensorBoard, "tensorboard", "pip install tensorboard"),
    "wandb": _Kind(_Wandb, "wandb", 'pip install "oblique-clip[wandb]"'),
    "trackio": _Kind(_Trackio, "trackio", 'pip install "oblique-clip[trackio]"'),
}


def loggers_of(names: str) -> list[str]:
    """The loggers of a text such as "tensorboard,wandb"; none for an empty one.

    Raises:
        UserError: for one that is not known, or not installed.

    Examples:
        >>> from oblique_clip.logs import loggers_of
        >>> loggers_of("tensorboard")
        ['tensorboard']
        >>> loggers_of("paper")
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: --log: unknown logger 'paper'; there is tensorboard, wandb, trackio
    """
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    for name in chosen:
        if name not in LOGGERS:
            raise UserError(f"--log: unknown logger {name!r}; there is {', '.join(LOGGERS)}")
        if importlib.util.find_spec(LOGGERS[name].package) is None:
            raise UserError(f"--log {name}: {LOGGERS[name].package} is not installed: {LOGGERS[name].install}")
    return list(dict.fromkeys(chosen))


class Log:
    """metrics.jsonl and the loggers of a run, side by side: called with a line of figures and its `step`.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip.config import TrainConfig
        >>> from oblique_clip.logs import Log
        >>> config = TrainConfig(out=Path(tempfile.mkdtemp()), log="")  # no logger beside the file
        >>> with Log(config) as log:
        ...     log({"step": 1, "loss": 2.5})
        >>> print((config.out / "metrics.jsonl").read_text(), end="")
        {"step": 1, "loss": 2.5}
    """

    def __init__(self, config: TrainConfig, done: int = 0) -> None:
        self._out, path = config.out, config.out / "metrics.jsonl"
        self._loggers: list[Logger] = []
        # Until a run has come to its end.
        self._failed = True
        with ExitStack() as opened:
            for name in loggers_of(config.log):
                logger = LOGGERS[name].open(config, done)
                opened.callback(self._close, logger)
                self._loggers.append(logger)
            write_whole(path, "".join(_lines_until(path, done)))
            if (others := self._out / BAD_STEPS).exists():
                write_whole(others, "".join(_lines_until(others, done)))
            self._file = opened.enter_context(path.open("a", encoding="utf-8", buffering=1))
            # Where one cannot be opened, those before it are closed here.
            self._opened = opened.pop_all()

    def _close(self, logger: Logger) -> None:
        logger.close(self._failed)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self._failed = error[0] is not None
        self._opened.close()

    def __call__(self, line: dict[str, float]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        figures = {name: value for name, value in line.items() if name != "step"}
        for logger in self._loggers:
            logger.log(int(line["step"]), figures)

    def note(self, name: str, line: dict[str, Any]) -> None:
        """A line of JSON in a file of its own."""
        with (self._out / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def warn(self, step: int, warning: str) -> None:
        """Say something aloud, and keep it with the figures."""
        print(f"oblique-clip: warning, step {step:,}: {warning}", file=sys.stderr)
        self._file.write(json.dumps({"step": step, "warning": warning}) + "\n")

    def sync(self) -> None:
        """What was said so far is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())


class Silent:
    """A `Log` of a process that says nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, line: dict[str, float]) -> None:
        pass

    def note(self, name: str, line: dict[str, Any]) -> None:
        pass

    def warn(self, step: int, warning: str) -> None:
        pass

    def sync(self) -> None:
        pass


AnyLog = Log | Silent


def _lines_until(path: Path, done: int) -> list[str]:
    """The lines of a file of metrics up to a step: what stands behind it will be said again, and a cut line is none."""
    kept = []
    text = path.read_text(encoding="utf-8", errors="replace") if done and path.exists() else ""
    for line in text.splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= done:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept
