"""6. Class tokens and twins: tokens free or on the manifold, started together or apart; twins avoided, against, for."""

from __future__ import annotations

from ..sweep.question import Arm, Question, varied
from .base import OBLIQUE, SHORT, both

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

QUESTION = Question(
    name="tokens",
    asks="What do class tokens need to become specialists, and what should be done with pictures of one caption?",
    arms=(*SHORT, *TOKENS, *TWINS),
    contrasts=(
        *((arm.name, "oblique-short") for arm in TOKENS),
        *((arm.name, f"{arm.name.partition('-')[0]}-short") for arm in TWINS),
    ),
)
