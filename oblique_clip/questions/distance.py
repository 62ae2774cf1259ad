"""5. Which distance: inner, geodesic or chordal, on the sphere and on the oblique manifold."""

from __future__ import annotations

from ..sweep.question import Arm, Question, varied
from .base import OBLIQUE, SHORT, SPHERE, D, M

SPECS = {"sphere": (SPHERE, f"sphere({D})"), "oblique": (OBLIQUE, f"oblique({D // M},{M})")}
ARMS = tuple(
    Arm(f"{name}-{distance}", varied(base, model={"topology": f"{spec}/{distance}"}))
    for name, (base, spec) in SPECS.items()
    for distance in ("geodesic", "chordal")
)

QUESTION = Question(
    name="distance",
    asks="Does the distance matter, once the manifold is chosen?",
    arms=(*SHORT, *ARMS),
    contrasts=tuple((arm.name, f"{arm.name.partition('-')[0]}-short") for arm in ARMS),
)
