"""2. Can the topology replace the temperature: scale learned, fixed, annealed and unclamped, on both topologies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from oblique_clip.config import TrainConfig
from oblique_clip.questions.base import CLIP_SCALE, OBLIQUE, SHORT, SPHERE, M
from oblique_clip.sweep.question import Arm, Finding, Question, of_tests, varied
from oblique_clip.sweep.results import HEADLINES, Results, found_of
from oblique_clip.sweep.statistics import Interval, t_interval

# Chosen among trials on the validation family, the same for both: half, once and twice the scale that was learned.
TUNED = {"sphere": 17.0, "oblique": 2.28}
KEPT = 0.95


def fixed(base: TrainConfig, scale: float) -> TrainConfig:
    return varied(base, temperature={"temperature": "constant", "init_scale": scale})


def annealed(base: TrainConfig, start: float) -> TrainConfig:
    """From CLIP's start to 3.5 times as much, by a cosine."""
    return varied(base, temperature={"temperature": "cosine", "init_scale": start, "final_scale": 3.5 * start})


BASES = {"sphere": (SPHERE, 1.0), "oblique": (OBLIQUE, float(M))}
ARMS = tuple(
    arm
    for name, (base, width) in BASES.items()
    for arm in (
        Arm(f"{name}-fixed-1", fixed(base, 1.0)),
        Arm(f"{name}-fixed-tuned", fixed(base, TUNED[name])),
        Arm(f"{name}-annealed", annealed(base, CLIP_SCALE / width)),
        # The clamp is far from what is learned in so short a run: one seed shows that nothing changes.
        Arm(f"{name}-unclamped", varied(base, temperature={"max_scale": float("inf")}), seeds=1),
    )
)
CONTROL = Arm(f"sphere-fixed-{M}", fixed(SPHERE, float(M)))


class Kept(NamedTuple):
    """Accuracy of an arm as a share of that with a learned temperature: of the means, and over seeds."""

    measure: str
    share: float
    over_seeds: Interval


def share_kept(results: Results, arm: str, learned: str) -> list[Kept]:
    """By measure; nothing where a learned temperature is right nowhere."""
    found = []
    for measure in HEADLINES:
        ours, theirs = results.values(arm, measure), results.values(learned, measure)
        shared = sorted(ours.keys() & theirs.keys())
        if shared and all(theirs[seed] for seed in shared):
            share = sum(ours[seed] for seed in shared) / sum(theirs[seed] for seed in shared)
            found.append(Kept(measure.title, share, t_interval([ours[seed] / theirs[seed] for seed in shared])))
    return found


def findings(results: Results) -> Iterable[Finding]:
    """The claim at temperature 1, and what the sphere at scale m explains of it."""
    kept = {name: share_kept(results, f"{name}-fixed-1", f"{name}-short") for name in BASES}
    claims = {
        "sphere": ("the sphere collapses: it keeps less than half of its accuracy", lambda share: share < 0.5),
        "oblique": (f"the oblique keeps {KEPT:.0%} of its accuracy", lambda share: share >= KEPT),
    }
    for name, (claim, holds) in claims.items():
        if kept[name]:
            said = f"at scale 1 the {name} keeps {_shares(kept[name])} of what it has with a learned scale"
            verdict = of_tests(holds(one.share) for one in kept[name])
            yield Finding(f"with temperature fixed at 1 {claim}", verdict, said)
    ahead = results.compare("oblique-fixed-1", CONTROL.name)
    yield from found_of(f"at scale 1 the oblique is better than a sphere at scale {M}, its control", ahead)
    if control := share_kept(results, CONTROL.name, "sphere-short"):
        said = f"at scale {M} the sphere keeps {_shares(control)} of what it has with a learned scale"
        verdict = of_tests(one.share >= KEPT for one in control)
        yield Finding(f"the control, a sphere at scale {M}, keeps {KEPT:.0%} as well", verdict, said)


def _shares(shares: list[Kept]) -> str:
    """In percent, with the interval of the shares of seeds where there are enough of these for one."""
    said = []
    for one in shares:
        low, high = 100 * one.over_seeds.low, 100 * one.over_seeds.high
        interval = f" [{low:.1f}, {high:.1f}]" if math.isfinite(low) else ""
        said.append(f"{100 * one.share:.1f} %{interval} ({one.measure})")
    return ", ".join(said)


QUESTION = Question(
    name="temperature",
    asks="Does the topology replace the learned softmax temperature?",
    arms=(*SHORT, *ARMS, CONTROL),
    contrasts=(
        *((arm.name, f"{arm.name.partition('-')[0]}-short") for arm in (*ARMS, CONTROL)),
        ("oblique-fixed-1", CONTROL.name),
        ("oblique-fixed-1", "sphere-short"),
        ("oblique-short", "sphere-short"),
    ),
    findings=findings,
)
