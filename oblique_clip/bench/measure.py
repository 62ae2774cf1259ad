"""How things are measured: runs of all rivals interleaved, medians, and a process of its own where memory is read."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from ..device import forget_peak_memory, peak_memory_mib
from ..plan import PlanConfig

Task = Callable[[], object]


@dataclass(frozen=True)
class BenchConfig:
    """Measure speed and memory against the peers installed here."""

    only: tuple[str, ...] = ()
    """Suites to run; all where none is named."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    rounds: int = 5
    """Interleaved runs of each rival; the median counts. (20 of the step in float32, whose losses are compared; one of
    a full classifier.)"""
    full: bool = False
    """Full sizes where the usual run takes a part (zero-shot classifier, loss of 65,536 pairs), and --compile."""
    json: str | None = None
    """File for every figure, every single run, and the machine."""
    plan: bool = False
    """Measure nothing: print what a training step would take on each of many ranks, by the settings of a step."""
    step: PlanConfig = field(default_factory=PlanConfig)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    suite: str
    what: str
    """What is compared, with its sizes."""
    ours: float
    peer: float
    unit: str
    """Of `ours` and `peer`: "s", "MiB" or "GFLOP/s"."""
    peer_name: str
    ratio: float
    """How many times better ours is, or, for a cost, what ours costs in the peer's units."""
    aim: str = ""
    """What was aimed at: ">= 2.5" or "<= 1.1"; empty for a row that is only shown."""
    note: str = ""
    runs: dict[str, list[float]] | None = None
    """Every single run behind the medians."""
    holds: bool = True
    """Whether what has to be equal is: without it no aim is reached."""

    @property
    def reached(self) -> bool | None:
        """Whether the ratio meets the aim; None without one."""
        if not self.aim:
            return None
        sign, bound = self.aim.split()
        return self.holds and (self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound))


def faster(
    suite: str, what: str, runs: dict[str, list[float]], peer: str, aim: str = "", note: str = "", holds: bool = True
) -> Row:
    """A row of seconds: `runs` has the key "ours" and the peer's name; the ratio is peer over ours."""
    ours, theirs = statistics.median(runs["ours"]), statistics.median(runs[peer])
    both = {name: runs[name] for name in ("ours", peer)}
    return Row(suite, what, ours, theirs, "s", peer, theirs / ours, aim, note, both, holds)


def interleaved(
    tasks: Mapping[str, Task], rounds: int, device: torch.device, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each run of each task; in every round each task runs once, in an order that turns by one."""
    names = list(tasks)
    for _ in range(warmup):
        for name in names:
            tasks[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            seconds[name].append(seconds_of(tasks[name], device))
    return seconds


def seconds_of(task: Task, device: torch.device) -> float:
    """Time of one run, by CUDA events on a CUDA device."""
    if device.type == "cuda":
        # Events are recorded on the current device, which is not the one asked for by itself.
        with torch.cuda.device(device):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            task()
            end.record()
            torch.cuda.synchronize(device)
            return float(start.elapsed_time(end)) / 1000
    _finish(device)
    began = time.perf_counter()
    task()
    _finish(device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class Rival:
    """A task that lives in a process of its own, where nobody else's memory or settings reach it."""

    make: Callable[..., Task]
    """Importable by name; called there with `args`, which can be pickled."""
    args: tuple[Any, ...] = ()


def race(
    rivals: Mapping[str, Rival], rounds: int, device: torch.device, warmup: int = 1
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """As `interleaved`, each rival in its own process; gives seconds, and what each run returned, as a number."""
    with ExitStack() as stack:
        lines = {name: stack.enter_context(_process(rival, device)) for name, rival in rivals.items()}
        values: dict[str, list[float]] = {name: [] for name in rivals}
        seconds: dict[str, list[float]] = {name: [] for name in rivals}
        for name, line in lines.items():
            _answer(line, name)
            for _ in range(warmup):
                _run(line, name)
        names = list(rivals)
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                taken, value = _run(lines[name], name)
                seconds[name].append(taken)
                values[name].append(value)
    return seconds, values


@contextmanager
def _process(rival: Rival, device: torch.device) -> Iterator[Connection]:
    context = get_context("spawn")
    here, there = context.Pipe()
    worker = context.Process(target=_serve, args=(there, rival, device, torch.get_num_threads()), daemon=True)
    worker.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        worker.join()


def _serve(line: Connection, rival: Rival, device: torch.device, threads: int) -> None:
    torch.set_num_threads(threads)
    task = rival.make(*rival.args)
    result: list[Any] = []
    line.send((0.0, 0.0))
    while True:
        try:
            line.recv()
        except EOFError:
            return
        taken = seconds_of(lambda: result.append(task()), device)
        line.send((taken, float(result.pop())))


class RivalDied(RuntimeError):
    """A measured process has ended by itself: by an error, or for want of memory."""


def _run(line: Connection, name: str) -> tuple[float, float]:
    try:
        line.send("go")
    except OSError as error:
        raise RivalDied(f"the process of {name!r} has died") from error
    return _answer(line, name)


def _answer(line: Connection, name: str) -> tuple[float, float]:
    try:
        taken, value = line.recv()
    except (EOFError, OSError) as error:
        raise RivalDied(f"the process of {name!r} has died") from error
    return taken, value


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` in a fresh process; both must be importable by name and can be pickled.

    Raises:
        RivalDied: where that process ends before it has an answer.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise RivalDied(f"the process of {function.__name__} has died") from error


def extra_memory_mib(task: Task, device: torch.device) -> float:
    """Peak memory during one run of the task, beyond what stood before it; call it in a process of its own.

    Raises:
        RuntimeError: where the system does not tell.
    """
    gc.collect()
    forget_peak_memory(device)
    before = peak_memory_mib(device)
    task()
    after = peak_memory_mib(device)
    if before is None or after is None:
        raise RuntimeError(f"no peak memory is known for {device} on this system")
    return after - before
