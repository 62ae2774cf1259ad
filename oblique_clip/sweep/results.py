"""What finished runs say: their figures by arm and seed, and differences between arms."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..columns import value_at
from ..config import TrainConfig, read_json, read_run_config
from ..errors import UserError
from ..figures import read_metrics
from .question import Arm, Finding, Question, of_signs
from .statistics import Interval, over_classes, paired, t_interval

JUDGED = "judged.json"
"""In a run folder: every evaluation of its last step, see `worker`."""
ELSEWHERE = ("out", "device", "threads")
"""Settings of a run that decide no figure."""


@dataclass(frozen=True)
class Measure:
    """A figure of a run: what it is called, where it stands in judged.json, and the classes that it is a mean over."""

    title: str
    path: tuple[str, ...]
    classes: str | None = None
    """The key of `right` whose counts give the same figure class by class; None where there are none."""

    def of(self, judged: dict[str, Any]) -> float | None:
        """In percent; None where the run was not judged by it."""
        value = value_at(judged, self.path)
        return 100 * float(value) if isinstance(value, int | float) else None


# The headline figures stand first.
MEASURES = (
    Measure("held-out concepts top-1", ("evaluation", "concepts", "top1"), "concepts"),
    Measure("Fluent top-1", ("evaluation", "family", "top1"), "family"),
    Measure("OpenMoji top-1", ("built", "openmoji", "top1"), "openmoji"),
    Measure("held-out concepts top-5", ("evaluation", "concepts", "top5")),
    Measure("Fluent top-5", ("evaluation", "family", "top5")),
    Measure("OpenMoji top-5", ("built", "openmoji", "top5")),
    Measure("Fluent without flags top-1", ("evaluation", "family", "parts", "without_flags", "top1")),
    Measure("OpenMoji without flags top-1", ("built", "openmoji", "parts", "without_flags", "top1")),
    Measure("Fluent image to text R@1", ("evaluation", "retrieval", "image_to_text_r@1")),
    Measure("Fluent text to image R@1", ("evaluation", "retrieval", "text_to_image_r@1")),
    Measure("Fluent text to image R@5", ("evaluation", "retrieval", "text_to_image_r@5")),
    Measure("Fluent text to image R@10", ("evaluation", "retrieval", "text_to_image_r@10")),
    Measure("OpenMoji text to image R@1", ("built", "openmoji", "retrieval", "text_to_image_r@1")),
    Measure("art4apps top-1", ("built", "art4apps", "top1"), "art4apps"),
    Measure("tuxpaint top-1", ("built", "tuxpaint", "top1"), "tuxpaint"),
    Measure("Fluent calibration error", ("evaluation", "family", "ece")),
    Measure("validation top-1", ("validation", "top1")),
)
HEADLINES, COMPARED = MEASURES[:2], MEASURES[:7]
"""What verdicts are of, and what arms are compared by on a question's page."""


class Run:
    """A finished run."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed

    @cached_property
    def result(self) -> dict[str, Any]:
        return dict(read_json(self.folder / "result.json"))

    @cached_property
    def judged(self) -> dict[str, Any]:
        return dict(read_json(self.folder / JUDGED))

    @cached_property
    def metrics(self) -> list[dict[str, float]]:
        return read_metrics(self.folder)

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of a figure in metrics.jsonl."""
        lines = [line for line in self.metrics if key in line]
        return [line["step"] for line in lines], [line[key] for line in lines]


def folder_of(out: Path, arm: str, seed: int) -> Path:
    """Where a run of an arm is, under the folder of a sweep."""
    return out / arm / f"seed-{seed}"


class Results:
    """The runs of a question under a folder that are finished when they are first asked for; each is read once."""

    def __init__(self, question: Question, out: Path) -> None:
        self.question, self.out = question, out
        self._runs: dict[str, dict[int, Run]] = {}
        # A table, the findings, JSON and a page ask for the same differences, each with a bootstrap.
        self._ahead: dict[tuple[str, str, Measure], Difference | None] = {}

    def runs(self, arm: str) -> dict[int, Run]:
        """Finished runs of an arm, by seed, among those that the question asks for."""
        if arm not in self._runs:
            asked = next((one for one in self.question.arms if one.name == arm), None)
            if asked is None:
                raise UserError(f"the question {self.question.name} has no arm {arm}")
            seeds = range(asked.seeds)
            folders = {seed: folder_of(self.out, arm, seed) for seed in seeds}
            self._runs[arm] = {seed: Run(folder, seed) for seed, folder in folders.items() if is_done(folder)}
        return self._runs[arm]

    def config(self, arm: str) -> TrainConfig:
        """What the first finished run of an arm was trained with, which under another --length is not the arm's own."""
        return read_run_config(next(iter(self.runs(arm).values())).folder)

    @property
    def begun(self) -> list[Arm]:
        """Arms with at least one finished run."""
        return [arm for arm in self.question.arms if self.runs(arm.name)]

    def values(self, arm: str, measure: Measure) -> dict[int, float]:
        """A figure of each finished run that has it, by seed."""
        found = {seed: measure.of(run.judged) for seed, run in self.runs(arm).items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def mean(self, arm: str, measure: Measure) -> Interval | None:
        values = list(self.values(arm, measure).values())
        return t_interval(values) if values else None

    def ahead(self, first: str, second: str, measure: Measure) -> Difference | None:
        """How far one arm is ahead of another; None where no seed is finished of both."""
        key = (first, second, measure)
        if key not in self._ahead:
            self._ahead[key] = self._compared(*key)
        return self._ahead[key]

    def _compared(self, first: str, second: str, measure: Measure) -> Difference | None:
        ours, theirs = self.values(first, measure), self.values(second, measure)
        shared = sorted(ours.keys() & theirs.keys())
        if not shared:
            return None
        seeds = {seed: ours[seed] - theirs[seed] for seed in shared}
        return Difference(
            first, second, measure, seeds, paired(ours, theirs), self._classes(first, second, measure, shared)
        )

    def compare(self, first: str, second: str, measures: Iterable[Measure] = HEADLINES) -> list[Difference]:
        """How far one arm is ahead of another on each of `measures` that both were judged by."""
        found = [self.ahead(first, second, measure) for measure in measures]
        return [one for one in found if one is not None]

    def _classes(self, first: str, second: str, measure: Measure, seeds: Iterable[int]) -> Interval | None:
        if measure.classes is None:
            return None
        counts = []
        for arm in (first, second):
            every = [self.runs(arm)[seed].judged["right"][measure.classes] for seed in seeds]
            counts.append(np.array([one["right"] for one in every], float))
            pictures = np.array(every[0]["of"], float)
        found = over_classes(counts[0] - counts[1], pictures)
        return Interval(*(100 * value for value in (found.mean, found.low, found.high)))


@dataclass(frozen=True)
class Difference:
    """How far `first` is ahead of `second`, in points of a measure."""

    first: str
    second: str
    measure: Measure
    seeds: dict[int, float]
    over_seeds: Interval
    over_classes: Interval | None

    @property
    def sign(self) -> str:
        """`ahead` or `behind` where both intervals lie on that side of zero, else `undecided`."""
        signs = {interval.sign for interval in (self.over_seeds, self.over_classes) if interval is not None}
        return signs.pop() if len(signs) == 1 else "undecided"

    @property
    def sentence(self) -> str:
        """In words, with the figures."""
        seeds = f"{points(self.over_seeds)} over {len(self.seeds)} seed{'s' * (len(self.seeds) > 1)}"
        classes = f", {points(self.over_classes)} over concepts" if self.over_classes else ""
        said = {"ahead": "is ahead of", "behind": "is behind", "undecided": "does not differ clearly from"}[self.sign]
        return f"{self.first} {said} {self.second} on {self.measure.title}: {seeds}{classes}"


def found_of(claim: str, differences: list[Difference]) -> Iterable[Finding]:
    """The finding on a claim that the first arm of each difference is ahead; none where nothing was compared."""
    if differences:
        sentences = "; ".join(one.sentence for one in differences)
        yield Finding(claim, of_signs(one.sign for one in differences), sentences)


def points(interval: Interval) -> str:
    """A mean and the ends of its interval, in words; a single value has none."""
    ends = f" [{interval.low:+.2f}, {interval.high:+.2f}]" if math.isfinite(interval.half) else ""
    return f"{interval.mean:+.2f} points{ends}"


def is_done(folder: Path) -> bool:
    """Whether a run is finished and judged."""
    return all((folder / name).is_file() for name in ("config.json", "result.json", JUDGED))
