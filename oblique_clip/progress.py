"""What a training run has come to, for its state on disk and for the eyes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .data.order import START, Position

# What each process counts for itself.
COUNTS = ("read", "missing", "used", "gone")


@dataclass
class Come:
    """What a run has come to."""

    position: Position = START
    """Of this process."""
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    busy: float = 0.0
    """Seconds of training and of waiting for its data."""
    images: int = 0
    epoch: int = 0
    read: int = 0
    """Samples of this epoch that could be used, by this process."""
    missing: int = 0
    """Those that could not."""
    used: int = 0
    """`read` of all epochs."""
    gone: int = 0
    """`missing` of all epochs."""
    lost: Counter[str] = field(default_factory=Counter)
    """Those of the first epoch that could not, by cause."""
    bad_steps: int = 0
    bad_row: list[int] = field(default_factory=list)
    """The bad steps since the last good one."""
    clamped: int = 0
    """Steps in a row with the scale at its clamp, of those that were logged."""
    drift: float = 0.0
    """Largest distance of a point from its manifold that was found."""
    warnings: dict[str, str] = field(default_factory=dict)
    """By kind."""
    resumed: int = 0
    """How often the run was gone on with."""

    def facts(self) -> dict[str, Any]:
        """As JSON, but for the position."""
        return {name: value for name, value in vars(self).items() if name != "position"}

    @classmethod
    def of(cls, facts: dict[str, Any], position: Position) -> Come:
        """What `facts` said, gone on with once more."""
        return cls(**{**facts, "position": position, "lost": Counter(facts["lost"]), "resumed": facts["resumed"] + 1})


@contextmanager
def progress_bar(steps: int, title: str, quiet: bool) -> Iterator[Callable[..., None]]:
    """A bar on the terminal; what is yielded takes steps done, the last figures and pairs a second."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  scale {task.fields[scale]:.2f}  {task.fields[rate]:.0f} img/s"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, disable=quiet) as progress:
        task = progress.add_task(title, total=steps, loss=float("nan"), scale=float("nan"), rate=0.0)

        def show(done: int, figures: dict[str, float], rate: float) -> None:
            nothing = float("nan")
            loss, scale = figures.get("loss", nothing), figures.get("scale", nothing)
            progress.update(task, completed=done, loss=loss, scale=scale, rate=rate)

        yield show
