"""8. How the difference moves with data, width and length of training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..sweep.question import Finding, Question, of_signs
from ..sweep.results import HEADLINES, Results, points
from ..sweep.statistics import t_interval
from .base import HEADLINE, SHORT, both

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5}
DATA = tuple(
    arm for name, share in SHARES.items() for arm in both(f"data-{name.replace('/', '-')}", data={"train_share": share})
)
WIDTH = both("wide", arch={"vision_width": 192, "text_width": 192})
AXES: dict[str, dict[float, str]] = {
    "share of the pairs": {**{share: f"data-{name.replace('/', '-')}" for name, share in SHARES.items()}, 1.0: "short"},
    "width of the towers": {128: "short", 192: "wide"},
}


def pair(suffix: str) -> tuple[str, str]:
    return f"oblique-{suffix}", f"sphere-{suffix}"


def findings(results: Results) -> Iterable[Finding]:
    """Whether the advantage grows along each axis, from its small end to its large one, seed by seed."""
    short, long_ = pair("short"), ("oblique-16", "sphere")
    ends = {"data": (pair("data-1-8"), short), "width": (short, pair("wide")), "length": (short, long_)}
    for axis, (small, large) in ends.items():
        for before, after in zip(results.compare(*small), results.compare(*large), strict=False):
            shared = sorted(before.seeds.keys() & after.seeds.keys())
            grown = t_interval([after.seeds[seed] - before.seeds[seed] for seed in shared])
            said = f"from {before.over_seeds.mean:+.2f} to {after.over_seeds.mean:+.2f} points; "
            said += f"over the seeds of both {points(grown)} more"
            claim = f"exploratory: the advantage of the oblique grows with {axis}, on {before.measure.title}"
            yield Finding(claim, of_signs([grown.sign]), said)


def pictures(results: Results) -> Iterable[tuple[str, Figure]]:
    """The difference against the share of the data."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.6), layout="constrained")
    for axis, (label, places) in zip(figure.subplots(1, len(AXES)), AXES.items(), strict=True):
        for measure, style in zip(HEADLINES, ("o-", "s--"), strict=True):
            found = {x: results.ahead(*pair(suffix), measure) for x, suffix in places.items()}
            known = {x: one.over_seeds for x, one in found.items() if one}
            if known:
                means, halves = [one.mean for one in known.values()], [one.half for one in known.values()]
                look = {"color": "black", "capsize": 3, "markersize": 4}
                axis.errorbar(list(known), means, halves, fmt=style, label=measure.title, **look)
        axis.axhline(0, color="#999999", linewidth=1)
        axis.set(xlabel=label, ylabel="oblique ahead of sphere (points)", xscale="log")
        axis.set_xticks(list(places), [str(x) for x in places])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    yield "scale", figure


QUESTION = Question(
    name="scale",
    asks="Does the advantage grow or fade with data, width and length of training?",
    arms=(*SHORT, *DATA, *HEADLINE, *WIDTH),
    contrasts=(*(pair(suffix) for places in AXES.values() for suffix in places.values()), ("oblique-16", "sphere")),
    findings=findings,
    pictures=pictures,
)
