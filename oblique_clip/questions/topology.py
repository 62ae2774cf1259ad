"""1. Does it matter where embeddings live: topology, number of tokens and number of norms, at one D."""

from __future__ import annotations

from collections.abc import Iterable

from ..sweep.question import Arm, Finding, Question, varied
from ..sweep.results import Results, found_of
from .base import COST, HEADLINE_SEEDS, OBLIQUE, SPHERE, D, M, long

SPHERES = (2, 4, 8, 32)

# One class token or m, one norm or m: everything else is equal.
FACTORS = (
    Arm("sphere", long(SPHERE), HEADLINE_SEEDS),
    Arm("oblique-16", long(OBLIQUE), HEADLINE_SEEDS),
    Arm("oblique-16-shared", long(varied(OBLIQUE, model={"projection": "shared"}))),
    Arm("oblique-16-reshaped", long(varied(OBLIQUE, model={"projection": "reshaped"}))),
    Arm("concatenated-16", long(varied(OBLIQUE, model={"topology": f"sphere({D})", "tokens": M}))),
    Arm("sphere-idle-15", long(varied(SPHERE, model={"registers": M - 1}))),
    Arm("sphere-as-long", long(SPHERE, COST), HEADLINE_SEEDS),
)
OTHERS = (
    Arm("euclidean", varied(SPHERE, model={"topology": f"euclidean({D})"})),
    Arm("lorentz", varied(SPHERE, model={"topology": f"lorentz({D})"})),
    *(Arm(f"oblique-{m}", varied(OBLIQUE, model={"topology": f"oblique({D // m},{m})"})) for m in SPHERES),
    Arm("sphere-short", SPHERE),
    Arm("oblique-short", OBLIQUE),
)


def findings(results: Results) -> Iterable[Finding]:
    """The two axes apart: what m norms add at one token, and what m tokens add at one norm."""
    axes = (
        ("m norms help at one token", "oblique-16-reshaped", "sphere"),
        ("m norms help at m tokens", "oblique-16", "concatenated-16"),
        ("m tokens help at one norm", "concatenated-16", "sphere"),
        ("m tokens help at m norms", "oblique-16", "oblique-16-reshaped"),
        ("idle tokens help", "sphere-idle-15", "sphere"),
        ("the oblique is better at equal time", "oblique-16", "sphere-as-long"),
    )
    for claim, first, second in axes:
        yield from found_of(f"exploratory: {claim}", results.compare(first, second))


QUESTION = Question(
    name="topology",
    asks="Does a product of spheres serve better than one sphere at the same D, and which part of it: tokens or norms?",
    arms=(*FACTORS, *OTHERS),
    contrasts=(
        ("oblique-16-shared", "sphere"),
        ("oblique-16", "sphere-as-long"),
        ("oblique-16-reshaped", "sphere"),
        ("concatenated-16", "sphere"),
        ("oblique-16", "concatenated-16"),
        ("oblique-16", "oblique-16-reshaped"),
        ("sphere-idle-15", "sphere"),
        ("euclidean", "sphere-short"),
        ("lorentz", "sphere-short"),
        *((f"oblique-{m}", "sphere-short") for m in SPHERES),
        ("oblique-short", "sphere-short"),
    ),
    primary=("oblique-16", "sphere"),
    findings=findings,
)
