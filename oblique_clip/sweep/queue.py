"""The queue of a sweep: runs in processes of their own, a few at a time, each on cores or a GPU of its own."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..config import read_json
from ..signals import Stopped, watched
from .results import is_done

POLL_SECONDS = 0.5
# What a run takes is not learnt from one that had little left to do.
LEARNT_BELOW = 0.5
LOG = "worker.log"
"""In a run folder: what its process said."""


@dataclass(frozen=True)
class Place:
    """Where one run at a time computes."""

    number: int
    device: str
    threads: int

    @property
    def environment(self) -> dict[str, str]:
        # Before torch is imported: threads beyond these would wait by spinning on the cores of other runs.
        return {**os.environ, "OMP_NUM_THREADS": str(self.threads)} if self.threads else dict(os.environ)


@dataclass
class Job:
    """A run folder and its process."""

    folder: Path
    process: subprocess.Popen[bytes]
    share_before: float
    """What was done of it before, in [0, 1]."""
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """That the whole run takes, as far as can be told; infinite at its beginning."""
        new = share_done(self.folder) - self.share_before
        return (time.monotonic() - self.began) / new if new > 0 else math.inf


@dataclass(frozen=True)
class Progress:
    """How far a queue has come."""

    done: int
    failed: int
    total: int
    running: dict[Path, float]
    """What is done, in [0, 1], of each run in progress."""
    seconds_left: float
    """Estimate; infinite before anything is known."""


Command = Callable[[Path, Place], list[str]]


def run_queue(
    folders: Sequence[Path], places: Sequence[Place], command: Command, show: Callable[[Progress], None]
) -> list[Path]:
    """Run every folder that is not done, as many at a time as there are places.

    A run that fails is left as it is, and the others go on. A process whose queue is gone, even by `kill -9`, saves its
    state and stops.

    Args:
        folders: of runs, each with its config.json, in the order in which they are begun.
        command: what trains and judges a run at a place; it reads its standard input to the end and then stops.
        show: takes the progress, twice a second.

    Returns:
        Folders of the runs that failed.

    Raises:
        Stopped: when a signal came; the runs in progress have then saved their states.
    """
    queue = _Queue([folder for folder in folders if not is_done(folder)], places, command)
    before = len(folders) - len(queue.waiting)
    show(Progress(before, 0, len(folders), {}, math.inf if queue.waiting else 0.0))
    with watched() as signals:
        try:
            while queue.waiting or queue.jobs:
                queue.start()
                time.sleep(POLL_SECONDS)
                queue.collect()
                running = {job.folder: share_done(job.folder) for job in queue.jobs.values()}
                show(Progress(before + queue.done, len(queue.failed), len(folders), running, queue.seconds_left()))
                if signals.number:
                    name = signal.Signals(signals.number).name
                    raise Stopped(signals.number, f"stopped by {name}, all saved; the same command goes on")
        finally:
            queue.stop()
    return queue.failed


class _Queue:
    def __init__(self, waiting: list[Path], places: Sequence[Place], command: Command) -> None:
        self.waiting, self.places, self.command = waiting, places, command
        self.jobs: dict[Place, Job] = {}
        self.done = 0
        self.failed: list[Path] = []
        self._took: dict[str, list[float]] = defaultdict(list)

    def start(self) -> None:
        """Begin a waiting run at every place that is free."""
        for place in self.places:
            if place not in self.jobs and self.waiting:
                folder = self.waiting.pop(0)
                with (folder / LOG).open("ab") as log:
                    process = subprocess.Popen(
                        self.command(folder, place),
                        env=place.environment,
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=log,
                    )
                self.jobs[place] = Job(folder, process, share_done(folder))

    def collect(self) -> None:
        """Take note of runs that have ended."""
        for place, job in list(self.jobs.items()):
            if job.process.poll() is None:
                continue
            del self.jobs[place]
            if is_done(job.folder):
                self.done += 1
                if job.share_before < LEARNT_BELOW:
                    whole = (time.monotonic() - job.began) / (1 - job.share_before)
                    self._took[job.folder.parent.name].append(whole)
            else:
                self.failed.append(job.folder)

    def stop(self) -> None:
        """Ask what runs to save and stop, and wait for it."""
        for job in self.jobs.values():
            job.process.terminate()
        for job in self.jobs.values():
            job.process.wait()

    def seconds_left(self) -> float:
        """By the time that finished runs of the same arm took, else by the mean of all that is known."""
        running = {job.folder: job.seconds for job in self.jobs.values()}
        known = [seconds for own in self._took.values() for seconds in own]
        known += [seconds for seconds in running.values() if math.isfinite(seconds)]
        if not known:
            return math.inf
        anything = sum(known) / len(known)
        left = 0.0
        for folder in (*running, *self.waiting):
            own = self._took[folder.parent.name]
            whole = sum(own) / len(own) if own else anything
            whole = running[folder] if math.isfinite(running.get(folder, math.inf)) else whole
            left += whole * (1 - share_done(folder))
        return left / min(len(self.places), len(running) + len(self.waiting) or 1)


def share_done(folder: Path) -> float:
    """What is done of a run, in [0, 1], by the last line of its metrics.jsonl; 0 where its steps are not known."""
    if (folder / "result.json").exists():
        return 1.0 if is_done(folder) else 0.99
    try:
        steps = read_json(folder / "config.json")["optim"]["steps"]
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            step = json.loads(file.read().splitlines()[-1])["step"]
        return float(min(0.99, step / steps))
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return 0.0


def what_it_said(folder: Path) -> str:
    """The last line that the process of a run wrote."""
    try:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "nothing"
    return lines[-1] if lines else "nothing"
