"""One look for all pictures: what differs in colour differs in line, marker or shade too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMS = {
    "clip": {"color": "#777777", "linestyle": ":", "marker": "s"},
    "sphere": {"color": "#1f77b4", "linestyle": "--", "marker": "o"},
    "oblique": {"color": "#d62728", "linestyle": "-", "marker": "^"},
}
"""Of the three forms of a model, by their names."""
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "^", "s", "D")
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#000000")
PICTURES, NAMES = "#222222", "#e07a2f"
"""Of two modalities: dark dots and light triangles."""


def line(place: int) -> dict[str, Any]:
    """Colour, dashes and marker of the line at a place."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": LINES[place % len(LINES)],
        "marker": MARKERS[place % len(MARKERS)],
    }


def ruled(axis: Axes, xlabel: str, ylabel: str) -> Axes:
    """An axis with its labels and a faint grid."""
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(alpha=0.3)
    return axis
