"""3. Caption noise: does the learned scale gauge it, and does the oblique manifold bear it better?

The scale has a learning rate of its own here: at that of the towers it moves by less than its start is off within a
short run, and would tell its start instead of the noise. Starts a factor of 10 apart are tried at each of three rates.
At the highest rate the oblique comes to the greatest scale that it may have where captions have no noise, so its starts
are tried without one too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from oblique_clip.questions.base import CLIP_SCALE, OBLIQUE, ON_CPU, SPHERE, M, both, on_cpu
from oblique_clip.sweep.question import Arm, Finding, Question, of_signs, of_tests
from oblique_clip.sweep.results import HEADLINES, Measure, Results, points
from oblique_clip.sweep.statistics import paired

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
FITTED = (0.0, 0.2, 0.7)
"""Levels that the gauge is fitted on; it predicts the others, of seeds that it was not fitted on either."""
STARTS = {"low": 10**-0.5, "high": 10**0.5}
STARTED = (0.0, 0.3)
STARTS_WITHIN = GAUGED_WITHIN = 0.05


class Rate(NamedTuple):
    """A learning rate of the scale, and what else is said by the ending of its arms' names."""

    lr: float
    where: str = ""
    seeds_of_starts: int = 1
    temperature: Mapping[str, Any] = {}


SLOW, QUICK, FAST = "", "-quick", "-fast"
FAST_ON_CPU, UNCLAMPED = f"{FAST}{ON_CPU}", f"{FAST}-unclamped"
RATES = {
    SLOW: Rate(5e-3),
    QUICK: Rate(5e-2),
    FAST: Rate(0.5, seeds_of_starts=3),
    FAST_ON_CPU: Rate(0.5, " on a CPU"),
    UNCLAMPED: Rate(0.5, " without a greatest scale", seeds_of_starts=3, temperature={"max_scale": math.inf}),
}
"""By how the names of their arms end."""
BASES = {"sphere": SPHERE, "oblique": OBLIQUE}
TOPOLOGIES = tuple(BASES)
# Of the greatest scale: a run that ended this near to it was stopped by it.
ALL_BUT = 0.999
EMOJI = ("emoji-noto", "emoji-twemoji", "emoji-emojione", "emoji-streamline")
NATURAL = "openclipart"
UNREADABLE = ", and nothing can be read off a scale that does not fall with noise"
# As many emoji pairs as openclipart has, so that the gauge is read at the size of data that it was fitted at.
AS_MANY = {"train_families": EMOJI, "train_share": 3324 / 6338}


def suffix(level: float, more: str = "") -> str:
    return f"noise-{100 * level:.0f}{more}"


def noisy(level: float, rate: str = "", **more: Any) -> dict[str, Any]:
    data = {"caption_noise": level, **more.pop("data", {})}
    return {"data": data, "optim": {"scale_lr": RATES[rate].lr}} | more


def started(level: float, name: str, rate: str) -> tuple[Arm, Arm]:
    """Both topologies, with starts that are a factor of 10 apart between `low` and `high`."""
    own = RATES[rate]
    starts = ({"init_scale": CLIP_SCALE / width * STARTS[name], **own.temperature} for width in (1, M))
    settings = (noisy(level, rate, temperature=start) for start in starts)
    sphere, oblique = (both(suffix(level, f"-{name}{rate}"), own.seeds_of_starts, **one) for one in settings)
    return sphere[0], oblique[1]


def all_started(rate: str) -> tuple[Arm, ...]:
    """Both topologies at both levels from both starts."""
    return tuple(arm for level in STARTED for name in STARTS for arm in started(level, name, rate))


GRIDS = {
    rate: tuple(arm for level in LEVELS for arm in both(suffix(level, rate), **noisy(level, rate)))
    for rate in (SLOW, FAST)
}
"""All levels, at the least rate and at one at which starts nearly meet."""
STARTING = (
    *all_started(SLOW),
    *all_started(QUICK),
    # At the greatest scale, to which the oblique comes without noise, more seeds would tell nothing.
    *(on_cpu(arm, 1 if arm.name.startswith("oblique-noise-0-") else None) for arm in all_started(FAST)),
    *(started(0.0, name, UNCLAMPED)[1] for name in STARTS),
    # Not all of them were made on the device of the grid.
    *started(0.0, "low", FAST),
    started(0.0, "high", FAST)[0],
)
SUBSETS = tuple(
    both(f"{suffix(level, '-emoji')}{rate}", 1, **noisy(level, rate, data=AS_MANY))[0]
    for rate in GRIDS
    for level in LEVELS
)
GRID_ON_CPU = (*(on_cpu(arm) for arm in GRIDS[FAST] if arm.name.startswith("sphere")), on_cpu(GRIDS[FAST][1], seeds=1))
CLIPART = tuple(both(f"{NATURAL}{rate}", **noisy(0.0, rate, data={"train_families": (NATURAL,)}))[0] for rate in GRIDS)


def scales(results: Results, arm: str) -> dict[int, float]:
    """The learned scale at the end of each run, by seed; none of an arm that was not planned."""
    if arm not in {one.name for one in results.question.arms}:
        return {}
    return {seed: run.result["scale"] for seed, run in results.runs(arm).items()}


def gauge(scale_at: Mapping[float, Sequence[float]]) -> np.poly1d:
    """Noise as a polynomial in log(scale), by least squares: of second degree where there are three levels or more."""
    logs = [math.log(scale) for values in scale_at.values() for scale in values]
    levels = [level for level, values in scale_at.items() for _ in values]
    return np.poly1d(np.polyfit(logs, levels, deg=min(2, len(scale_at) - 1)))


def findings(results: Results) -> Iterable[Finding]:
    for topology in TOPOLOGIES:
        for rate in RATES:
            yield from _independent_of_start(results, topology, rate)
        for rate in (*GRIDS, FAST_ON_CPU):
            yield from _monotone(results, topology, rate)
            yield from _predicts(results, topology, rate)
    for rate in GRIDS:
        yield from _loses_less(results, rate)
        yield from _natural(results, rate)


def at_greatest(scale: float, topology: str) -> bool:
    """Whether a scale is all but the greatest that is allowed, which is the same for both topologies in logits."""
    from oblique_clip.topology import parse_topology

    greatest = parse_topology(BASES[topology].model.topology).max_scale
    return scale > ALL_BUT * greatest


def _scale_of(topology: str, rate: str) -> str:
    return f"the learned scale of the {topology}, at a rate of {RATES[rate].lr:g}{RATES[rate].where},"


def by_level(results: Results, topology: str, more: str = "") -> dict[float, dict[int, float]]:
    """The learned scales of the levels that have a finished run."""
    found = {level: scales(results, f"{topology}-{suffix(level, more)}") for level in LEVELS}
    return {level: own for level, own in found.items() if own}


def _shared(found: Mapping[float, Mapping[int, float]]) -> list[int]:
    """Seeds that every level has; none before there is a run of every level."""
    return sorted(set.intersection(*map(set, found.values()))) if len(found) == len(LEVELS) else []


def _means(found: Mapping[float, Mapping[int, float]]) -> str:
    return ", ".join(f"{np.mean(list(own.values())):.2f} at {level:g}" for level, own in found.items())


def _stopped(found: Mapping[float, Mapping[int, float]], topology: str) -> str:
    count = sum(at_greatest(value, topology) for own in found.values() for value in own.values())
    return f"; {count} runs ended at the greatest scale that is allowed" if count else ""


def _monotone(results: Results, topology: str, rate: str) -> Iterable[Finding]:
    found = by_level(results, topology, rate)
    falls = [all(found[a][seed] > found[b][seed] for a, b in pairwise(LEVELS)) for seed in _shared(found)]
    if falls:
        said = f"at every step in {sum(falls)} of {len(falls)} seeds; means: {_means(found)}{_stopped(found, topology)}"
        yield Finding(f"{_scale_of(topology, rate)} falls monotonically with noise", of_tests(falls), said)


def _independent_of_start(results: Results, topology: str, rate: str) -> Iterable[Finding]:
    """By all starts that there are of a seed, that of CLIP among them; nothing can be told at the greatest scale."""
    said, tests = [], []
    for level in STARTED:
        low, high = (scales(results, f"{topology}-{suffix(level, f'-{name}{rate}')}") for name in STARTS)
        between = scales(results, f"{topology}-{suffix(level, rate)}")
        for seed in sorted(low.keys() & high.keys()):
            ends = [own[seed] for own in (low, between, high) if seed in own]
            stopped = "max_scale" not in RATES[rate].temperature and any(at_greatest(one, topology) for one in ends)
            tests.append(None if stopped else max(ends) / min(ends) - 1 <= STARTS_WITHIN)
            note = " (the greatest that is allowed)" if stopped else ""
            said.append(f"{', '.join(f'{value:.2f}' for value in ends)} at {level:g}{note}")
    if tests:
        told = [held for held in tests if held is not None]
        verdict = "undecided" if len(told) < len(tests) and all(told) else of_tests(told)
        yield Finding(
            f"{_scale_of(topology, rate)} does not depend on its start", verdict,
            f"starts a factor of 10 apart, that of CLIP between them where there is one, end at {'; '.join(said)}",
        )  # fmt: skip


def _predicts(results: Results, topology: str, rate: str) -> Iterable[Finding]:
    found = by_level(results, topology, rate)
    if len(_shared(found)) < 2:
        return
    read: dict[float, list[float]] = {level: [] for level in LEVELS if level not in FITTED}
    for unseen in _shared(found):
        fitted = gauge({level: [v for seed, v in found[level].items() if seed != unseen] for level in FITTED})
        for level, values in read.items():
            values.append(float(fitted(math.log(found[level][unseen]))))
    errors = [abs(value - level) for level, values in read.items() for value in values]
    levels = ", ".join(f"{level:g}" for level in FITTED)
    said = "; ".join(f"{level:g} is read as {', '.join(f'{v:.2f}' for v in values)}" for level, values in read.items())
    claim = f"{_scale_of(topology, rate)} gauges noise to {GAUGED_WITHIN}"
    verdict = of_tests([max(errors) <= GAUGED_WITHIN])
    yield Finding(
        claim, verdict, f"fitted at {levels}, each seed left out in turn: at levels and seeds never fitted {said}"
    )


def _loses_less(results: Results, rate: str) -> Iterable[Finding]:
    for measure in HEADLINES:
        kept = {topology: _kept(results, topology, rate, measure) for topology in TOPOLOGIES}
        if kept["sphere"].keys() & kept["oblique"].keys():
            ahead = paired(kept["oblique"], kept["sphere"])
            means = {name: f"{np.mean(list(own.values())):.1f} %" for name, own in kept.items()}
            said = f"over noise of 0.1 to 0.7 the oblique keeps {means['oblique']} of its accuracy without noise"
            said += f", the sphere {means['sphere']}: {points(ahead)} over seeds"
            claim = (
                f"the oblique loses less accuracy as noise grows, at a rate of {RATES[rate].lr:g}, on {measure.title}"
            )
            yield Finding(claim, of_signs([ahead.sign]), said)


def _kept(results: Results, topology: str, rate: str, measure: Measure) -> dict[int, float]:
    """Mean accuracy over the levels with noise, in percent of that without, by seed."""
    clean, *noisy_runs = (results.values(f"{topology}-{suffix(level, rate)}", measure) for level in LEVELS)
    seeds = [seed for seed in set(clean).intersection(*noisy_runs) if clean[seed]]
    return {seed: 100 * float(np.mean([own[seed] for own in noisy_runs])) / clean[seed] for seed in seeds}


def _natural(results: Results, rate: str) -> Iterable[Finding]:
    found = by_level(results, "sphere", f"-emoji{rate}")
    clipart = list(scales(results, f"sphere-{NATURAL}{rate}").values())
    if len(found) == len(LEVELS) and clipart:
        said = f"with as many pairs of emoji the scale is {_means(found)} of noise; on {NATURAL} "
        said += ", ".join(f"{scale:.2f}" for scale in clipart)
        read = readings(found, clipart)
        said += f", which reads as noise of {', '.join(f'{value:.2f}' for value in read)}" if read else UNREADABLE
        claim = (
            f"the gauge, at a rate of {RATES[rate].lr:g}, finds the captions of {NATURAL} noisier than those of emoji"
        )
        yield Finding(claim, of_tests(value > GAUGED_WITHIN for value in read), said)


def readings(found: Mapping[float, Mapping[int, float]], scales_of_others: Iterable[float]) -> list[float]:
    """Noise by the gauge of all levels; nothing where the scale does not fall from each level to the next."""
    scale_at = {level: list(own.values()) for level, own in found.items()}
    if any(np.mean(scale_at[a]) <= np.mean(scale_at[b]) for a, b in pairwise(scale_at)):
        return []
    fitted = gauge(scale_at)
    return [float(fitted(math.log(scale))) for scale in scales_of_others]


def pictures(results: Results) -> Iterable[tuple[str, Figure]]:
    """The learned scale, and accuracy, against noise; a row a rate of the scale."""
    from matplotlib.figure import Figure

    rates = [rate for rate, arms in GRIDS.items() if any(results.runs(arm.name) for arm in arms)]
    figure = Figure((11, 3.5 * max(1, len(rates))), layout="constrained")
    rows = figure.subplots(max(1, len(rates)), 1 + len(HEADLINES), squeeze=False)
    for panels, rate in zip(rows, rates, strict=False):
        for topology, width, style in (("sphere", 2, "o--"), ("oblique", 2 * M, "^-")):
            _draw_scale(panels[0], by_level(results, topology, rate), width, style, topology)
            for axis, measure in zip(panels[1:], HEADLINES, strict=True):
                means = {level: results.mean(f"{topology}-{suffix(level, rate)}", measure) for level in LEVELS}
                shown = {level: own for level, own in means.items() if own}
                heights, halves = [own.mean for own in shown.values()], [own.half for own in shown.values()]
                axis.errorbar(list(shown), heights, halves, fmt=style, color="black", capsize=2, label=topology)
                axis.set(ylabel=f"{measure.title} (%)")
        panels[0].set(ylabel="learned scale x width of range", title=f"rate of the scale {RATES[rate].lr:g}")
        panels[0].legend()
    for axis in rows.flat:
        axis.set(xlabel="share of shuffled captions")
        axis.grid(alpha=0.3)
    yield "noise", figure


def _draw_scale(axis: Axes, found: Mapping[float, Mapping[int, float]], width: float, style: str, label: str) -> None:
    for level, own in found.items():
        axis.plot([level] * len(own), [width * value for value in own.values()], style[0], color="black", markersize=3)
    means = [width * np.mean(list(own.values())) for own in found.values()]
    axis.plot(list(found), means, style, color="black", label=label)


QUESTION = Question(
    name="noise",
    asks="Does the learned scale gauge the noise of captions, and does the oblique manifold bear noise better?",
    arms=(*chain(*GRIDS.values()), *GRID_ON_CPU, *STARTING, *SUBSETS, *CLIPART),
    contrasts=tuple(
        (f"oblique-{suffix(level, rate)}", f"sphere-{suffix(level, rate)}") for rate in GRIDS for level in LEVELS
    )
    + tuple((arm.name, arm.name.removesuffix(ON_CPU)) for arm in GRID_ON_CPU),
    curves=tuple(arm.name for arm in GRIDS[FAST]),
    findings=findings,
    pictures=pictures,
)
