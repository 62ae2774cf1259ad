"""Several models on the same data: every report in a file of its own, and one table of them all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.table import Column as TableColumn
from rich.table import Table

from oblique_clip.checkpoint import fingerprint, load
from oblique_clip.columns import Column
from oblique_clip.config import write_json
from oblique_clip.errors import UserError
from oblique_clip.evaluate.run import EvaluateConfig, evaluate, settings_of

WIDE = 200


def compare(cases: Mapping[str, EvaluateConfig], columns: Sequence[Column], out: Path) -> None:
    """Evaluate each case that `out` does not hold yet, print the table, and write it to `out/results.json`.

    A killed comparison goes on where it stopped: what is finished is read from its file.

    Raises:
        UserError: where `out` holds what came of other settings or of another model.
    """
    reports = {}
    for name, config in cases.items():
        own = out / quote(name, safe=" ()")
        reports[name] = _finished(own, config) or evaluate(replace(config, out=own))
        print(f"{name}: {own}", flush=True)
    table = Table(TableColumn("", no_wrap=True), *(column.heading for column in columns), "skipped")
    for name, report in reports.items():
        skipped = sum(report["evaluation"].get("skipped", {}).values())
        table.add_row(name, *(column.text(report["evaluation"]) for column in columns), str(skipped))
    # In a file there is no edge to fold the figures at.
    Console(width=None if Console().is_terminal else WIDE).print(table)
    write_json(out / "results.json", reports)


def _finished(own: Path, config: EvaluateConfig) -> dict[str, Any] | None:
    """The report that a folder holds, if it does."""
    if not (own / "result.json").is_file():
        return None
    report: dict[str, Any] = json.loads((own / "result.json").read_text(encoding="utf-8"))
    if (report["settings"], report["fingerprint"]) != (settings_of(config), _fingerprint(config.model)):
        raise UserError(f"{own} holds the figures of other settings or another model: name another --out")
    return report


@cache
def _fingerprint(model: Path) -> str:
    return fingerprint(load(model).model)
