"""What goes wrong in training without an error: steps that are not finite, and signs that a model does not learn.

Checks read the figures and points of a step that is logged anyway; none waits for a GPU by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import geoopt
import torch
from torch import Tensor, nn

from .data.order import Position
from .errors import UserError
from .topology import Topology

SAMPLE = 64
"""Pairs of a batch that `spheres` and `collapsed` look at."""
EQUAL = 1e-3
"""Share of the range (2 where it is unbounded) within which similarities count as all equal."""
DEAD = 1e-3
"""Cosines of one sphere between different pictures that lie so near to 1 are of one direction."""
DUPLICATE = 0.999
"""Correlation of two spheres' cosines from which on they tell the same."""
POINT_DRIFT = 1e-5


class BadStep(NamedTuple):
    """A step whose loss or gradient was not finite: where in the data it stood, and the samples it was of."""

    place: Position
    keys: tuple[str, ...]


class BadSteps:
    """Bad steps so far; whether the last one was is asked of the device only when `settle` is called.

    Args:
        limit: bad steps in a row that end a run; 0 for any number.

    Examples:
        >>> import torch
        >>> from oblique_clip.data.order import Position
        >>> from oblique_clip.health import BadSteps
        >>> bad = BadSteps(limit=2)
        >>> for step, finite in enumerate((True, False, True, False)):
        ...     bad.watch(Position(step=step), (f"{step}.png",), torch.tensor(not finite))
        >>> [(found.place.step, found.keys) for found in bad.settle()]
        [(1, ('1.png',)), (3, ('3.png',))]
        >>> bad.count, len(bad.row), bad.exhausted
        (2, 1, False)
    """

    def __init__(self, limit: int, count: int = 0) -> None:
        self.limit, self.count = limit, count
        self.row: list[BadStep] = []
        """The bad steps since the last good one."""
        self._open: list[tuple[BadStep, Tensor]] = []

    @property
    def exhausted(self) -> bool:
        """Whether there are as many in a row as the limit says."""
        return 0 < self.limit <= len(self.row)

    def watch(self, place: Position, keys: tuple[str, ...], bad: Tensor | None) -> None:
        """Note a step; `bad` is what `Optimizer.step` gave."""
        if bad is not None:
            self._open.append((BadStep(place, keys), bad))

    def settle(self) -> list[BadStep]:
        """The bad ones among the steps noted since the last call."""
        flags = torch.stack([flag for _, flag in self._open]).tolist() if self._open else []
        found = [step for (step, _), flag in zip(self._open, flags, strict=True) if flag]
        for (step, _), flag in zip(self._open, flags, strict=True):
            self.row = [*self.row, step] if flag else []
        self.count += len(found)
        self._open.clear()
        return found


def collapsed(similarity: Tensor, topology: Topology) -> str | None:
    """A warning where all similarities (B, B) of a batch are equal, so that no pair can be told from any other.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.health import collapsed
        >>> collapsed(torch.ones(4, 4), parse_topology("sphere(8)"))
        'all similarities of a batch are equal, within 0.001 of their range: the towers have collapsed; try a lower --lr
        or a longer --warmup'
        >>> collapsed(torch.eye(4), parse_topology("sphere(8)")) is None
        True
    """
    low, high = topology.range
    width = high - low if math.isfinite(high - low) else 2.0
    # A comparison with what is no number is false: such a step is told of as one that is not finite.
    if len(similarity) < 2 or not float(similarity.max() - similarity.min()) <= EQUAL * width:
        return None
    return (
        f"all similarities of a batch are equal, within {EQUAL} of their range: the towers have collapsed; "
        "try a lower --lr or a longer --warmup"
    )


def spheres(points: Tensor, topology: Topology) -> list[str]:
    """Warnings of spheres on which all points (B, m, n) are one, and of pairs of spheres that tell the same.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.health import spheres
        >>> topology = parse_topology("oblique(4,3)")
        >>> points = topology.project(torch.randn(32, 3, 4, generator=torch.Generator().manual_seed(0)))
        >>> points[:, 1] = points[:, 0]
        >>> points[:, 2] = points[0, 2]
        >>> for warning in spheres(points, topology):
        ...     print(warning)
        1 of 3 spheres is dead (all pictures are one point on it): 2
        1 pair of spheres is duplicate (each tells the same as the other): 0 and 1
    """
    if topology.m < 2 or len(points) < 3:
        return []
    # (B, B, m) to (m, pairs of different points)
    cosines = topology.per_sphere(points[:, None], points[None])
    apart = ~torch.eye(len(points), dtype=torch.bool, device=points.device)
    cosines = cosines[apart].T.double()
    dead = (1 - cosines).amax(1) < DEAD
    alike = torch.corrcoef(cosines).nan_to_num() > DUPLICATE
    alike &= ~(dead[:, None] | dead) & torch.ones_like(alike).triu(1)
    pairs = [f"{one} and {other}" for one, other in alike.nonzero().tolist()]
    gone = [str(place) for place in dead.nonzero().flatten().tolist()]
    found = []
    if gone:
        found.append(
            f"{len(gone)} of {topology.m} spheres {_are(gone)} dead (all pictures are one point on it): {_some(gone)}"
        )
    if pairs:
        found.append(
            f"{len(pairs)} pair{'s' * (len(pairs) > 1)} of spheres {_are(pairs)} duplicate (each tells the same as the "
            f"other): {_some(pairs)}"
        )
    return found


def _are(things: Sequence[str]) -> str:
    return "is" if len(things) == 1 else "are"


def _some(things: Sequence[str], most: int = 5) -> str:
    return ", ".join(things[:most]) + (", ..." if len(things) > most else "")


def settle_points(model: nn.Module, names: Iterable[str], where: str) -> float:
    """Largest drift of a model's points off their manifold; those further off than `POINT_DRIFT` are put back.

    Args:
        names: parameters that were points when training began.

    Raises:
        UserError: where one is no point any more, as after `load_state_dict(assign=True)`.

    Examples:
        >>> import torch
        >>> from oblique_clip import create_model, model_config
        >>> from oblique_clip.health import point_names, settle_points
        >>> model = create_model(model_config("tiny", "oblique", class_tokens="oblique"))
        >>> names = point_names(model)
        >>> model.text.class_tokens.data *= 1.1
        >>> settle_points(model, names, "here") > 1e-3, settle_points(model, names, "here") < 1e-6
        (True, True)
    """
    parameters, drift = dict(model.named_parameters()), 0.0
    for name in names:
        point = parameters.get(name)
        if not isinstance(point, geoopt.ManifoldParameter):
            raise UserError(f"{where}: {name} is no point of a manifold any more, but a {type(point).__name__}")
        with torch.no_grad():
            nearest = point.manifold.projx(point)
            own = float((nearest - point).abs().max())
            if not own <= POINT_DRIFT:
                point.copy_(nearest)
        drift = max(drift, own)
    return drift


def point_names(model: nn.Module) -> tuple[str, ...]:
    """The parameters of a model that are points."""
    return tuple(name for name, p in model.named_parameters() if isinstance(p, geoopt.ManifoldParameter))
