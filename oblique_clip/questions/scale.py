"""8. How the difference moves with data, width and length of training."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, product
from statistics import fmean
from typing import TYPE_CHECKING

from oblique_clip.questions.base import HEADLINE, HEADLINE_STEPS, LONGER, SHORT, both
from oblique_clip.sweep.question import Finding, Question, of_signs
from oblique_clip.sweep.results import HEADLINES, Results, points
from oblique_clip.sweep.statistics import t_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5}
DATA = tuple(
    arm for name, share in SHARES.items() for arm in both(f"data-{name.replace('/', '-')}", data={"train_share": share})
)
_WIDE = {"vision_width": 192, "text_width": 192}
WIDTH = both("wide", arch=_WIDE)
WIDTH_LONG = both("wide-long", arch=_WIDE, optim={"steps": HEADLINE_STEPS})
# Written by experiments/scale/larger.py beside the other shards.
LARGER_PAIRS = "SHARDS/larger/larger-{000..010}.tar"
LARGER = both("larger", data={"data": LARGER_PAIRS}, optim={"steps": HEADLINE_STEPS})
Pair = tuple[str, str]
"""The oblique and the sphere that it is compared with."""


def pair(suffix: str) -> Pair:
    return f"oblique-{suffix}", f"sphere-{suffix}"


PRIMARY: Pair = ("oblique-16", "sphere")
AXES: dict[str, dict[float, Pair]] = {
    "share of the pairs": {
        **{share: pair(f"data-{name.replace('/', '-')}") for name, share in SHARES.items()},
        1.0: pair("short"),
    },
    "width of the towers": {128: pair("short"), 192: pair("wide")},
    "width, after 3,000 steps": {128: PRIMARY, 192: pair("wide-long")},
    "pairs, after 3,000 steps": {9662: PRIMARY, 41457: pair("larger")},
    "steps": {arms[0].config.optim.steps or 0: (arms[1].name, arms[0].name) for arms in (SHORT, HEADLINE, LONGER)},
}
GROWTH = {
    "data": (pair("data-1-8"), pair("short")),
    "width": (pair("short"), pair("wide")),
    "width, after 3,000 steps": (PRIMARY, pair("wide-long")),
    "data, from the shipped pairs to 41,457 of the larger set": (PRIMARY, pair("larger")),
    "length": (pair("short"), PRIMARY),
    "length beyond 3,000 steps": (PRIMARY, pair("as-long")),
}
"""Small and large end of each axis."""


def findings(results: Results) -> Iterable[Finding]:
    """Whether the advantage grows along each axis, from its small end to its large one, over the seeds of both ends."""
    for (axis, (small, large)), measure in product(GROWTH.items(), HEADLINES):
        before, after = (results.ahead(first, second, measure) for first, second in (small, large))
        shared = sorted(before.seeds.keys() & after.seeds.keys()) if before and after else []
        if before and after and shared:
            grown = t_interval([after.seeds[seed] - before.seeds[seed] for seed in shared])
            least, most = (fmean(one.seeds[seed] for seed in shared) for one in (before, after))
            said = f"from {least:+.2f} to {most:+.2f} points over {len(shared)} seeds; {points(grown)} more"
            claim = f"exploratory: the advantage of the oblique grows with {axis}, on {measure.title}"
            yield Finding(claim, of_signs([grown.sign]), said)


def pictures(results: Results) -> Iterable[tuple[str, Figure]]:
    """The difference along each axis."""
    from matplotlib.figure import Figure

    figure = Figure((16, 3.6), layout="constrained")
    for axis, (label, places) in zip(figure.subplots(1, len(AXES)), AXES.items(), strict=True):
        for measure, style in zip(HEADLINES, ("o-", "s--"), strict=True):
            found = {x: results.ahead(*arms, measure) for x, arms in places.items()}
            known = {x: one.over_seeds for x, one in found.items() if one}
            if known:
                means, halves = [one.mean for one in known.values()], [one.half for one in known.values()]
                look = {"color": "black", "capsize": 3, "markersize": 4}
                axis.errorbar(list(known), means, halves, fmt=style, label=measure.title, **look)
        axis.axhline(0, color="#999999", linewidth=1)
        axis.set(xlabel=label, ylabel="oblique ahead of sphere (points)", xscale="log")
        axis.set_xticks(list(places), [f"{x:g}" for x in places])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    yield "scale", figure


QUESTION = Question(
    name="scale",
    asks="Does the advantage grow or fade with data, width and length of training?",
    arms=(*SHORT, *DATA, *HEADLINE, *WIDTH, *WIDTH_LONG, *LONGER, *LARGER),
    contrasts=tuple(dict.fromkeys(chain(*(places.values() for places in AXES.values())))),
    curves=tuple(arm.name for arm in (*HEADLINE, *WIDTH_LONG, *LONGER, *LARGER)),
    findings=findings,
    pictures=pictures,
)
