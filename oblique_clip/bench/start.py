"""What a fresh interpreter needs to import the package and to print the help."""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial

import torch

from .measure import BenchConfig, Row, Task, faster, interleaved

COMMANDS = {
    "bare": ("-c", "pass"),
    "ours": ("-c", "import oblique_clip"),
    "help": ("-m", "oblique_clip", "--help"),
    "import open_clip": ("-c", "import open_clip"),
}
HELP_SECONDS = 0.6
IMPORT_SECONDS = 0.3


def rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """Wall seconds of whole processes, against limits and against open_clip's import."""
    tasks: dict[str, Task] = {name: partial(_interpreter, *command) for name, command in COMMANDS.items()}
    runs = interleaved(tasks, config.rounds, torch.device("cpu"))
    middle = {name: statistics.median(seconds) for name, seconds in runs.items()}
    bare = f"a bare interpreter takes {middle['bare'] * 1000:.0f} ms"
    added = middle["ours"] - middle["bare"]
    return [
        _limited("oblique-clip --help", middle["help"], HELP_SECONDS, runs, "help"),
        _limited(
            "import oblique_clip, beyond a bare interpreter", added, IMPORT_SECONDS, runs, "ours", "bare", note=bare
        ),
        faster("start", "import oblique_clip", runs, "import open_clip", note="torch and the rest load on first use"),
    ]


def _interpreter(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def _limited(what: str, seconds: float, limit: float, runs: dict[str, list[float]], *of: str, note: str = "") -> Row:
    singles = {name: runs[name] for name in of}
    return Row("start", what, seconds, limit, "s", "limit", seconds / limit, "<= 1.0", note, singles)
