"""1. Does it matter where embeddings live: topology, number of tokens and number of norms, at one D."""

from __future__ import annotations

from collections.abc import Iterable

from ..sweep.question import Arm, Finding, Question, varied
from ..sweep.results import Results, found_of
from .base import COST, HEADLINE, OBLIQUE, SHORT, SPHERE, D, M, long

SPHERES = (2, 4, 8, 32)

AS_LONG = Arm("sphere-as-long", long(SPHERE, COST))
# One class token or m, one norm or m: everything else is equal.
FACTORS = (
    *SHORT,
    Arm("oblique-shared-short", varied(OBLIQUE, model={"projection": "shared"})),
    Arm("reshaped", varied(OBLIQUE, model={"projection": "reshaped"})),
    Arm("concatenated", varied(OBLIQUE, model={"topology": f"sphere({D})", "tokens": M})),
    Arm("sphere-idle", varied(SPHERE, model={"registers": M - 1})),
)
OTHERS = (
    Arm("euclidean", varied(SPHERE, model={"topology": f"euclidean({D})"})),
    Arm("lorentz", varied(SPHERE, model={"topology": f"lorentz({D})"})),
    *(Arm(f"oblique-{m}-short", varied(OBLIQUE, model={"topology": f"oblique({D // m},{m})"})) for m in SPHERES),
)


def findings(results: Results) -> Iterable[Finding]:
    """The two axes apart: what m norms add at one token, and what m tokens add at one norm."""
    axes = (
        ("m norms help at one token", "reshaped", "sphere-short"),
        ("m norms help at m tokens", "oblique-short", "concatenated"),
        ("m tokens help at one norm", "concatenated", "sphere-short"),
        ("m tokens help at m norms", "oblique-short", "reshaped"),
        ("idle tokens help", "sphere-idle", "sphere-short"),
        ("the oblique is better than a sphere of 2.3 times the steps", "oblique-16", "sphere-as-long"),
    )
    for claim, first, second in axes:
        yield from found_of(f"exploratory: {claim}", results.compare(first, second))


QUESTION = Question(
    name="topology",
    asks="Does a product of spheres serve better than one sphere at the same D, and which part of it: tokens or norms?",
    arms=(*HEADLINE, AS_LONG, *FACTORS, *OTHERS),
    contrasts=(
        ("oblique-16", "sphere-as-long"),
        ("sphere-as-long", "sphere"),
        *((arm.name, "sphere-short") for arm in (*FACTORS, *OTHERS) if arm.name != "sphere-short"),
        ("oblique-short", "concatenated"),
        ("oblique-short", "reshaped"),
        ("oblique-short", "oblique-shared-short"),
    ),
    primary=("oblique-16", "sphere"),
    spaces=("sphere", "oblique-16"),
    findings=findings,
)
