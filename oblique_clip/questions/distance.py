"""5. Which distance: inner, geodesic or chordal, on the sphere and on the oblique manifold."""

from __future__ import annotations

from collections.abc import Iterable

from oblique_clip.questions.base import OBLIQUE, SHORT, SPHERE, D, M
from oblique_clip.sweep.question import Arm, Finding, Question, varied
from oblique_clip.sweep.results import Results, found_of

SPECS = {"sphere": (SPHERE, f"sphere({D})"), "oblique": (OBLIQUE, f"oblique({D // M},{M})")}
ARMS = tuple(
    Arm(f"{name}-{distance}", varied(base, model={"topology": f"{spec}/{distance}"}))
    for name, (base, spec) in SPECS.items()
    for distance in ("geodesic", "chordal")
)
CONTRASTS = tuple((arm.name, f"{arm.name.partition('-')[0]}-short") for arm in ARMS)


def findings(results: Results) -> Iterable[Finding]:
    for first, second in CONTRASTS:
        claim = f"exploratory: {first.replace('-', ' with ')} distance is better than with the inner product"
        yield from found_of(claim, results.compare(first, second))


QUESTION = Question(
    name="distance",
    asks="Does the distance matter, once the manifold is chosen?",
    arms=(*SHORT, *ARMS),
    contrasts=CONTRASTS,
    findings=findings,
)
