"""1. Does it matter where embeddings live: topology, number of tokens and number of norms, at one D."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..sweep.question import Arm, Finding, Question, varied
from ..sweep.results import Results, found_of
from .base import EQUAL_TIME, HEADLINE, HEADLINE_STEPS, LONGER, OBLIQUE, SHORT, SPHERE, STEPS, D, M, long

SPHERES = (2, 4, 8, 32)


class Corners(NamedTuple):
    """Arms of {1, m tokens} x {1, m norms}."""

    steps: int
    sphere: str
    reshaped: str
    concatenated: str
    oblique: str


SHORT_CORNERS = Corners(STEPS, "sphere-short", "reshaped", "concatenated", "oblique-short")
LONG_CORNERS = Corners(HEADLINE_STEPS, "sphere-repeated", "reshaped-long", "concatenated-long", "oblique-16-repeated")
OTHER_CLAIMS = (
    ("idle tokens help", "sphere-idle", "sphere-short"),
    ("the headline runs on a second device have the oblique ahead", "oblique-16-repeated", "sphere-repeated"),
    ("the oblique is better than a sphere of as much time on a CPU", "oblique-16-repeated", "sphere-equal-time"),
    ("the oblique is better than a sphere of 2.3 times the steps", "oblique-16", "sphere-as-long"),
    ("the oblique is better than the sphere after 6,900 steps", "oblique-as-long", "sphere-as-long"),
)
IN_EQUAL_TIME = Arm("sphere-equal-time", long(SPHERE, EQUAL_TIME))
# One class token or m, one norm or m: everything else is equal.
RESHAPED = varied(OBLIQUE, model={"projection": "reshaped"})
CONCATENATED = varied(OBLIQUE, model={"topology": f"sphere({D})", "tokens": M})
FACTORS = (
    *SHORT,
    Arm("oblique-shared-short", varied(OBLIQUE, model={"projection": "shared"})),
    Arm("reshaped", RESHAPED),
    Arm("concatenated", CONCATENATED),
    Arm("sphere-idle", varied(SPHERE, model={"registers": M - 1})),
)
# The headline runs on a second device, on which the other two corners of the factorial were trained as long as they.
REPEATED = (Arm("sphere-repeated", long(SPHERE), seeds=4), Arm("oblique-16-repeated", long(OBLIQUE)))
FACTORS_LONG = (*REPEATED, Arm("reshaped-long", long(RESHAPED)), Arm("concatenated-long", long(CONCATENATED)))
OTHERS = (
    Arm("euclidean", varied(SPHERE, model={"topology": f"euclidean({D})"})),
    Arm("lorentz", varied(SPHERE, model={"topology": f"lorentz({D})"})),
    *(Arm(f"oblique-{m}-short", varied(OBLIQUE, model={"topology": f"oblique({D // m},{m})"})) for m in SPHERES),
)
_NAMES = {1: "sphere-short", M: "oblique-short", **{m: f"oblique-{m}-short" for m in SPHERES}}
BY_SPHERES = dict(sorted(_NAMES.items()))
"""Arms of 1,200 steps by their number of spheres."""


def findings(results: Results) -> Iterable[Finding]:
    """The two axes apart: what m norms add at one token, and what m tokens add at one norm."""
    for claim, first, second in (*_axes(SHORT_CORNERS), *_axes(LONG_CORNERS), *OTHER_CLAIMS):
        yield from found_of(f"exploratory: {claim}", results.compare(first, second))


def _axes(corners: Corners) -> Iterable[tuple[str, str, str]]:
    after = f"after {corners.steps:,} steps"
    yield f"m norms help at one token, {after}", corners.reshaped, corners.sphere
    yield f"m norms help at m tokens, {after}", corners.oblique, corners.concatenated
    yield f"m tokens help at one norm, {after}", corners.concatenated, corners.sphere
    yield f"m tokens help at m norms, {after}", corners.oblique, corners.reshaped


QUESTION = Question(
    name="topology",
    asks="Does a product of spheres serve better than one sphere at the same D, and which part of it: tokens or norms?",
    arms=(*HEADLINE, *LONGER, IN_EQUAL_TIME, *FACTORS_LONG, *FACTORS, *OTHERS),
    contrasts=(
        ("oblique-16-repeated", "sphere-repeated"),
        ("sphere-repeated", "sphere"),
        ("oblique-16-repeated", "oblique-16"),
        ("oblique-as-long", "sphere-as-long"),
        ("oblique-16-repeated", "sphere-equal-time"),
        ("oblique-16", "sphere-as-long"),
        ("sphere-as-long", "sphere"),
        ("oblique-as-long", "oblique-16-repeated"),
        ("reshaped-long", "sphere-repeated"),
        ("concatenated-long", "sphere-repeated"),
        ("oblique-16-repeated", "concatenated-long"),
        ("oblique-16-repeated", "reshaped-long"),
        *((arm.name, "sphere-short") for arm in (*FACTORS, *OTHERS) if arm.name != "sphere-short"),
        ("oblique-short", "concatenated"),
        ("oblique-short", "reshaped"),
        ("oblique-short", "oblique-shared-short"),
    ),
    primary=("oblique-16", "sphere"),
    spaces=("sphere", "oblique-16"),
    findings=findings,
)
