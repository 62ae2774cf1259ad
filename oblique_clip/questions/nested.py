"""7. Nested spheres: the first k of m spheres as an embedding of their own, beside Matryoshka on the sphere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from oblique_clip.questions.base import OBLIQUE, SHORT, SPHERE, D, M
from oblique_clip.style import line
from oblique_clip.sweep.question import Arm, Finding, Question, varied
from oblique_clip.sweep.results import Measure, Results, found_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = tuple(D // M * 2**i for i in range(5))
"""Numbers of 1, 2, 4, 8 and 16 spheres."""
ARMS = (
    Arm("oblique-nested", varied(OBLIQUE, loss={"nested": SIZES})),
    Arm("sphere-matryoshka", varied(SPHERE, loss={"nested": SIZES})),
)
SETTINGS = {"concepts": "held-out concepts", "family": "Fluent"}


def at_size(size: int, setting: str) -> Measure:
    return Measure(f"{SETTINGS[setting]} top-1 at {size} numbers", ("sizes", str(size), setting))


def findings(results: Results) -> Iterable[Finding]:
    """At the smallest size, and at the whole."""
    for size, words in ((SIZES[0], "one sphere of the nested oblique"), (SIZES[-1], "the whole nested oblique")):
        for rival, said in (
            ("sphere-matryoshka", "Matryoshka of the same size"),
            ("oblique-short", "the plain one, cut"),
        ):
            measures = [at_size(size, setting) for setting in SETTINGS]
            found = results.compare("oblique-nested", rival, measures)
            yield from found_of(f"exploratory: {words} is better than {said}", found)


def pictures(results: Results) -> Iterable[tuple[str, Figure]]:
    """Accuracy against the size of the embedding."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.8), layout="constrained")
    for axis, setting in zip(figure.subplots(1, 2), SETTINGS, strict=True):
        for place, arm in enumerate(results.begun):
            every = {size: results.mean(arm.name, at_size(size, setting)) for size in SIZES}
            known = {size: found for size, found in every.items() if found}
            if known:
                means, halves = [own.mean for own in known.values()], [own.half for own in known.values()]
                axis.errorbar(list(known), means, halves, label=arm.name, markersize=4, capsize=2, **line(place))
        axis.set(xscale="log", xlabel="numbers kept", ylabel=f"{SETTINGS[setting]} top-1 (%)")
        axis.set_xticks(SIZES, [str(size) for size in SIZES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    yield "sizes", figure


QUESTION = Question(
    name="nested",
    asks="Is a part of the spheres an embedding of its own, and how does it compare with cutting and with Matryoshka?",
    arms=(*SHORT, *ARMS),
    contrasts=(
        ("oblique-nested", "oblique-short"),
        ("sphere-matryoshka", "sphere-short"),
        ("oblique-nested", "sphere-matryoshka"),
    ),
    findings=findings,
    pictures=pictures,
)
