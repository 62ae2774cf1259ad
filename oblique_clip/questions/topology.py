"""1. Does it matter where embeddings live: topology, number of tokens and number of norms, at one D."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from oblique_clip.config import TrainConfig
from oblique_clip.questions.base import (
    AS_LONG,
    EQUAL_TIME,
    HEADLINE,
    HEADLINE_SEEDS,
    HEADLINE_STEPS,
    LONGER,
    OBLIQUE,
    ON_CPU,
    SHORT,
    SPHERE,
    STEPS,
    D,
    M,
    long,
    on_cpu,
)
from oblique_clip.sweep.question import Arm, Finding, Question, varied
from oblique_clip.sweep.results import Results, found_of

SPHERES, SPHERES_LONG = (2, 4, 8, 32), (4, 8)


class Corners(NamedTuple):
    """Arms of {1, m tokens} x {1, m norms}."""

    after: str
    sphere: str
    reshaped: str
    concatenated: str
    oblique: str


SHORT_CORNERS = Corners(f"{STEPS:,} steps", "sphere-short", "reshaped", "concatenated", "oblique-short")
LONG_CORNERS = Corners(f"{HEADLINE_STEPS:,} steps", "sphere", "reshaped-long", "concatenated-long", "oblique-16")
CPU_CORNERS = Corners(f"{LONG_CORNERS.after} on a CPU", *(f"{arm}{ON_CPU}" for arm in LONG_CORNERS[1:]))
_SHORT, _LONG, _LONGEST = (
    f"after {steps:,} steps" for steps in (STEPS, HEADLINE_STEPS, round(AS_LONG * HEADLINE_STEPS))
)
OTHER_CLAIMS = (
    (f"idle tokens help, {_SHORT}", "sphere-idle", "sphere-short"),
    (f"idle tokens help, {_LONG} on a CPU", "sphere-idle-long-cpu", "sphere-cpu"),
    (
        f"m tokens at one norm are better than idle ones, {_LONG} on a CPU",
        "concatenated-long-cpu",
        "sphere-idle-long-cpu",
    ),
    ("the headline runs on a second device have the oblique ahead", "oblique-16-cpu", "sphere-cpu"),
    (f"the oblique is better than a sphere of {EQUAL_TIME} times the steps", "oblique-16", "sphere-equal-time"),
    (f"the same is so on a CPU, of {EQUAL_TIME} times the steps", "oblique-16-cpu", "sphere-equal-time-cpu"),
    (f"m tokens at one norm are better than {EQUAL_TIME} times the steps", "concatenated-long", "sphere-equal-time"),
    (f"the oblique is better than a sphere of {AS_LONG} times the steps", "oblique-16", "sphere-as-long"),
    (f"the oblique is better than the sphere, {_LONGEST}", "oblique-as-long", "sphere-as-long"),
    (f"m tokens help at one norm, {_LONGEST}", "concatenated-as-long", "sphere-as-long"),
    (f"m norms help at m tokens, {_LONGEST}", "oblique-as-long", "concatenated-as-long"),
    *((f"{m} spheres are better than one, {_LONG}", f"oblique-{m}-long", "sphere") for m in SPHERES_LONG),
)
# One class token or m, one norm or m: everything else is equal.
RESHAPED = varied(OBLIQUE, model={"projection": "reshaped"})
CONCATENATED = varied(OBLIQUE, model={"topology": f"sphere({D})", "tokens": M})
IDLE = varied(SPHERE, model={"registers": M - 1})
IN_EQUAL_TIME = long(SPHERE, EQUAL_TIME)
FACTORS = (
    *SHORT,
    Arm("oblique-shared-short", varied(OBLIQUE, model={"projection": "shared"})),
    Arm("reshaped", RESHAPED),
    Arm("concatenated", CONCATENATED),
    Arm("sphere-idle", IDLE),
)
FACTORS_LONG = (
    Arm("reshaped-long", long(RESHAPED), HEADLINE_SEEDS),
    Arm("concatenated-long", long(CONCATENATED), HEADLINE_SEEDS),
    Arm("sphere-equal-time", IN_EQUAL_TIME, HEADLINE_SEEDS),
)
CONCATENATED_LONGEST = Arm("concatenated-as-long", long(CONCATENATED, AS_LONG), HEADLINE_SEEDS)
ALSO_ON_CPU = (
    on_cpu(HEADLINE[0], seeds=4),
    *(on_cpu(arm, seeds=3) for arm in (HEADLINE[1], LONGER[1], *FACTORS_LONG)),
)
IDLE_LONG = on_cpu(Arm("sphere-idle-long", long(IDLE)))


def _of_spheres(m: int) -> TrainConfig:
    return varied(OBLIQUE, model={"topology": f"oblique({D // m},{m})"})


OTHERS = (
    Arm("euclidean", varied(SPHERE, model={"topology": f"euclidean({D})"})),
    Arm("lorentz", varied(SPHERE, model={"topology": f"lorentz({D})"})),
    *(Arm(f"oblique-{m}-short", _of_spheres(m)) for m in SPHERES),
)
FEWER_LONG = tuple(Arm(f"oblique-{m}-long", long(_of_spheres(m))) for m in SPHERES_LONG)
_NAMES = {1: "sphere-short", M: "oblique-short", **{m: f"oblique-{m}-short" for m in SPHERES}}
BY_SPHERES = dict(sorted(_NAMES.items()))
"""Arms of 1,200 steps by their number of spheres."""


def findings(results: Results) -> Iterable[Finding]:
    """The two axes apart: what m norms add at one token, and what m tokens add at one norm; then the other claims."""
    for claim, first, second in _claims():
        yield from found_of(f"exploratory: {claim}", results.compare(first, second))


def _claims() -> Iterable[tuple[str, str, str]]:
    return (*_axes(SHORT_CORNERS), *_axes(LONG_CORNERS), *_axes(CPU_CORNERS), *OTHER_CLAIMS)


def _axes(corners: Corners) -> Iterable[tuple[str, str, str]]:
    after = f"after {corners.after}"
    yield f"m norms help at one token, {after}", corners.reshaped, corners.sphere
    yield f"m norms help at m tokens, {after}", corners.oblique, corners.concatenated
    yield f"m tokens help at one norm, {after}", corners.concatenated, corners.sphere
    yield f"m tokens help at m norms, {after}", corners.oblique, corners.reshaped


QUESTION = Question(
    name="topology",
    asks="Does a product of spheres serve better than one sphere at the same D, and which part of it: tokens or norms?",
    arms=(
        *HEADLINE,
        *LONGER,
        *FACTORS_LONG,
        CONCATENATED_LONGEST,
        *FEWER_LONG,
        *ALSO_ON_CPU,
        IDLE_LONG,
        *FACTORS,
        *OTHERS,
    ),
    contrasts=tuple(
        dict.fromkeys(
            (
                *((first, second) for _, first, second in _claims()),
                *((arm.name, "oblique-16") for arm in FEWER_LONG),
                ("sphere-as-long", "sphere"),
                ("oblique-as-long", "oblique-16"),
                ("oblique-as-long-cpu", "oblique-16-cpu"),
                *((arm.name, arm.name.removesuffix(ON_CPU)) for arm in ALSO_ON_CPU),
                *((arm.name, "sphere-short") for arm in (*FACTORS, *OTHERS) if arm.name != "sphere-short"),
                ("oblique-short", "oblique-shared-short"),
            )
        )
    ),
    primary=("oblique-16", "sphere"),
    curves=tuple(arm.name for arm in (*HEADLINE, *LONGER, *FACTORS_LONG, CONCATENATED_LONGEST)),
    spaces=("sphere", "oblique-16"),
    findings=findings,
)
