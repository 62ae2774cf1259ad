"""What the comparison would cost, by the plan of `oblique-clip bench --plan`; nothing of it was measured on a GPU.

python -m experiments.gpu.cost    # the table, for README.md
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from oblique_clip.cli import run_script
from oblique_clip.plan import PlanConfig, plan

from .reading import rate
from .settings import ARMS, COMMON, DATA, SEEDS, SIZES, markdown, steps_of

GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """Plan every run."""

    ranks: int = 8
    """GPUs, and processes."""
    tflops: float = PlanConfig.tflops
    """See `oblique-clip bench --plan`."""
    gbytes: float = PlanConfig.gbytes
    """The same."""
    alone: float = 2000.0
    """Pairs a second of the one thread of a process; see reading.py."""
    decoded: float = 800.0
    """Pictures a second that a core decodes."""


class Planned(NamedTuple):
    """A step of one arm at one size."""

    seconds: float
    """By the plan, with nothing of it hidden behind the rest."""
    memory: float
    """Bytes a GPU."""

    def hours(self, steps: int, ranks: int, reading: float = 0.0) -> float:
        """GPU hours of a run, each step of which waits `reading` seconds for its pairs where that is longer."""
        return steps * max(self.seconds, reading) * ranks / 3600


def main(command: Cost) -> None:
    """Print a row a data set and size: an arm with one token, one with 16, and the sum over arms and seeds."""
    batch = int(COMMON["batch_size"].value)
    pairs = rate(command.alone, command.decoded, int(COMMON["workers"].value))
    reading = batch / command.ranks / pairs
    rows, sums = [], [0.0, 0.0]
    for name, data in DATA.items():
        steps = steps_of(data.listed, float(data.epochs.value), batch)
        for size in SIZES:
            found = {arm: planned(command, size, arm) for arm in ARMS}
            one, many = found["sphere"], found["oblique-shared"]
            hours = [[each.hours(steps, command.ranks, wait) for each in found.values()] for wait in (0.0, reading)]
            sums = [total + sum(own) * int(SEEDS.value) for total, own in zip(sums, hours, strict=True)]
            rows.append((
                name, size, f"{steps:,}", f"{1000 * one.seconds:.0f}, {1000 * many.seconds:.0f}",
                f"{one.memory / GIB:.0f}, {many.memory / GIB:.0f}",
                f"{one.hours(steps, command.ranks):.1f}, {many.hours(steps, command.ranks):.1f}",
                f"{one.hours(steps, command.ranks, reading):.1f}, {many.hours(steps, command.ranks, reading):.1f}",
                *(f"{sum(own) * int(SEEDS.value):,.0f}" for own in hours),
            ))  # fmt: skip
    headings = (
        "data set", "size", "steps", "step, ms", "GiB a GPU", "GPU hours a run", "the same, read as here",
        "all arms and seeds", "the same, read as here",
    )  # fmt: skip
    print(markdown(headings, rows))
    print(f"\n{sums[0]:,.0f} GPU hours in all, {sums[1]:,.0f} at {pairs:,.0f} pairs a second of a process")


def planned(command: Cost, size: str, arm: str) -> Planned:
    """The plan of a step, as `oblique-clip bench --plan` prints it."""
    own, batch = ARMS[arm], int(COMMON["batch_size"].value)
    config = PlanConfig(
        size=size, form=own.form, topology=own.topology, batch_size=batch, ranks=command.ranks,
        tflops=command.tflops, gbytes=command.gbytes,
    )  # fmt: skip
    found = {line.what: line.value for line in plan(config)}
    return Planned(found["time: step, nothing at once"], found["memory: sum"])


if __name__ == "__main__":
    run_script(main, Cost, "python -m experiments.gpu.cost")
