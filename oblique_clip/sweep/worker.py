"""One run of a sweep, in a process of its own: trained or gone on with, then judged at its last step.

    python -m oblique_clip.sweep.worker RUN [--built SHARDS]

RUN holds config.json. Every figure of judged.json is of the last step, which nothing chose.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from filelock import FileLock

from ..cli import run_script
from ..config import read_run_config
from ..files import write_whole
from .results import JUDGED, is_done

LOCK = "run.lock"


@dataclass(frozen=True)
class Work:
    """One run of a sweep."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder with the config.json of the run."""
    built: Path | None = None
    """Folder of shards built by experiments/data, whose sources are judged too."""
    test: bool = True
    """Judge on what is kept for the test too; else on the validation families alone."""
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
    # Questions share arms, so that another sweep may be at the same run; what it leaves to do is done after it.
    with FileLock(work.run / LOCK):
        if is_done(work.run):
            return
        config = replace(read_run_config(work.run), out=work.run, device=work.device, threads=work.threads)
        keep_freed_memory()
        if not (work.run / "result.json").exists():
            train(config, quiet=True, resume=True)
        # In one line: the counts of some thousand classes are not to be read.
        write_whole(work.run / JUDGED, json.dumps(judged(work), separators=(",", ":")) + "\n")


def judged(work: Work) -> dict[str, Any]:
    """Every evaluation of a finished run's last step."""
    from ..checkpoint import LAST, load
    from ..device import pick_device
    from ..evaluate.judge import judge
    from ..evaluate.tasks import HeldOut, validation_score

    loaded = load(work.run / "checkpoints" / LAST, pick_device(work.device))
    held_out = HeldOut(read_run_config(work.run).data)
    return judge(loaded, held_out, work.built) if work.test else {"validation": validation_score(loaded, held_out)}


def _stop_with_input() -> None:
    # Not by sys.stdin, whose lock this thread would still hold when Python ends.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    run_script(main, Work, "python -m oblique_clip.sweep.worker")
