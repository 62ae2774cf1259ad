"""Whether a model's probabilities are right as often as they say: calibration error, its diagram, and one fitted scale.

Probabilities are the softmax of scale x similarity. A scale, 1/temperature, moves confidence alone: the order of the
classes, and with it every accuracy, stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..topology import Topology

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 15
OWN, STORED, FITTED = "ece", "ece_stored", "ece_calibrated"
"""Calibration error under the scale of training, under the one that the model carries (fitted on pictures of its own
data), and under the one that validation pictures of this data ask for."""


@torch.no_grad()
def confidences(
    image_points: Tensor, labels: Tensor, classifier: Tensor, topology: Topology, scale: float, chunk: int = 2048
) -> tuple[Tensor, Tensor]:
    """Largest probability (N,) of each picture, float64, and whether it stands at the right class (N,).

    A class exactly as similar as the right one makes it wrong, as in `classification`.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.evaluate.calibration import confidences
        >>> topology = parse_topology("sphere(2)")
        >>> points = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> confidence, right = confidences(points, torch.tensor([0, 0]), points, topology, scale=1.0)
        >>> confidence.round(decimals=3).tolist(), right.tolist()
        ([0.731, 0.731], [True, False])
    """
    highest, right = [], []
    for rows in torch.arange(len(image_points)).split(chunk):
        similarity = topology.similarity(image_points[rows], classifier).double()
        highest.append((scale * similarity).softmax(1).amax(1))
        own = similarity.gather(1, labels[rows, None])
        right.append((~(similarity < own)).sum(1) == 1)
    return torch.cat(highest), torch.cat(right)


def reliability(confidence: Tensor, right: Tensor, bins: int = BINS) -> dict[str, list[Any]]:
    """The bars of a reliability diagram: pictures by confidence in equal bins of (0, 1], closed above.

    Args:
        confidence: (N,), in [0, 1].
        right: (N,), of bool.

    Returns:
        `count`, mean `confidence` and `accuracy` of each bin; None in a bin without pictures.

    Examples:
        >>> import torch
        >>> from oblique_clip.evaluate.calibration import reliability
        >>> bars = reliability(torch.tensor([0.2, 0.7, 0.9]), torch.tensor([False, True, True]), bins=2)
        >>> bars["count"], bars["accuracy"]
        ([1, 2], [0.0, 1.0])
    """
    place = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(place, minlength=bins)
    sums = [torch.bincount(place, weights=values.double(), minlength=bins) for values in (confidence, right)]
    means = [(total / count).tolist() for total in sums]
    empty = (count == 0).tolist()
    kept = [[None if none else mean for mean, none in zip(each, empty, strict=True)] for each in means]
    return {"count": count.tolist(), "confidence": kept[0], "accuracy": kept[1]}


def calibration_error(bars: Mapping[str, list[Any]]) -> float:
    """Expected calibration error in [0, 1]: |accuracy - confidence|, averaged over pictures (Guo et al. 2017, 2).

    Examples:
        >>> from oblique_clip.evaluate.calibration import calibration_error
        >>> bars = {"count": [1, 3], "confidence": [0.5, 0.9], "accuracy": [1.0, 0.7]}
        >>> round(calibration_error(bars), 3)
        0.275
    """
    gaps = [
        count * abs(accuracy - confidence)
        for count, accuracy, confidence in zip(bars["count"], bars["accuracy"], bars["confidence"], strict=True)
        if count
    ]
    return math.fsum(gaps) / sum(bars["count"])


def calibration(
    image_points: Tensor, labels: Tensor, classifier: Tensor, topology: Topology, scales: Mapping[str, float]
) -> dict[str, Any]:
    """Calibration error of the same pictures under each of `scales`, by its name, and the bars in `reliability`.

    Nothing where similarities are no numbers.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.evaluate.calibration import calibration
        >>> topology = parse_topology("sphere(2)")
        >>> points = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> figures = calibration(points, torch.tensor([0, 1]), points, topology, {"own": 1.0, "sharper": 10.0})
        >>> round(figures["own"], 3), round(figures["sharper"], 3)  # always right: the surer, the better
        (0.269, 0.0)
    """
    figures: dict[str, Any] = {}
    bars: dict[str, Any] = {}
    for name, scale in scales.items():
        confidence, right = confidences(image_points, labels, classifier, topology, scale)
        if not confidence.isfinite().all():
            return {}
        bars[name] = {"scale": scale, **reliability(confidence, right)}
        figures[name] = calibration_error(bars[name])
    return {**figures, "reliability": bars}


def fit_temperature(similarity: Tensor, labels: Tensor) -> float:
    """The scale (1/temperature) under which the right classes are most likely: one number > 0, found by L-BFGS.

    Args:
        similarity: (N, K), of validation pictures with the classes, not scaled.
        labels: (N,), in [0, K).

    Raises:
        UserError: without pictures, or for similarities that are no numbers.

    Examples:
        >>> import torch
        >>> from oblique_clip.evaluate.calibration import fit_temperature
        >>> similarity, labels = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), torch.tensor([0, 1, 1])
        >>> scale = fit_temperature(similarity, labels)
        >>> round(scale, 2)
        3.23
        >>> (scale * similarity).softmax(1).double().round(decimals=2).tolist()
        [[0.93, 0.07], [0.13, 0.87], [0.66, 0.34]]
    """
    if not similarity.numel() or not similarity.isfinite().all():
        raise UserError("a temperature is fitted to finite similarities of at least one picture")
    logits = similarity.detach().double()
    # A class less similar than the best by the usual spread starts at 1/e of its probability, in any unit.
    logits = logits - logits.amax(1, keepdim=True)
    spread = logits.std(1, correction=0).mean().item() or 1.0
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_scale], max_iter=100, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / spread * log_scale.exp(), labels)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return math.exp(log_scale.item()) / spread


# Legible in grey, as in `figures`.
STYLES = {
    OWN: {"color": "#777777", "label": "own scale"},
    STORED: {"color": "#2ca02c", "label": "stored scale"},
    FITTED: {"color": "#1f77b4", "label": "fitted scale"},
}


def draw_reliability(classifications: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Reliability diagrams of classifications that `calibration` has judged, by name, side by side.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.evaluate.calibration import calibration, draw_reliability
        >>> topology = parse_topology("sphere(2)")
        >>> points = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> figures = calibration(points, torch.tensor([0, 1]), points, topology, {"ece": 1.0, "ece_calibrated": 10.0})
        >>> path = Path(tempfile.mkdtemp()) / "reliability.svg"
        >>> draw_reliability({"two pictures": figures}).savefig(path)
        >>> "fitted scale 10, error 0.00 %" in path.read_text()
        True
    """
    from matplotlib.figure import Figure

    figure = Figure((4.2 * len(classifications), 4.2), layout="constrained")
    panels = figure.subplots(1, len(classifications), squeeze=False)[0]
    for axis, (title, figures) in zip(panels, classifications.items(), strict=True):
        axis.plot((0, 1), (0, 1), color="black", linewidth=0.8, linestyle=":")
        for name, bars in figures["reliability"].items():
            filled = [i for i, count in enumerate(bars["count"]) if count]
            points = ([bars["confidence"][i] for i in filled], [bars["accuracy"][i] for i in filled])
            style = STYLES[name]
            label = f"{style['label']} {bars['scale']:.3g}, error {100 * figures[name]:.2f} %"
            axis.plot(*points, marker="o", markersize=4, color=style["color"], label=label)
        axis.set(title=title, xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper left")
    return figure
