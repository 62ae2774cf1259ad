"""Several models on the same data: every report in a file of its own, and one table of them all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from rich.console import Console
from rich.table import Table

from oblique_clip.checkpoint import load
from oblique_clip.config import to_json, write_json
from oblique_clip.embed import fingerprint
from oblique_clip.errors import UserError
from oblique_clip.evaluate.run import EvaluateConfig, evaluate


class Column(NamedTuple):
    """A figure of a report, in percent: its title and where it stands in `evaluation`."""

    title: str
    path: tuple[str, ...]

    def text(self, evaluation: Mapping[str, Any]) -> str:
        """The figure of one report; empty where the report has none."""
        value: Any = evaluation
        for key in self.path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return "" if value is None else f"{100 * value:.2f}"


def compare(cases: Mapping[str, EvaluateConfig], columns: Sequence[Column], out: Path) -> None:
    """Evaluate each case that `out` does not hold yet, print the table, and write it to `out/results.json`.

    A killed comparison goes on where it stopped: what is finished is read from its file.

    Raises:
        UserError: where `out` holds what came of other settings or of another model.
    """
    reports = {}
    for name, config in cases.items():
        own = out / quote(name, safe=" ()")
        settings = {**to_json(replace(config, out=None)), "fingerprint": fingerprint(load(config.model).model)}
        if not (own / "result.json").is_file():
            print(f"{name} ...", flush=True)
            evaluate(replace(config, out=own))
            write_json(own / "settings.json", settings)
        elif json.loads((own / "settings.json").read_text(encoding="utf-8")) != settings:
            raise UserError(f"{own} holds the figures of other settings or another model: name another --out")
        reports[name] = json.loads((own / "result.json").read_text(encoding="utf-8"))
    table = Table("", *(column.title for column in columns), "skipped")
    for name, report in reports.items():
        evaluation = report["evaluation"]
        figures = (column.text(evaluation) for column in columns)
        table.add_row(name, *figures, str(sum(evaluation.get("skipped", {}).values())))
    Console().print(table)
    write_json(out / "results.json", reports)
