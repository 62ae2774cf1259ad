"""The figures of a bench as Markdown: every row for the README beside this file, the main ones for that at the top.

python -m experiments.bench.table          # writes both from cpu*.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from oblique_clip.bench.run import VERDICTS, figure

FOLDER = Path(__file__).parent
FIGURES = ("cpu.json", "cpu-optimizer.json", "cpu-classifier.json")
Report = dict[str, Any]
HEADING = ["| what | peer | ours | peer's | ratio | aim | |", "|---|---|---|---|---|---|---|"]


class Headline(NamedTuple):
    """Rows of the long table that stand in the short one too."""

    what: str
    """How their titles begin; a regular expression, as the other."""
    peers: str = ".*"
    """Their peers."""


HEADLINES = (
    Headline(r"step: float32$", r"open_clip(?!, cut to \d+$).*"),
    Headline(r"step: bf16$", r"open_clip in float32|open_clip in bf16, keeping memory"),
    Headline(r"step: float32, ", r"open_clip, keeping memory"),
    Headline(r"step: (oblique|project)"),
    Headline(r"flags: --patch-dropout"),
    Headline(r"profile: .*: share"),
    Headline(r"loss: "),
    Headline(r"micro: .*memory"),
    Headline(r"optimizer: .*small"),
    Headline(r"classifier: "),
    Headline(r"retrieval: "),
    Headline(r"start: "),
)


def title(row: dict[str, Any]) -> str:
    return f"{row['suite']}: {row['what']}"


def line(row: dict[str, Any]) -> str:
    """A row; seconds below one in milliseconds."""
    ours, peer = (figure(row[side], row["unit"]) for side in ("ours", "peer"))
    cells = [title(row), row["peer_name"], ours, peer, f"{row['ratio']:.3g}", row["aim"], VERDICTS[row["reached"]]]
    return "| " + " | ".join(cells) + " |"


def rows(reports: Sequence[Report]) -> Iterator[dict[str, Any]]:
    for report in reports:
        yield from report["rows"]


def machines(reports: Sequence[Report]) -> str:
    """The command, machine and versions of each report."""
    return "\n\n".join(_machine(report) for report in reports)


def _machine(report: Report) -> str:
    return f"`{report['command']}` on {_where(report)}"


def _where(report: Report) -> str:
    where = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return (
        f"{where['cpu']}, {where['instructions']}, {where['cores']} cores, {where['threads']} threads, "
        f"{report['date']}; {versions}"
    )


def whole(reports: Sequence[Report]) -> str:
    """Every row, every note, and where they come from."""
    notes = [f"- {title(row)}, {row['peer_name']}: {row['note']}" for row in rows(reports) if row["note"]]
    return "\n".join([*HEADING, *map(line, rows(reports)), "", *notes, "", machines(reports)])


def short(reports: Sequence[Report]) -> str:
    """The rows of `HEADLINES`."""
    chosen = [
        line(row)
        for headline in HEADLINES
        for row in rows(reports)
        if re.match(headline.what, title(row)) and re.fullmatch(headline.peers, row["peer_name"])
    ]
    return "\n".join([*HEADING, *chosen, "", f"On {_where(reports[0])}."])


def filled(text: str, block: str) -> str:
    """A README with what stands between its two comments replaced."""
    return re.sub(
        r"(<!-- bench -->\n).*?(<!-- /bench -->)", lambda match: f"{match[1]}{block}\n{match[2]}", text, flags=re.S
    )


PLACES = ((FOLDER / "README.md", whole), (FOLDER.parents[1] / "README.md", short))


def read() -> list[Report]:
    return [json.loads((FOLDER / name).read_text(encoding="utf-8")) for name in FIGURES]


def main() -> None:
    for path, block in PLACES:
        path.write_text(filled(path.read_text(encoding="utf-8"), block(read())), encoding="utf-8")


if __name__ == "__main__":
    main()
