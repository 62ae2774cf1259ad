"""`ablate --preset`: the runs of a question are queued, those that are done are kept, and the answer is written."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from ..checkpoint import LAST
from ..config import TrainConfig, check_folder, check_ranges, read_json, read_run_config, to_json, write_json
from ..device import pick_device
from ..errors import UserError
from ..resume import differences
from ..topology import parse_topology
from .answer import write_answer
from .question import Arm, Question, open_question, shipped_questions
from .queue import Command, Place, Progress, run_queue, what_it_said
from .results import ELSEWHERE, JUDGED, Results, folder_of, is_done

if TYPE_CHECKING:
    from ..ablate import AblateConfig


def sweep(config: AblateConfig) -> dict[str, Any]:
    """Run what is not done of the questions that `config.preset` names, and write `out/<question>/answer.html` of each.

    Returns:
        The page of each question of which a run is finished.

    Raises:
        UserError: for an unknown question, a folder with runs of other settings, or runs that failed; those that can
            go on have then gone on.
        Stopped: when a signal came; the same command goes on.
    """
    check_folder(config.out)
    if config.built is not None and not any(config.built.glob("*.tar")):
        raise UserError(f"--built {config.built} has no shards; see experiments/data/README.md")
    names = shipped_questions() if config.preset == "all" else (str(config.preset),)
    questions = [_asked(open_question(name), config) for name in names]
    places = places_of(config.device, config.jobs, config.threads)
    runs = _prepare(questions, config.out)
    if config.built is not None:
        _judge_again(runs)
    held = {folder: run.device for folder, run in runs.items() if run.device != "auto"}
    with shown_progress(config.out) as show:
        failed = run_queue(list(runs), places, command_of(config.built, held=held), show)
    known = [results for question in questions if (results := Results(question, config.out)).begun]
    pages = {results.question.name: str(write_answer(results)) for results in known}
    if failed:
        said = "; ".join(f"{folder}: {what_it_said(folder)}" for folder in failed[:3])
        raise UserError(f"{len(failed)} of {len(runs)} runs failed: {said}; the same command tries them again")
    return pages


def _asked(question: Question, config: AblateConfig) -> Question:
    """A question with as many seeds, and runs as long, as was asked for."""
    return replace(question, arms=tuple(_asked_arm(arm, config.seeds, config.length) for arm in question.arms))


def _asked_arm(arm: Arm, seeds: int | None, length: float) -> Arm:
    optim = arm.config.optim
    if optim.steps is None:
        optim = replace(optim, epochs=optim.epochs * length)
    else:
        optim = replace(optim, steps=max(1, round(optim.steps * length)))
    return replace(arm, config=replace(arm.config, optim=optim), seeds=arm.seeds if seeds is None else seeds)


def _prepare(questions: Sequence[Question], out: Path) -> dict[Path, TrainConfig]:
    """Write the configuration of every run that has none; runs by their folders, in the order in which they are begun.

    First the arms of primary contrasts, then the first seed of every arm, so that a sweep that is stopped has something
    of each. Nothing is written where one of them cannot be run.
    """
    runs: dict[Path, TrainConfig] = {}
    for question in questions:
        for arm in question.arms:
            check_ranges(arm.config)
            parse_topology(arm.config.model.topology)
            for seed in range(arm.seeds):
                folder = folder_of(out, arm.name, seed)
                run = replace(arm.config, out=folder, seed=seed)
                if runs.setdefault(folder, run) != run:
                    raise UserError(f"{question.name} has an arm {arm.name} that is another in a question before it")
    known = {folder for folder in runs if (folder / "config.json").exists()}
    for folder in known:
        _refuse_other(runs[folder])
    for folder in runs.keys() - known:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", to_json(runs[folder]))
    primary = {arm for question in questions for arm in question.primary or ()}
    order = sorted(runs, key=lambda folder: (folder.parent.name not in primary, runs[folder].seed))
    return {folder: runs[folder] for folder in order}


def _judge_again(folders: Iterable[Path]) -> None:
    """Have runs judged on built shards too that were judged before without them.

    Raises:
        UserError: where the last checkpoint of one is gone.
    """
    old = [folder for folder in folders if is_done(folder) and not read_json(folder / JUDGED).get("built")]
    for folder in old:
        if not (folder / "checkpoints" / LAST).exists():
            raise UserError(f"{folder} was judged without --built, and its last checkpoint is gone; leave --built out")
    for folder in old:
        (folder / JUDGED).unlink()


def _refuse_other(run: TrainConfig) -> None:
    there = replace(read_run_config(run.out), out=run.out)
    found = [change for change in differences(there, run) if change[0] not in ELSEWHERE]
    if found:
        name, old, new = found[0]
        raise UserError(f"{run.out} is a run with {name} {old}, not {new}; name another --out, or remove it")


def places_of(device: str, jobs: int, threads: int) -> list[Place]:
    """Where runs compute: a place a GPU, or a place a core with a thread, where flags do not say otherwise.

    Examples:
        >>> from oblique_clip.sweep.run import places_of
        >>> places_of("cpu", jobs=2, threads=3)
        [Place(number=0, device='cpu', threads=3), Place(number=1, device='cpu', threads=3)]
    """
    picked = pick_device(device).type
    device = picked if device == "auto" else device
    if device == "cuda":
        gpus = torch.cuda.device_count()
        return [Place(i, f"cuda:{i % max(1, gpus)}", threads) for i in range(jobs or gpus or 1)]
    if device != "cpu":
        return [Place(i, device, threads) for i in range(jobs or 1)]
    cores = os.cpu_count() or 1
    count = jobs or max(1, cores // (threads or 1))
    return [Place(i, device, threads or max(1, cores // count)) for i in range(count)]


def command_of(built: Path | None = None, test: bool = True, held: Mapping[Path, str] | None = None) -> Command:
    """What trains and judges a run; see `worker.Work` for the first two settings.

    Args:
        held: devices of runs that are held to one, wherever they are placed.
    """

    def command(folder: Path, place: Place) -> list[str]:
        flags = ["--device", (held or {}).get(folder, place.device), "--threads", str(place.threads), "--tied"]
        flags += [] if built is None else ["--built", str(built)]
        flags += [] if test else ["--no-test"]
        return [sys.executable, "-W", "ignore", "-m", "oblique_clip.sweep.worker", str(folder), *flags]

    return command


@contextmanager
def shown_progress(out: Path) -> Iterator[Callable[[Progress], None]]:
    """Bars on a terminal: of the whole, with the time that is left, and of each run in progress. Elsewhere, a line
    whenever a run ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Bars(*columns) as bars:
        whole = bars.add_task("runs", total=None, note="")
        shown: dict[Path, TaskID] = {}
        ended = -1

        def show(progress: Progress) -> None:
            nonlocal ended
            note = time_left(progress.seconds_left) + (f", {progress.failed} failed" if progress.failed else "")
            bars.update(whole, completed=progress.done, total=progress.total, note=note)
            for folder, share in progress.running.items():
                if folder not in shown:
                    shown[folder] = bars.add_task(str(folder.relative_to(out)), total=100, note="% ")
                bars.update(shown[folder], completed=round(100 * share))
            for folder in shown.keys() - progress.running.keys():
                bars.remove_task(shown.pop(folder))
            if not bars.console.is_terminal and progress.done + progress.failed > ended:
                ended = progress.done + progress.failed
                print(f"{progress.done} of {progress.total} runs done, {note}", flush=True)

        yield show


def time_left(seconds: float) -> str:
    """In words.

    Examples:
        >>> from oblique_clip.sweep.run import time_left
        >>> time_left(7500.0), time_left(50.0), time_left(0.0), time_left(float("inf"))
        ('about 2 h 5 min left', 'about 1 min left', 'nothing left', 'time left not known yet')
    """
    if seconds == 0:
        return "nothing left"
    if not math.isfinite(seconds):
        return "time left not known yet"
    minutes = max(1, round(seconds / 60))
    return f"about {f'{minutes // 60} h ' if minutes >= 60 else ''}{minutes % 60} min left"
