"""6. Class tokens and twins: tokens free or on the manifold, started together or apart; twins avoided, against, for."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from statistics import fmean

from oblique_clip.questions.base import OBLIQUE, SHORT, both
from oblique_clip.sweep.question import Arm, Finding, Question, of_signs, varied
from oblique_clip.sweep.results import Results, found_of, points
from oblique_clip.sweep.spaces import SpaceFigure
from oblique_clip.sweep.statistics import paired

TOKENS = (
    Arm("oblique-points", varied(OBLIQUE, model={"class_tokens": "oblique"})),
    Arm("oblique-together", varied(OBLIQUE, model={"token_start": "together"})),
    Arm("oblique-no-positions", varied(OBLIQUE, model={"token_positions": False})),
    Arm("oblique-shared-short", varied(OBLIQUE, model={"projection": "shared"})),
    Arm("oblique-shared-together", varied(OBLIQUE, model={"projection": "shared", "token_start": "together"})),
)
TWINS = (
    *both("twins-negative", data={"twins": "allow"}),
    *both("twins-positive", data={"twins": "allow"}, loss={"positives": "caption"}),
)

ALIKE = SpaceFigure("CKA between spheres", "sphere_cka_images")


def findings(results: Results) -> Iterable[Finding]:
    """Which changes make the spheres more alike, and what twins do as negatives and as positives."""
    plain = ALIKE.values(results, "oblique-short")
    for arm in TOKENS:
        own = ALIKE.values(results, arm.name)
        if own.keys() & plain.keys():
            more = paired(own, plain)
            said = f"CKA between spheres {fmean(own.values()):.2f}, of oblique-short {fmean(plain.values()):.2f}"
            said += f": {points(more).replace(' points', '')} more"
            yield Finding(f"exploratory: {arm.name} makes spheres more alike", of_signs([more.sign]), said)
    for name, use in product(("sphere", "oblique"), ("negative", "positive")):
        claim = f"exploratory: on the {name}, avoiding twins is better than taking them as {use}s"
        yield from found_of(claim, results.compare(f"{name}-short", f"{name}-twins-{use}"))


QUESTION = Question(
    name="tokens",
    asks="What do class tokens need to become specialists, and what should be done with pictures of one caption?",
    arms=(*SHORT, *TOKENS, *TWINS),
    contrasts=(
        *((arm.name, "oblique-short") for arm in TOKENS),
        *((f"{arm.name.partition('-')[0]}-short", arm.name) for arm in TWINS),
    ),
    findings=findings,
    spaces=("oblique-short", *(arm.name for arm in TOKENS)),
)
