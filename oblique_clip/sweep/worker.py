"""One run of a sweep, in a process of its own: trained or gone on with, then judged at its last step.

    python -m oblique_clip.sweep.worker RUN [--built SHARDS]

RUN holds config.json. Every figure of judged.json is of the last step, which nothing chose.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..cli import run_script
from ..config import read_run_config
from ..files import write_whole
from .results import JUDGED


@dataclass(frozen=True)
class Work:
    """One run of a sweep."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder with the config.json of the run."""
    built: Path | None = None
    """Folder of shards built by experiments/data, whose sources are judged too."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    tied: bool = False
    """Stop in good order where the standard input ends, as it does when the queue that began this process is gone."""


def main(work: Work) -> None:
    """Do what is left to do of the run."""
    from ..device import keep_freed_memory
    from ..train import train

    if work.tied:
        threading.Thread(target=_stop_with_input, daemon=True).start()
    config = replace(read_run_config(work.run), out=work.run, device=work.device, threads=work.threads)
    keep_freed_memory()
    if not (work.run / "result.json").exists():
        train(config, quiet=True, resume=True)
    # In one line: the counts of some thousand classes are not to be read.
    write_whole(work.run / JUDGED, json.dumps(judged(work.run, work.built, work.device), separators=(",", ":")) + "\n")


def judged(run: Path, built: Path | None, device: str) -> dict[str, Any]:
    """Every evaluation of a finished run's last step."""
    from ..checkpoint import LAST, load
    from ..device import pick_device
    from ..evaluate.judge import judge
    from ..evaluate.tasks import HeldOut

    config = read_run_config(run)
    loaded = load(run / "checkpoints" / LAST, pick_device(device))
    return judge(loaded, HeldOut(config.data), built)


def _stop_with_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    run_script(main, Work, "python -m oblique_clip.sweep.worker")
