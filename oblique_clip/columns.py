"""Figures of a finished run: what each is called, and where it is found in a result.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DIGITS = 2
NOTHING = "-"
"""In place of a figure that a run does not have."""


def value_at(report: Any, path: Sequence[str]) -> Any:
    """What stands under one key behind the other in tables within tables; None where one of them is missing.

    Examples:
        >>> from oblique_clip.columns import value_at
        >>> value_at({"family": {"top1": 0.5}}, ("family", "top1")), value_at({"family": 3}, ("family", "top1"))
        (0.5, None)
    """
    for key in path:
        report = report.get(key) if isinstance(report, dict) else None
    return report


@dataclass(frozen=True)
class Column:
    """One column of a comparison: its heading and where its figure is found in a result.json.

    Examples:
        >>> from oblique_clip.columns import Column
        >>> result = {"scale": 2.5, "evaluation": {"family": {"top1": 0.0958}}}
        >>> Column("top-1 %", ("evaluation", "family", "top1")).text(result)
        '9.58'
        >>> Column("scale", ("scale",), percent=False).text(result), Column("seed", ("seed",)).text(result)
        ('2.50', '-')
    """

    heading: str
    path: tuple[str, ...]
    percent: bool = True
    group: str = ""
    """Columns of one group stand under one heading on the page, each with its `short` one."""
    short: str = ""

    def text(self, result: dict[str, Any]) -> str:
        value = value_at(result, self.path)
        if value is None:
            return NOTHING
        if not isinstance(value, float):
            return str(value)
        return f"{100 * value:.{DIGITS}f}" if self.percent else f"{value:.{DIGITS}f}"


_FAMILY = ("evaluation", "family")
_CONCEPTS = ("evaluation", "concepts")
_RETRIEVAL = ("evaluation", "retrieval")
HELD_OUT, UNSEEN, RECALL, TRAINING = "held-out family, %", "held-out concepts, %", "retrieval R@1, %", "training"
COLUMNS = (
    Column("topology", ("topology",)),
    Column("family top-1 %", (*_FAMILY, "top1"), group=HELD_OUT, short="top-1"),
    Column("same, last step %", ("last_evaluation", "family", "top1"), group=HELD_OUT, short="top-1, last step"),
    Column("top-5 %", (*_FAMILY, "top5"), group=HELD_OUT, short="top-5"),
    Column("pixel floor top-1 %", (*_FAMILY, "pixel_floor", "top1"), group=HELD_OUT, short="pixel floor"),
    Column("chance %", (*_FAMILY, "chance"), group=HELD_OUT, short="chance"),
    Column("known names top-1 %", (*_FAMILY, "parts", "known_names", "top1"), group=HELD_OUT, short="known names"),
    Column(
        "pixel floor of these %", (*_FAMILY, "parts", "known_names", "pixel_floor", "top1"),
        group=HELD_OUT, short="their pixel floor",
    ),
    Column("no flags top-1 %", (*_FAMILY, "parts", "without_flags", "top1"), group=HELD_OUT, short="no flags"),
    Column("concepts top-1 %", (*_CONCEPTS, "top1"), group=UNSEEN, short="top-1"),
    Column("same, last step %", ("last_evaluation", "concepts", "top1"), group=UNSEEN, short="top-1, last step"),
    Column("chance %", (*_CONCEPTS, "chance"), group=UNSEEN, short="chance"),
    Column("image to text R@1 %", (*_RETRIEVAL, "image_to_text_r@1"), group=RECALL, short="image to text"),
    Column("chance %", (*_RETRIEVAL, "image_to_text_chance_r@1"), group=RECALL, short="its chance"),
    Column("text to image R@1 %", (*_RETRIEVAL, "text_to_image_r@1"), group=RECALL, short="text to image"),
    Column("chance %", (*_RETRIEVAL, "text_to_image_chance_r@1"), group=RECALL, short="its chance"),
    Column("scale", ("scale",), percent=False, group=TRAINING, short="scale"),
    Column("images/s", ("images_per_second",), percent=False, group=TRAINING, short="images/s"),
    Column("train s", ("train_seconds",), percent=False, group=TRAINING, short="seconds"),
)  # fmt: skip
