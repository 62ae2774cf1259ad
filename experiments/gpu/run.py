"""The comparison on one data set, from the first batch to the report.

python -m experiments.gpu.run cc3m --data "/data/cc3m/{00000..00331}.tar" --imagenet /data/imagenet/val --gpus 8 \
    --out runs/cc3m

Each run is a process of `torchrun -m oblique_clip train`. The same command goes on with what was stopped and skips what
is done. `--dry-run` needs no data and no GPU.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from experiments.zero_shot import folders, retrieval, suite
from oblique_clip.cli import run_script
from oblique_clip.commands import TrainCommand
from oblique_clip.config import (
    RANGES,
    TrainConfig,
    check_folder,
    check_ranges,
    model_config,
    read_json,
    read_run_config,
)
from oblique_clip.data.captioned import of_json
from oblique_clip.data.folders import open_class_folder
from oblique_clip.data.shards import expand_shards
from oblique_clip.errors import UserError
from oblique_clip.evaluate.names import IMAGENET, imagenet_names
from oblique_clip.flags import parse
from oblique_clip.resume import FREE, differences
from oblique_clip.signals import Stopped, watched

from .report import Judged, write_report
from .settings import ARMS, COMMON, DATA, DRY, SEEDS, SIZES, Name, Value, flags_of, settings_for
from .small import write_small

POLL_SECONDS = 0.5
OWN = ("size", "form", "topology", "projection", "data", "device", "seed", "epochs", "out", "resume")
"""Flags of `oblique-clip train` that tell the runs apart, say where they are, or stand behind `steps`."""
PROGRAM = "python -m experiments.gpu.run"


@dataclass(frozen=True)
class Comparison:
    """Train and judge clip, sphere and oblique(32,16) on one data set."""

    dataset: Annotated[Name, tyro.conf.Positional]
    """Whose settings are taken; see settings.py."""
    data: str | None = None
    """Its shards as img2dataset wrote them: "/data/cc3m/{00000..00331}.tar"."""
    imagenet: Path | None = None
    """Validation pictures of ImageNet, a folder a class by its WordNet code."""
    suite: Path | None = None
    """Folder of data sets in CLIP_benchmark's layout (wds_*)."""
    captions: Path | None = None
    """Caption JSON for retrieval: COCO's, or Karpathy's."""
    images: Path | None = None
    """Folder of its pictures; default the JSON's own."""
    out: Path = Path("runs/gpu")
    """Folder of runs, evaluations and the report."""
    sizes: tuple[str, ...] = SIZES
    """Of `oblique-clip train --size`."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Of settings.py."""
    seeds: int = int(SEEDS.value)
    """Runs of each arm and size, of seeds 0, 1, 2, ..."""
    gpus: int = 8
    """Processes of a run, one a GPU of this machine."""
    pairs: int | None = None
    """Pairs that the shards hold; default what img2dataset's *_stats.json say."""
    change: tuple[str, ...] = ()
    """Settings of `oblique-clip train` in place of those of settings.py: NAME=VALUE, as in micro_batch=256."""
    show: bool = False
    """Print every command line and train nothing."""
    dry_run: bool = False
    """Two steps of four pairs of each run, with one seed, on one CPU thread; on small data where none are given."""


@dataclass(frozen=True)
class Run:
    """One run of `oblique-clip train`."""

    size: str
    arm: str
    seed: int
    config: TrainConfig
    flags: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.size}-{self.arm}-{self.seed}"

    @property
    def done(self) -> bool:
        return (self.config.out / "result.json").exists()

    @property
    def begun(self) -> bool:
        return (self.config.out / "config.json").exists()

    def line(self, gpus: int) -> list[str]:
        """What trains it, or goes on with it."""
        flags = ["--resume", str(self.config.out), "--device", self.config.device] if self.begun else self.flags
        # Behind "--" no flag of ours is taken for one of torchrun's.
        start = ["torchrun", "--standalone", "--nproc-per-node", str(gpus), "-m", "--", "oblique_clip", "train"]
        return [*start, *flags]


def main(command: Comparison) -> None:
    """Train what is not trained, judge what is not judged, and write `out/report.md` and `out/results.json`.

    Raises:
        UserError: for what is missing or contradicts itself, before anything is trained; or where runs failed.
        Stopped: when a signal came; the same command goes on.
    """
    command = prepared(command)
    runs = list(runs_of(command, settings_of(command)))
    for run in runs:
        _refuse_other(run)
    if command.show:
        for run in runs:
            print(shlex.join(run.line(command.gpus)))
        return
    failed = [run.name for run in runs if not (run.done or _train(run, command.gpus))]
    if done := [run for run in runs if run.done]:
        evaluate(command, done)
        judged = [Judged(run.size, run.arm, run.seed, run.config.out) for run in done]
        print(f"report: {write_report(command.out, command.dataset, judged)}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}; the same command tries them again"
        )


def prepared(command: Comparison) -> Comparison:
    """The command with the data of a dry run where it has none, checked.

    Raises:
        UserError: for a name that is none, or data that are missing.
    """
    check_folder(command.out)
    if command.dry_run:
        small = write_small(command.out / "data")
        command = replace(command, data=command.data or small.shards, seeds=1, gpus=min(command.gpus, 1))
        if not any((command.imagenet, command.suite, command.captions)):
            given = {"imagenet": small.imagenet, "suite": small.suite, "captions": small.captions}
            command = replace(command, **given, images=small.images)  # type: ignore[arg-type]
    for what, names, known in (("--sizes", command.sizes, SIZES), ("--arms", command.arms, tuple(ARMS))):
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"{what} takes {', '.join(known)}, not {unknown[0]!r}")
        if not names:
            raise UserError(f"{what} takes {', '.join(known)}, and has none")
    for flag, number in (("--seeds", command.seeds), ("--gpus", command.gpus), ("--pairs", command.pairs)):
        if number is not None and number < 1:
            raise UserError(f"{flag} must lie in {RANGES['seeds']}, not be {number}")
    if command.data is None:
        raise UserError('--data is missing: name the shards, as in "/data/cc3m/{00000..00331}.tar"')
    if command.imagenet is not None and imagenet_names(open_class_folder(command.imagenet).folders) is None:
        raise UserError(f"--imagenet {command.imagenet} needs folders named by WordNet codes (n01440764, ...)")
    # What cannot be judged by is said now, not when all runs are trained.
    if command.suite is not None:
        suite.datasets_in(command.suite)
    if command.captions is not None:
        of_json(command.captions, command.images, int(COMMON["image_size"].value))
    return command


def settings_of(command: Comparison) -> dict[str, Value]:
    """The settings that all runs share; says what a dry run changes.

    Raises:
        UserError: for a change that is none, or shards that nobody counted.
    """
    assert command.data is not None
    changes: dict[str, Value] = {}
    for text in command.change:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UserError(f"--change takes NAME=VALUE, as in micro_batch=256, not {text!r}")
        name = name.replace("-", "_")
        if name in OWN:
            raise UserError(f"--change cannot set {name}, which the comparison sets itself")
        if name == "batch_size" and not (value.isdecimal() and int(value) > 1):
            raise UserError(f"--batch-size must lie in {RANGES[name]}, not be {value}")
        changes[name] = value
    pairs = command.pairs or pairs_in(command.data)
    table = settings_for(command.dataset, pairs, command.gpus, {})
    settings = settings_for(command.dataset, pairs, command.gpus, {**(DRY if command.dry_run else {}), **changes})
    print(f"{command.dataset}: {pairs:,} pairs, {DATA[command.dataset].epochs.value} epochs, {settings['steps']} steps")
    for name, own in settings.items():
        if own != table.get(name):
            print(f"  {name} {own}, not {table.get(name, 'its default')}")
    return {**settings, "data": command.data, "device": "cpu" if command.dry_run else "cuda"}


def pairs_in(shards: str) -> int:
    """What img2dataset counted when it wrote these shards.

    Raises:
        UserError: for shards that are missing, or without their statistics.
    """
    pairs = 0
    for shard in map(Path, expand_shards(shards)):
        stats = shard.with_name(f"{shard.stem}_stats.json")
        if not stats.is_file():
            raise UserError(f"{stats} is missing, which img2dataset writes: say with --pairs how many there are in all")
        pairs += int(read_json(stats)["successes"])
    return pairs


def runs_of(command: Comparison, settings: Mapping[str, Value]) -> Iterator[Run]:
    """Every run, the first seed of all arms first.

    Raises:
        UserError: for a setting that is none, or out of its range.
    """
    for seed in range(command.seeds):
        for size in command.sizes:
            for arm in command.arms:
                own = {**settings, "seed": seed, "out": str(command.out / "runs" / f"{size}-{arm}-{seed}")}
                flags = flags_of(size, arm, own)
                config = config_of(size, arm, flags)
                if config.optim.batch_size % command.gpus:
                    raise UserError(f"--gpus {command.gpus} cannot share a batch of {config.optim.batch_size} evenly")
                yield Run(size, arm, seed, config, tuple(flags))


def config_of(size: str, arm: str, flags: Sequence[str]) -> TrainConfig:
    """What `oblique-clip train` makes of flags."""
    start = TrainCommand(TrainConfig(model=model_config(size, ARMS[arm].form)))
    command: TrainCommand = parse(TrainCommand, "oblique-clip train", list(flags), start)
    check_ranges(command.config)
    return command.config


def _refuse_other(run: Run) -> None:
    if not run.begun:
        return
    # How a step is cut depends on the number of GPUs, and decides no number but the order of sums.
    own = {*FREE, "micro_batch"}
    found = [change for change in differences(read_run_config(run.config.out), run.config) if change[0] not in own]
    if found:
        name, old, new = found[0]
        raise UserError(f"{run.config.out} is a run with {name} {old}, not {new}; name another --out, or remove it")


def _train(run: Run, gpus: int) -> bool:
    """Train a run to its end, and say whether it came there.

    Raises:
        Stopped: when a signal came; the run has then saved its state.
    """
    line = run.line(gpus)
    print(shlex.join(line), flush=True)
    command = [sys.executable, "-m", "torch.distributed.run", *line[1:]]
    with watched() as signals:
        # In a session of its own a Ctrl-C comes to it once, from here.
        process, told = subprocess.Popen(command, start_new_session=True), False
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if signals.number and not told:
                process.terminate()
                told = True
        if signals.number:
            name = signal.Signals(signals.number).name
            raise Stopped(signals.number, f"stopped by {name}; the same command goes on with {run.config.out}")
    return run.done


def evaluate(command: Comparison, runs: Sequence[Run]) -> None:
    """Judge finished runs at their last step, on everything that was named; what is judged already is kept."""
    models, out = tuple(str(run.config.out) for run in runs), command.out / "evaluations"
    device = runs[0].config.device
    if command.imagenet is not None:
        folders.main(folders.Folders(command.imagenet, models, IMAGENET, ("openai",), out / "imagenet", device))
    if command.suite is not None:
        suite.main(suite.Suite(command.suite, models, engine="oblique_clip", out=out / "suite", device=device))
    if command.captions is not None:
        retrieval.main(retrieval.Retrieval(command.captions, command.images, models, out / "captions", device))


if __name__ == "__main__":
    run_script(main, Comparison, PROGRAM)
