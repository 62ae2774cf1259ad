"""The figures of a bench as a Markdown table, for the README beside this file and the one at the top.

python -m experiments.bench.table experiments/bench/cpu.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from oblique_clip.bench.run import VERDICTS, figure


def markdown(report: dict[str, Any]) -> str:
    """A row a figure; seconds below one in milliseconds."""
    lines = ["| what | peer | ours | peer's | ratio | aim | |", "|---|---|---|---|---|---|---|"]
    for row in report["rows"]:
        ours, peer = (figure(row[side], row["unit"]) for side in ("ours", "peer"))
        cells = [f"{row['suite']}: {row['what']}", row["peer_name"], ours, peer, f"{row['ratio']:.3g}"]
        lines.append("| " + " | ".join([*cells, row["aim"], VERDICTS[row["reached"]]]) + " |")
    notes = [f"- {row['what']}: {row['note']}" for row in report["rows"] if row["note"]]
    where = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    machine = (
        f"{where['cpu']} ({where['instructions']}), {where['cores']} cores, {where['threads']} threads; {versions}"
    )
    return "\n".join([*lines, "", *notes, "", machine])


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
