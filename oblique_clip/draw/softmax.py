"""What a softmax makes of similarities at every scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UserError
from ..style import line, ruled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALES = (0.1, 100.0)


def draw_softmax(
    similarities: Tensor,
    names: Sequence[str],
    scales: tuple[float, float] = SCALES,
    marked: dict[str, float] | None = None,
) -> Figure:
    """Probabilities of softmax(scale x similarity), and their entropy, from a small scale to a large one.

    At scale 0 all are alike (entropy log K), without end the largest takes all (argmax, entropy 0).

    Args:
        similarities: (K,), in the units of a topology's similarity.
        names: of the K classes.
        scales: the ends of the axis, both > 0; it is logarithmic.
        marked: scales to draw a line at, by what they are called.

    Raises:
        UserError: where similarities and names do not fit, or for scales that are no range.

    Examples:
        >>> import torch
        >>> from oblique_clip.draw import draw_softmax
        >>> figure = draw_softmax(torch.tensor([0.9, 0.2, -0.4]), ("cat", "dog", "car"), marked={"CLIP starts": 14.3})
        >>> entropy = figure.axes[1].lines[0].get_ydata()
        >>> round(float(entropy[0]), 1), round(float(entropy[-1]), 1)  # log 3, and 0
        (1.1, 0.0)
    """
    from matplotlib.figure import Figure

    values = torch.as_tensor(similarities).detach().cpu().double()
    if values.shape != (len(names),) or len(names) < 2:
        raise UserError(f"two similarities or more need as many names: {tuple(values.shape)} and {len(names)}")
    if not 0 < scales[0] < scales[1] < math.inf:
        raise UserError(f"scales run from one above 0 to a larger one, not from {scales[0]} to {scales[1]}")
    steps = torch.logspace(math.log10(scales[0]), math.log10(scales[1]), 200, dtype=torch.float64)
    shares = torch.softmax(steps[:, None] * values, dim=1)
    entropy = torch.special.entr(shares).sum(1)
    figure = Figure((9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (name, own) in enumerate(zip(names, shares.T, strict=True)):
        left.plot(steps, own, label=f"{name} ({values[place]:+.2f})", markevery=25, markersize=4, **line(place))
    right.plot(steps, entropy, color="black")
    right.axhline(math.log(len(names)), color="#999999", linewidth=1, linestyle=":")
    for axis, label in ((left, "probability"), (right, "entropy (nats)")):
        ruled(axis, "scale (1 / temperature)", label).set_xscale("log")
        for name, scale in (marked or {}).items():
            axis.axvline(scale, color="#999999", linewidth=1)
            axis.annotate(
                name, (scale, 0.98), xycoords=("data", "axes fraction"), rotation=90, size=7, ha="right", va="top"
            )
    left.legend(fontsize=8)
    return figure
