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

from .errors import UserError
from .manifold import drift_of
from .topology import Topology

SAMPLE = 64
"""Pairs of a batch that `spheres` and `collapsed` look at."""
EQUAL = 1e-3
"""Share of the range (2 where it is unbounded) within which similarities count as all equal."""
DEAD = 1e-3
"""Cosines of one sphere between different pictures that lie so near to 1 are of one direction."""
DUPLICATE = 0.999
"""Correlation of two spheres' cosines from which on they tell the same."""
LONG = 0.2
"""Share of a run's steps for which the scale stands at its clamp before that is said."""
GUESS = 0.98
"""Share of log B from which on a loss counts as that of a guess."""
PERHAPS = "the run may be too short, the rate wrong, or the captions not those of the pictures"
POINT_DRIFT = 1e-5
"""Distance from the manifold from which on a point is put back."""


class BadStep(NamedTuple):
    """A step, counted from 1, whose loss or gradient was not finite, and the samples it was of."""

    step: int
    keys: tuple[str, ...]


class BadSteps:
    """Bad steps so far; whether the last ones were is asked of the device only when `settle` is called.

    Args:
        limit: bad steps in a row that end a run; 0 for any number.
        count: bad steps before.
        row: those of them since the last good one.

    Examples:
        >>> import torch
        >>> from oblique_clip.health import BadSteps
        >>> bad = BadSteps(limit=2)
        >>> for step, finite in enumerate((True, False, True, False), 1):
        ...     bad.watch(step, (f"{step}.png",), torch.tensor(not finite))
        >>> [(found.step, found.keys) for found in bad.settle()]
        [(2, ('2.png',)), (4, ('4.png',))]
        >>> bad.count, bad.row, bad.exhausted
        (2, [4], [])
    """

    def __init__(self, limit: int, count: int = 0, row: Sequence[int] = ()) -> None:
        self.limit, self.count, self.row = limit, count, list(row)
        self.exhausted: list[int] = []
        """The first row that was as long as the limit."""
        self._open: list[tuple[BadStep, Tensor]] = []

    def watch(self, step: int, keys: tuple[str, ...], bad: Tensor | None) -> None:
        """Note a step; `bad` is what `Optimizer.step` gave."""
        if bad is not None:
            self._open.append((BadStep(step, keys), bad))

    def settle(self) -> list[BadStep]:
        """The bad ones among the steps noted since the last call."""
        flags = torch.stack([flag for _, flag in self._open]).tolist() if self._open else []
        found = []
        for (step, _), flag in zip(self._open, flags, strict=True):
            self.row = [*self.row, step.step] if flag else []
            if flag:
                found.append(step)
            if 0 < self.limit <= len(self.row) and not self.exhausted:
                self.exhausted = self.row
        self.count += len(found)
        self._open.clear()
        return found


Signs = dict[str, str]
"""Warnings by their kind, which is said once a run."""


def collapsed(similarity: Tensor, topology: Topology) -> Signs:
    """A warning where all similarities (B, B) of a batch are equal, so that no pair can be told from any other.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.health import collapsed
        >>> collapsed(torch.ones(4, 4), parse_topology("sphere(8)")).keys()
        dict_keys(['collapse'])
        >>> collapsed(torch.eye(4), parse_topology("sphere(8)"))
        {}
    """
    low, high = topology.range
    width = high - low if math.isfinite(high - low) else 2.0
    # A comparison with what is no number is false: such a step is told of as one that is not finite.
    if len(similarity) < 2 or not float(similarity.max() - similarity.min()) <= EQUAL * width:
        return {}
    return {
        "collapse": f"all similarities of a batch are equal, within {EQUAL} of their range: the towers have collapsed; "
        "try a lower --lr or a longer --warmup"
    }


def spheres(points: Tensor, topology: Topology) -> Signs:
    """Warnings of spheres on which all points (B, m, n) are one, and of pairs of spheres that tell the same.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.health import spheres
        >>> topology = parse_topology("oblique(4,3)")
        >>> points = topology.project(torch.randn(32, 3, 4, generator=torch.Generator().manual_seed(0)))
        >>> points[:, 1] = points[:, 0]
        >>> points[:, 2] = points[0, 2]
        >>> for kind, warning in spheres(points, topology).items():
        ...     print(f"{kind}: {warning}")
        dead spheres: all pictures are one point on sphere 2 of 3
        duplicate spheres: of 3 spheres some tell the same as another: 0 and 1
    """
    dead, duplicate = faults_of(points, topology)
    gone = [str(place) for place in dead]
    pairs = [f"{one} and {other}" for one, other in duplicate]
    found = {}
    if gone:
        found["dead spheres"] = f"all pictures are one point on sphere {_some(gone)} of {topology.m}"
    if pairs:
        found["duplicate spheres"] = f"of {topology.m} spheres some tell the same as another: {_some(pairs)}"
    return found


class Faults(NamedTuple):
    """Spheres by their numbers, from 0."""

    dead: list[int]
    """Those on which all points are one."""
    duplicate: list[tuple[int, int]]
    """Pairs of living ones that tell the same."""


def faults_of(points: Tensor, topology: Topology) -> Faults:
    """What `spheres` warns of, for points (B, m, n); nothing of a single sphere, or of fewer than three points.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.health import faults_of
        >>> topology = parse_topology("oblique(4,2)")
        >>> points = topology.project(torch.randn(32, 1, 4)).repeat(1, 2, 1)
        >>> faults_of(points, topology)
        Faults(dead=[], duplicate=[(0, 1)])
    """
    if topology.m < 2 or len(points) < 3:
        return Faults([], [])
    # (B, B, m) to (m, pairs of different points)
    cosines = topology.per_sphere(points[:, None], points[None]).cpu().double()
    cosines = cosines[~torch.eye(len(points), dtype=torch.bool)].T
    dead = (1 - cosines).amax(1) < DEAD
    alike = torch.corrcoef(cosines).nan_to_num() > DUPLICATE
    alike &= ~(dead[:, None] | dead) & torch.ones_like(alike).triu(1)
    pairs: list[list[int]] = alike.nonzero().tolist()
    return Faults(dead.nonzero().flatten().tolist(), [(one, other) for one, other in pairs])


def _some(things: Sequence[str], most: int = 5) -> str:
    return ", ".join(things[:most]) + (", ..." if len(things) > most else "")


def clamped(steps: int, total: int, maximum: float) -> Signs:
    """A warning where the scale has stood at its `maximum` for so many of a run's steps that it wants to be larger.

    Examples:
        >>> from oblique_clip.health import clamped
        >>> clamped(10, 1000, 100.0), clamped(300, 1000, 100.0).keys()
        ({}, dict_keys(['scale']))
    """
    if steps <= LONG * total:
        return {}
    return {
        "scale": f"the scale has stood at its clamp of {maximum:g} for {steps:,} of {total:,} steps: it wants to be "
        "larger; see --max-scale, or look for pairs that occur twice"
    }


def by_chance(top1: float, classes: int) -> Signs:
    """A warning where a validation among so many names is no better than twice a draw.

    Examples:
        >>> from oblique_clip.health import by_chance
        >>> by_chance(0.3, 10), by_chance(0.1, 10).keys()
        ({}, dict_keys(['chance']))
    """
    if classes < 2 or top1 > 2 / classes:
        return {}
    return {"chance": f"validation is no better than chance: top-1 of {top1:.2%} among {classes:,} names; {PERHAPS}"}


def by_guess(loss: float, batch_size: int) -> Signs:
    """A warning where an InfoNCE loss at the end is that of a guess among the pairs of a batch, log B.

    Examples:
        >>> from oblique_clip.health import by_guess
        >>> by_guess(1.2, 64), by_guess(4.15, 64).keys()
        ({}, dict_keys(['guess']))
    """
    if not loss >= GUESS * math.log(batch_size):
        return {}
    return {
        "guess": f"the last loss of {loss:.3f} is no better than a guess among {batch_size:,} pairs "
        f"({math.log(batch_size):.3f}); {PERHAPS}"
    }


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
        own = drift_of(point)
        if not own <= POINT_DRIFT:
            with torch.no_grad():
                point.copy_(point.manifold.projx(point))
        drift = max(drift, own)
    return drift


def point_names(model: nn.Module) -> tuple[str, ...]:
    """The parameters of a model that are points."""
    return tuple(name for name, p in model.named_parameters() if isinstance(p, geoopt.ManifoldParameter))
