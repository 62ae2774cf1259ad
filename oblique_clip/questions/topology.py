"""1. Does it matter where embeddings live: topology, number of tokens and number of norms, at one D."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..config import TrainConfig
from ..sweep.question import Arm, Finding, Question, varied
from ..sweep.results import Results, found_of
from .base import (
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
)

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
OTHER_CLAIMS = (
    ("idle tokens help, after 1,200 steps", "sphere-idle", "sphere-short"),
    ("idle tokens help, after 3,000 steps", "sphere-idle-long", "sphere-cpu"),
    (
        "m tokens at one norm are better than as many idle ones, after 3,000 steps",
        "concatenated-long-cpu",
        "sphere-idle-long",
    ),
    ("the headline runs on a second device have the oblique ahead", "oblique-16-cpu", "sphere-cpu"),
    ("the oblique is better than a sphere of 1.75 times the steps", "oblique-16", "sphere-equal-time"),
    ("the oblique is better than a sphere of 1.75 times the steps on a CPU", "oblique-16-cpu", "sphere-equal-time-cpu"),
    ("m tokens at one norm are better than a sphere of 1.75 times the steps", "concatenated-long", "sphere-equal-time"),
    ("the oblique is better than a sphere of 2.3 times the steps", "oblique-16", "sphere-as-long"),
    ("the oblique is better than the sphere after 6,900 steps", "oblique-as-long", "sphere-as-long"),
    ("m tokens help at one norm, after 6,900 steps", "concatenated-as-long", "sphere-as-long"),
    ("m norms help at m tokens, after 6,900 steps", "oblique-as-long", "concatenated-as-long"),
    ("4 spheres are better than one, after 3,000 steps", "oblique-4-long", "sphere"),
    ("8 spheres are better than one, after 3,000 steps", "oblique-8-long", "sphere"),
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
    Arm("concatenated-as-long", long(CONCATENATED, AS_LONG), HEADLINE_SEEDS),
    Arm("sphere-equal-time", IN_EQUAL_TIME, HEADLINE_SEEDS),
)
ALSO_ON_CPU = (
    Arm("sphere-cpu", long(SPHERE), seeds=4),
    Arm("oblique-16-cpu", long(OBLIQUE)),
    Arm("reshaped-long-cpu", long(RESHAPED)),
    Arm("concatenated-long-cpu", long(CONCATENATED)),
    Arm("sphere-equal-time-cpu", IN_EQUAL_TIME),
    Arm("oblique-as-long-cpu", long(OBLIQUE, AS_LONG)),
)
# On a CPU too.
IDLE_LONG = Arm("sphere-idle-long", long(IDLE))


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
    """The two axes apart: what m norms add at one token, and what m tokens add at one norm."""
    for claim, first, second in (*_axes(SHORT_CORNERS), *_axes(LONG_CORNERS), *_axes(CPU_CORNERS), *OTHER_CLAIMS):
        yield from found_of(f"exploratory: {claim}", results.compare(first, second))


def _axes(corners: Corners) -> Iterable[tuple[str, str, str]]:
    after = f"after {corners.after}"
    yield f"m norms help at one token, {after}", corners.reshaped, corners.sphere
    yield f"m norms help at m tokens, {after}", corners.oblique, corners.concatenated
    yield f"m tokens help at one norm, {after}", corners.concatenated, corners.sphere
    yield f"m tokens help at m norms, {after}", corners.oblique, corners.reshaped


def _sides(corners: Corners) -> list[tuple[str, str]]:
    return [(first, second) for _, first, second in _axes(corners)]


QUESTION = Question(
    name="topology",
    asks="Does a product of spheres serve better than one sphere at the same D, and which part of it: tokens or norms?",
    arms=(*HEADLINE, *LONGER, *FACTORS_LONG, *FEWER_LONG, *ALSO_ON_CPU, IDLE_LONG, *FACTORS, *OTHERS),
    contrasts=(
        ("oblique-16", "sphere-equal-time"),
        ("concatenated-long", "sphere-equal-time"),
        ("oblique-16", "sphere-as-long"),
        *((arm.name, other) for arm in FEWER_LONG for other in ("sphere", "oblique-16")),
        ("sphere-as-long", "sphere"),
        ("oblique-as-long", "oblique-16"),
        ("oblique-as-long", "sphere-as-long"),
        ("concatenated-as-long", "sphere-as-long"),
        ("oblique-as-long", "concatenated-as-long"),
        *_sides(LONG_CORNERS),
        *_sides(CPU_CORNERS),
        ("sphere-idle-long", "sphere-cpu"),
        ("concatenated-long-cpu", "sphere-idle-long"),
        ("oblique-16-cpu", "sphere-cpu"),
        ("oblique-16-cpu", "sphere-equal-time-cpu"),
        ("oblique-as-long-cpu", "oblique-16-cpu"),
        *((arm.name, arm.name.removesuffix(ON_CPU)) for arm in ALSO_ON_CPU),
        *((arm.name, "sphere-short") for arm in (*FACTORS, *OTHERS) if arm.name != "sphere-short"),
        ("oblique-short", "concatenated"),
        ("oblique-short", "reshaped"),
        ("oblique-short", "oblique-shared-short"),
    ),
    primary=("oblique-16", "sphere"),
    curves=tuple(arm.name for arm in (*HEADLINE, *LONGER, *FACTORS_LONG)),
    spaces=("sphere", "oblique-16"),
    findings=findings,
)
