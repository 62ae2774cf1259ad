"""Tables of runs, a row a run: figures and settings, what differs besides the topology, and how each was run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..columns import COLUMNS, NOTHING, Column
from ..config import TrainConfig, read_run_config
from ..resume import FREE

SETTINGS = "settings"


@dataclass(frozen=True)
class Grid:
    """Rows of texts under headings; `groups` stand above so many headings each, where there are any."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    groups: tuple[tuple[str, int], ...] = ()

    @property
    def full_headings(self) -> tuple[str, ...]:
        """Each with its group."""
        above = [group for group, span in self.groups for _ in range(span)] or [""] * len(self.headings)
        return tuple(": ".join(filter(None, pair)) for pair in zip(above, self.headings, strict=True))

    @property
    def texts(self) -> set[int]:
        """Columns that hold other than figures."""
        columns = enumerate(zip(*self.rows, strict=True))
        return {i for i, column in columns if any(not re.match(r"[+-]?\d|-$", text) for text in column)}


# Beside the figures of the comparison.
OWN = (
    Column("topology", ("topology",), group=SETTINGS, short="topology"),
    Column("seed", ("seed",), group=SETTINGS, short="seed"),
    Column("steps", ("steps",), group=SETTINGS, short="steps"),
    Column("pairs a step", ("batch_size",), group=SETTINGS, short="pairs a step"),
    Column("parameters", ("parameters",), group=SETTINGS, short="parameters"),
)
# Settings that these columns say already, or that follow from them.
SAID = {*FREE, "topology", "embed_dim", "seed", "steps", "batch_size", "eval_every", "start_from"}


def runs_grid(runs: dict[str, Path], results: dict[str, dict[str, Any]]) -> Grid:
    """Every figure of `COLUMNS` and what was set; of other settings those in which the runs differ.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip.config import OptimConfig, TrainConfig, to_json, write_json
        >>> from oblique_clip.page.runs import runs_grid
        >>> runs = {name: Path(tempfile.mkdtemp()) for name in ("low", "high")}
        >>> for name, lr in (("low", 1e-4), ("high", 1e-3)):
        ...     write_json(runs[name] / "config.json", to_json(TrainConfig(optim=OptimConfig(lr=lr))))
        >>> grid = runs_grid(runs, {"low": {"scale": 2.0}, "high": {"scale": 3.0}})
        >>> [[row[0], *(row[grid.headings.index(name)] for name in ("lr", "scale"))] for row in grid.rows]
        [['low', '0.0001', '2.00'], ['high', '0.001', '3.00']]
    """
    differing = _differing({name: read_run_config(run) for name, run in runs.items()})
    figures = [column for column in COLUMNS if column.group]
    found = {column: [column.text(results[name]) for name in runs] for column in (*OWN, *figures)}
    # What no run has, as on other data, takes no room.
    kept = [column for column in found if set(found[column]) != {NOTHING}]
    own, others = [c for c in kept if c.group == SETTINGS], [c for c in kept if c.group != SETTINGS]
    rows = tuple(
        (
            name,
            *(_thousands(found[column][i]) if column.short == "parameters" else found[column][i] for column in own),
            *(texts[i] for texts in differing.values()),
            *(found[column][i] for column in others),
        )
        for i, name in enumerate(runs)
    )
    headings = ("run", *(c.short for c in own), *differing, *(c.short for c in others))
    groups = {"": 1, SETTINGS: len(own) + len(differing)}
    for column in others:
        groups[column.group] = groups.get(column.group, 0) + 1
    return Grid("Runs", headings, rows, tuple((group, span) for group, span in groups.items() if span))


def differences_grid(remaining: dict[str, dict[str, Any]]) -> Grid:
    """Of `report.differences` what is not the same for all runs; everything where there is one run."""
    entries = list(remaining.values())
    names = [name for name in entries[0] if len(entries) == 1 or len({str(entry[name]) for entry in entries}) > 1]
    rows = tuple((run, *(str(entry[name]) for name in names)) for run, entry in remaining.items())
    return Grid("What differs besides the topology", ("run", *names), rows)


@dataclass(frozen=True)
class Fact:
    """How some runs came to be: in words, the command, and what training warned of."""

    runs: tuple[str, ...]
    text: str
    command: str
    warnings: tuple[str, ...]


def facts(results: dict[str, dict[str, Any]]) -> list[Fact]:
    """One for each different answer."""
    found: dict[Fact, list[str]] = {}
    for name, result in results.items():
        text = (
            f"{result.get('steps')} steps of {result.get('batch_size')} pairs, seed {result.get('seed')}, "
            f"{result.get('threads')} threads on {result.get('device')}, torch {_within(result, 'versions', 'torch')}"
        )
        warnings = result.get("warnings")
        told = tuple(map(str, warnings)) if isinstance(warnings, list) else ()
        found.setdefault(Fact((), text, str(result.get("command", "")), told), []).append(name)
    return [dataclasses.replace(fact, runs=tuple(names)) for fact, names in found.items()]


def _within(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _thousands(text: str) -> str:
    return f"{int(text):,}" if text.isascii() and text.isdigit() else text


def _differing(configs: dict[str, TrainConfig]) -> dict[str, list[str]]:
    """Name and texts, a run each, of the settings in which runs differ."""
    settings = [dict(_settings(config)) for config in configs.values()]
    names = [name for name in settings[0] if name not in SAID]
    texts = {name: [_text(own[name]) for own in settings] for name in names}
    return {name: values for name, values in texts.items() if len(set(values)) > 1}


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        if dataclasses.is_dataclass(value):
            yield from _settings(value)
        else:
            yield part.name, value


def _text(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or NOTHING
    return f"{value:g}" if isinstance(value, float) else str(value)
