"""4. Where attraction and repulsion cancel: similarities of pairs and of strangers over training.

InfoNCE pulls a picture to its caption with weight 1 - p, p being that caption's softmax, and pushes it from every other
caption with the other's own. Where a share e of captions is shuffled, the loss is least at p = 1 - e; if all B - 1
strangers were equally far, that is a gap of log((B - 1)(1 - e) / e) between the logits of pair and stranger. So noise
and scale set the gap that similarities keep, and a topology of wide range reaches it at a small scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from oblique_clip.draw.similarities import draw_band
from oblique_clip.questions.base import HEADLINE, SHORT, SPHERE
from oblique_clip.questions.noise import GRIDS, LEVELS, SLOW, TOPOLOGIES, suffix
from oblique_clip.questions.temperature import ARMS, CONTROL
from oblique_clip.questions.topology import BY_SPHERES, OTHERS
from oblique_clip.sweep.pictures import width_of
from oblique_clip.sweep.question import Finding, Question, of_signs, of_tests
from oblique_clip.sweep.results import Results
from oblique_clip.sweep.statistics import Interval, paired, t_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = SPHERE.optim.batch_size


def least_logit_gap(noise: float) -> float:
    """The gap between the logits of a pair and of equally far strangers at which InfoNCE is least, in nats."""
    return math.inf if noise == 0 else math.log((BATCH - 1) * (1 - noise) / noise)


def gaps(results: Results, arm: str, logits: bool = False) -> dict[int, float]:
    """Validation gap of each run at its last step: of logits in nats, else of similarities as a share of the range's
    width."""
    values = {}
    for seed, run in results.runs(arm).items():
        width = width_of(run.result["topology"])
        values[seed] = run.curve("val_gap")[1][-1] * (run.result["scale"] * width if logits else 1.0)
    return values


def gap(results: Results, arm: str, logits: bool = False) -> Interval | None:
    """Mean and interval of `gaps`; None of an arm without runs."""
    values = list(gaps(results, arm, logits).values())
    return t_interval(values) if values else None


def findings(results: Results) -> Iterable[Finding]:
    for topology in TOPOLOGIES:
        found = {level: gap(results, f"{topology}-{suffix(level)}") for level in LEVELS}
        known = {level: own for level, own in found.items() if own}
        if len(known) == len(LEVELS):
            means = [own.mean for own in known.values()]
            falls = all(a > b for a, b in pairwise(means))
            said = ", ".join(f"{own.mean:.3f} at {level:g}" for level, own in known.items())
            yield Finding(
                f"the gap between pairs and strangers on the {topology} narrows with noise",
                of_tests([falls]), f"as a share of the range's width: {said}",
            )  # fmt: skip
    yield from _by_spheres(results)
    sphere, oblique = (gaps(results, arm.name) for arm in HEADLINE)
    if sphere.keys() & oblique.keys():
        more = paired(sphere, oblique)
        both = " and ".join(f"{fmean(own.values()):.3f}" for own in (sphere, oblique))
        yield Finding(
            "exploratory: the sphere has a wider gap than the oblique at the last step", of_signs([more.sign]),
            f"as a share of the range's width, {both}: {more.mean:.3f} [{more.low:.3f}, {more.high:.3f}] wider",
        )  # fmt: skip


def _by_spheres(results: Results) -> Iterable[Finding]:
    found = {m: (gap(results, arm), gap(results, arm, logits=True)) for m, arm in BY_SPHERES.items()}
    known = {m: (share, logits) for m, (share, logits) in found.items() if share and logits}
    if len(known) == len(BY_SPHERES):
        falls = all(a.mean > b.mean for (a, _), (b, _) in pairwise(known.values()))
        shares = ", ".join(f"{share.mean:.3f} on {m}" for m, (share, _) in known.items())
        nats = ", ".join(f"{logits.mean:.2f}" for _, logits in known.values())
        claim = "exploratory: the gap narrows with the number of spheres"
        yield Finding(
            claim, of_tests([falls]), f"as a share of the range's width: {shares}; of logits, in nats: {nats}"
        )


def pictures(results: Results) -> Iterable[tuple[str, Figure]]:
    """Similarities of pairs and strangers over training; the gap of logits against noise."""
    yield "similarities", _over_training(results)
    yield "gap", _over_noise(results)


def _over_training(results: Results) -> Figure:
    from matplotlib.figure import Figure

    shown = [
        arm for arm in results.begun if arm.name in ("sphere", "oblique-16", "sphere-noise-50", "oblique-noise-50")
    ]
    figure = Figure((3.2 * max(1, len(shown)), 3.4), layout="constrained")
    for axis, arm in zip(figure.subplots(1, max(1, len(shown)), squeeze=False)[0], shown, strict=True):
        runs = list(results.runs(arm.name).values())
        half = width_of(runs[0].result["topology"]) / 2
        for kind, style, label in (("positive", "-", "own name"), ("negative", "--", "other names")):
            steps = runs[0].curve(f"val_{kind}")[0]
            mean, spread = (
                np.mean([run.curve(f"val_{kind}{end}")[1] for run in runs], 0) / half for end in ("", "_std")
            )
            draw_band(axis, steps, mean, spread, style, label)
        axis.set(title=arm.name, xlabel="step", ylabel="similarity / its maximum", ylim=(-0.5, 1.0))
        axis.grid(alpha=0.3)
    if shown:
        figure.axes[0].legend(fontsize=8)
    return figure


def _over_noise(results: Results) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure((5.5, 3.8), layout="constrained")
    axis = figure.subplots()
    for topology, style in zip(TOPOLOGIES, ("o--", "^-"), strict=True):
        found = {level: gap(results, f"{topology}-{suffix(level)}", logits=True) for level in LEVELS}
        known = {level: own for level, own in found.items() if own}
        axis.errorbar(
            list(known), [own.mean for own in known.values()], [own.half for own in known.values()],
            fmt=style, color="black", capsize=2, label=f"{topology}, validation",
        )  # fmt: skip
    levels = np.linspace(0.01, 0.7, 100)
    axis.plot(
        levels, [least_logit_gap(level) for level in levels], ":", color="black", label="least loss, strangers alike"
    )
    axis.set(xlabel="share of shuffled captions", ylabel="gap of logits (nats)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


QUESTION = Question(
    name="equilibrium",
    asks="Where do attraction and repulsion cancel, and how does that move with topology and noise?",
    arms=(*HEADLINE, *SHORT, *OTHERS, *GRIDS[SLOW], *ARMS, CONTROL),
    curves=tuple(arm.name for arm in (*HEADLINE, *GRIDS[SLOW])),
    findings=findings,
    pictures=pictures,
)
