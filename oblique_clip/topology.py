"""Where embeddings live and how two of them compare: the only place that normalises or compares points.

A topology is a manifold, the shape of a point on it and a distance, written `oblique(32,16)/geodesic`:

| spec            | points          | distances (first is the default)                                   |
|-----------------|-----------------|--------------------------------------------------------------------|
| `sphere(d)`     | (B, 1, d)       | inner, geodesic, chordal                                           |
| `oblique(n,m)`  | (B, m, n)       | inner, geodesic, chordal                                           |
| `euclidean(d)`  | (B, 1, d)       | l2, squared                                                        |
| `lorentz(d)`    | (B, 1, d + 1)   | geodesic                                                           |

`inner` is the negative sum over spheres of inner products (Sun, arXiv 2209.02127), `geodesic` the square root of the
sum of squared angles, `chordal` the square root of the sum of squared chords. Similarity is minus the distance.
`sphere(d)` is `oblique(d,1)`: the same class, the same numbers.

Accuracy in float32: near coincident points a geodesic or chordal similarity of all pairs is within 1e-3 for each
sphere, so sqrt(m) * 1e-3 in all; row by row it is exact to 1e-6 for each sphere, sqrt(m) * 1e-6 in all.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import geoopt
import torch
from torch import Tensor, nn

from .errors import UserError
from .manifold import MeanMethod, Oblique, normalize_rows, row_angle

# CLIP starts at tau = 0.07 and clamps the scale at 100, on similarities in [-1, 1] (Radford et al. 2021, 2.4).
CLIP_INITIAL_SCALE = 1 / 0.07
CLIP_MAX_SCALE = 100.0
CLIP_WIDTH = 2.0
# SigLIP starts at scale 10 and bias -10 (Zhai et al. 2023, 3.2), on the same interval.
SIGLIP_INITIAL_SCALE = 10.0
SIGLIP_INITIAL_LOGIT = -10.0


class Topology(nn.Module, ABC):
    """Common ground of every topology. `m` rows of `n` features go in, points of shape `point_shape` come out.

    Shapes: features (B, m, n); points (B, *point_shape), at least float32.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> for spec in ("sphere(6)", "oblique(3,2)", "euclidean(6)", "lorentz(6)"):
        ...     topology = parse_topology(spec)
        ...     points = topology.project(torch.ones(4, topology.m, topology.n))
        ...     print(spec, tuple(points.shape), topology.range, topology.flat_is_exact)
        sphere(6) (4, 1, 6) (-1.0, 1.0) True
        oblique(3,2) (4, 2, 3) (-2.0, 2.0) True
        euclidean(6) (4, 1, 6) (-inf, 0.0) False
        lorentz(6) (4, 1, 7) (-inf, 0.0) False
    """

    distances: ClassVar[tuple[str, ...]]
    family: ClassVar[str]
    flat_is_exact: bool = False
    """Whether inner products of `flat` rank exactly as `similarity` does."""

    def __init__(self, n: int, m: int, distance: str) -> None:
        super().__init__()
        self.n, self.m, self.distance = n, m, distance

    @property
    def spec(self) -> str:
        """The text that `parse_topology` turns into this topology; the default distance is left out."""
        size = f"{self.n},{self.m}" if self.family == "oblique" else f"{self.n}"
        suffix = "" if self.distance == self.distances[0] else f"/{self.distance}"
        return f"{self.family}({size}){suffix}"

    def extra_repr(self) -> str:
        return self.spec

    @property
    def embed_dim(self) -> int:
        """Numbers in one embedding, D = n*m."""
        return self.n * self.m

    @property
    def point_shape(self) -> tuple[int, int]:
        return (self.m, self.n)

    @property
    def held_a_pair(self) -> int:
        """Numbers that `similarity` holds at once for each pair; whoever works in tiles sizes them by it."""
        return 1

    @property
    @abstractmethod
    def range(self) -> tuple[float, float]:
        """Smallest and largest similarity."""

    @property
    @abstractmethod
    def manifold(self) -> geoopt.Manifold:
        """The geoopt manifold that points lie on."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """Features (B, m, n) of any float type to points; float16 and bfloat16 are computed in float32."""

    def similarity(self, x: Tensor, y: Tensor) -> Tensor:
        """Every point of x with every point of y: (B1, *point_shape), (B2, *point_shape) -> (B1, B2)."""
        with _full_precision(x):
            return self._pairwise(x, y)

    def similarity_rowwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Each point of x with its own of y, shapes broadcast: (..., *point_shape) -> (...)."""
        with _full_precision(x):
            return self._rowwise(x, y)

    def per_sphere(self, x: Tensor, y: Tensor) -> Tensor:
        """Cosine of each sphere's part of x with that of y, row by row: (..., m, n) twice -> (..., m).

        Whatever the distance; under `inner` their sum is the similarity.

        Raises:
            UserError: where points are on no spheres.
        """
        raise UserError(f"{self.spec} is no product of spheres: a similarity has no parts")

    @abstractmethod
    def mean(self, points: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean of points (K, ..., *point_shape) over the first axis, on the manifold; `weights` (K,), >= 0."""

    def flat(self, points: Tensor) -> Tensor:
        """Unit vectors (B, n*m) whose inner products rank as `similarity` does, for tools that know only cosines.

        Raises:
            UserError: where no such vectors exist.
        """
        raise UserError(f"{self.spec} has no flat form: no unit vectors rank as its distance does")

    def prefix(self, size: int) -> Topology:
        """Where the first `size` numbers of an embedding live, with the same distance; see `cut`.

        Raises:
            UserError: for a size that this topology cannot be cut to.
        """
        raise UserError(f"{self.spec} cannot be cut: its first numbers are no point of a smaller one")

    def cut(self, points: Tensor, size: int) -> Tensor:
        """The first `size` numbers of points (..., *point_shape), as points of `prefix(size)`.

        Raises:
            UserError: see `prefix`.
        """
        smaller = self.prefix(size)
        kept = points.flatten(-2)[..., :size].unflatten(-1, smaller.point_shape)
        return smaller.project(kept)

    def _check_size(self, size: int, step: int) -> None:
        if size % step or not step <= size <= self.embed_dim:
            raise UserError(
                f"{self.spec} can be cut to multiples of {step} up to {self.embed_dim}, not to {size} numbers"
            )

    @abstractmethod
    def _pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """`similarity`, computed as it is written."""

    @abstractmethod
    def _rowwise(self, x: Tensor, y: Tensor) -> Tensor:
        """`similarity_rowwise`, computed as it is written."""

    @property
    def _width(self) -> float:
        low, high = self.range
        return high - low if math.isfinite(high - low) else CLIP_WIDTH

    def initial_scale(self, loss: Literal["info_nce", "sigmoid"] = "info_nce") -> float:
        """Scale that gives logits the spread they have in CLIP (or SigLIP) at the start: scale x width is constant."""
        start = CLIP_INITIAL_SCALE if loss == "info_nce" else SIGLIP_INITIAL_SCALE
        return start * CLIP_WIDTH / self._width

    def initial_bias(self) -> float:
        """Bias that starts a pair in the middle of the range at SigLIP's logit of -10; 0 on unbounded ranges."""
        low, high = self.range
        if not math.isfinite(high - low):
            return 0.0
        return SIGLIP_INITIAL_LOGIT - self.initial_scale("sigmoid") * (low + high) / 2

    @property
    def max_scale(self) -> float:
        """Clamp of a learned scale: as wide a spread of logits as CLIP's clamp of 100 allows on [-1, 1]."""
        return CLIP_MAX_SCALE * CLIP_WIDTH / self._width


class ObliqueTopology(Topology):
    """m unit vectors of dimension n: Ob(n, m), the product of m spheres S^(n-1).

    Near coincident points, where inner products lose half of their digits, `similarity` in float32 is within
    sqrt(m) * 1e-3 for geodesic and chordal (errors reach 1.6e-3 and 3.6e-3 on oblique(32,16)). `similarity_rowwise`,
    which subtracts the points themselves, is exact to sqrt(m) * 1e-6.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> topology = parse_topology("oblique(2,2)")
        >>> x = topology.project(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))
        >>> y = topology.project(torch.tensor([[[0.0, 3.0], [0.0, 1.0]]]))
        >>> topology.similarity(x, y).tolist(), topology.per_sphere(x, y).tolist()
        ([[1.0]], [[0.0, 1.0]])
        >>> topology.mean(torch.cat([x, y])).double().round(decimals=3).tolist()  # on the manifold
        [[0.707, 0.707], [0.0, 1.0]]
        >>> topology.flat(x).double().round(decimals=3).tolist()  # one unit vector
        [[0.707, 0.0, 0.0, 0.707]]
    """

    family = "oblique"
    distances = ("inner", "geodesic", "chordal")

    def __init__(self, n: int, m: int, distance: str) -> None:
        super().__init__(n, m, distance)
        self._manifold = Oblique()
        self.flat_is_exact = distance != "geodesic" or m == 1

    @property
    def manifold(self) -> Oblique:
        return self._manifold

    @property
    def range(self) -> tuple[float, float]:
        root = math.sqrt(self.m)
        return {
            "inner": (-float(self.m), float(self.m)),
            "geodesic": (-math.pi * root, 0.0),
            "chordal": (-2 * root, 0.0),
        }[self.distance]

    @property
    def held_a_pair(self) -> int:
        # A geodesic similarity holds the angles of every sphere at once.
        return self.m if self.distance == "geodesic" else 1

    def project(self, features: Tensor) -> Tensor:
        return normalize_rows(features)

    def per_sphere(self, x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(-1)

    def mean(self, points: Tensor, weights: Tensor | None = None) -> Tensor:
        """Extrinsic mean for inner and chordal (where it minimises the squared chords), Karcher's for geodesic."""
        method: MeanMethod = "karcher" if self.distance == "geodesic" else "extrinsic"
        shares = None if weights is None else weights.view(-1, *[1] * (points.ndim - 3))
        return self._manifold.mean(points, shares, dim=0, method=method)

    def prefix(self, size: int) -> Topology:
        """Of one sphere the first numbers, renormalised, as in Matryoshka representations (Kusupati et al. 2022, arXiv
        2205.13147); of m spheres the first ones, which are a point of Ob(n, k) as they are.

        Examples:
            >>> import torch
            >>> from oblique_clip import parse_topology
            >>> for spec in ("oblique(2,4)", "sphere(8)"):
            ...     topology = parse_topology(spec)
            ...     point = topology.project(torch.ones(1, topology.m, topology.n))
            ...     print(topology.prefix(4).spec, topology.cut(point, 4).double().round(decimals=3).tolist())
            oblique(2,2) [[[0.707, 0.707], [0.707, 0.707]]]
            sphere(4) [[[0.5, 0.5, 0.5, 0.5]]]
        """
        if self.m == 1:
            self._check_size(size, 1)
            return type(self)(size, 1, self.distance)
        self._check_size(size, self.n)
        return type(self)(self.n, size // self.n, self.distance)

    def flat(self, points: Tensor) -> Tensor:
        if not self.flat_is_exact:
            return super().flat(points)
        return points.flatten(-2) / math.sqrt(self.m)

    def _pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        if self.distance == "geodesic":
            squares = torch.stack(
                [_safe_acos(a @ b.T).square() for a, b in zip(x.unbind(-2), y.unbind(-2), strict=True)]
            )
            return -_safe_sqrt(squares.sum(0))
        # The sum over spheres of inner products is one inner product of the flattened points: one matrix product.
        # Chords from the points' own squared norms would be no closer, as it is the product that rounds.
        total = x.flatten(-2) @ y.flatten(-2).T
        return total if self.distance == "inner" else -_safe_sqrt(2 * (self.m - total))

    def _rowwise(self, x: Tensor, y: Tensor) -> Tensor:
        if self.distance == "geodesic":
            return -_safe_sqrt(row_angle(x, y).square().sum(-1))
        if self.distance == "chordal":
            return -_safe_sqrt((x - y).square().sum((-2, -1)))
        return (x * y).sum((-2, -1))


class SphereTopology(ObliqueTopology):
    """One unit vector of dimension d, CLIP's topology: Ob(d, 1).

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> topology = parse_topology("sphere(2)")
        >>> x, y = topology.project(torch.tensor([[[3.0, 0.0]], [[1.0, 1.0]]])).split(1)
        >>> round(topology.similarity(x, y).item(), 3)  # the cosine
        0.707
        >>> round(topology.initial_scale(), 2), topology.max_scale  # CLIP's
        (14.29, 100.0)
    """

    family = "sphere"


class EuclideanTopology(Topology):
    """Free vectors of dimension d.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> x, y = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]]]).split(1)
        >>> parse_topology("euclidean(2)").similarity(x, y).item()
        -5.0
        >>> parse_topology("euclidean(2)/squared").similarity(x, y).item()
        -25.0
    """

    family = "euclidean"
    distances = ("l2", "squared")

    @property
    def manifold(self) -> geoopt.Manifold:
        return geoopt.Euclidean(ndim=2)

    @property
    def range(self) -> tuple[float, float]:
        return (-math.inf, 0.0)

    def project(self, features: Tensor) -> Tensor:
        return _at_least_float32(features)

    def mean(self, points: Tensor, weights: Tensor | None = None) -> Tensor:
        return _weighted(points, weights).sum(0)

    def prefix(self, size: int) -> Topology:
        self._check_size(size, 1)
        return type(self)(size, 1, self.distance)

    def _pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = x.flatten(-2), y.flatten(-2)
        squares = a.square().sum(-1)[:, None] + b.square().sum(-1) - 2 * a @ b.T
        return self._from_squares(squares)

    def _rowwise(self, x: Tensor, y: Tensor) -> Tensor:
        return self._from_squares((x - y).square().sum((-2, -1)))

    def _from_squares(self, squares: Tensor) -> Tensor:
        return -_safe_sqrt(squares) if self.distance == "l2" else -squares.clamp(min=0)


class LorentzTopology(Topology):
    """The hyperboloid <x, x>_L = -1/c with learned curvature -c; the time component stands first, as in geoopt.

    Features are tangent vectors at the origin, scaled by a learned factor that starts at 1/sqrt(d), then lifted by the
    exponential map (MERU: Desai et al. 2023, 3.2). MERU learns one factor for each modality; here the towers'
    projections can do that, and one factor serves both. A point lies at most `max_radius` / sqrt(c) from the origin.

    In float32 a pairwise distance of close points is exact to 1e-3 near the origin, and to 1e-3 cosh(r sqrt(c)) at
    radius r.

    Examples:
        >>> import math
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> topology = parse_topology("lorentz(2)")
        >>> points = topology.project(torch.tensor([[[0.0, 0.0]], [[math.sqrt(2), 0.0]]]))
        >>> points.double().round(decimals=3).tolist()  # the origin, and (cosh 1, sinh 1, 0)
        [[[1.0, 0.0, 0.0]], [[1.543, 1.175, 0.0]]]
        >>> round(topology.similarity(points, points)[0, 1].item(), 3)
        -1.0
    """

    family = "lorentz"
    distances = ("geodesic",)
    curvature_bounds: ClassVar[tuple[float, float]] = (0.1, 10.0)
    max_radius: ClassVar[float] = math.asinh(2**15)

    def __init__(self, n: int, m: int, distance: str) -> None:
        super().__init__(n, m, distance)
        self.log_curvature = nn.Parameter(torch.zeros(()))
        self.log_factor = nn.Parameter(torch.tensor(-math.log(n) / 2))

    @property
    def point_shape(self) -> tuple[int, int]:
        return (1, self.n + 1)

    @property
    def curvature(self) -> Tensor:
        """c > 0, kept in [0.1, 10] as in MERU; the gradient passes the bounds, so that it can come back from them."""
        low, high = self.curvature_bounds
        return _clamped_slope(
            lambda v: v.clamp(math.log(low), math.log(high)), torch.ones_like, self.log_curvature
        ).exp()

    @property
    def manifold(self) -> geoopt.Manifold:
        return geoopt.Lorentz(k=(1 / self.curvature).detach())

    @property
    def range(self) -> tuple[float, float]:
        return (-math.inf, 0.0)

    def project(self, features: Tensor) -> Tensor:
        with _full_precision(features):
            tangent = _at_least_float32(features) * self.log_factor.exp()
            root = self.curvature.sqrt()
            length = _safe_sqrt(tangent.square().sum(-1, keepdim=True)) * root
            length = length.clamp(min=1e-8)
            # Further out, as in MERU, float32 points have no digits left for their distances.
            space = tangent * torch.sinh(length.clamp(max=self.max_radius)) / length
            return self._with_time(space)

    def _curvature_by(self, points: Tensor) -> Tensor:
        """The curvature on the device of the points, which evaluation keeps on the CPU."""
        return self.curvature.to(points.device)

    def _with_time(self, space: Tensor) -> Tensor:
        time = (1 / self._curvature_by(space) + space.square().sum(-1, keepdim=True)).sqrt()
        return torch.cat([time, space], -1)

    def mean(self, points: Tensor, weights: Tensor | None = None) -> Tensor:
        """Centroid under the squared Lorentzian distance (Law et al. 2019, Thm 3.3): the sum, put back on the sheet."""
        total = _weighted(points, weights).sum(0)
        square = total[..., :1].square() - total[..., 1:].square().sum(-1, keepdim=True)
        # At least 1/c, but for the rounding of points far out.
        return self._with_time(total[..., 1:] / (self._curvature_by(total) * square).clamp(min=1).sqrt())

    def _pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = x.flatten(-2), y.flatten(-2)
        lorentzian = a[:, :1] * b[:, 0] - a[:, 1:] @ b[:, 1:].T
        curvature = self._curvature_by(x)
        return -_safe_acosh(curvature * lorentzian) / curvature.sqrt()

    def _rowwise(self, x: Tensor, y: Tensor) -> Tensor:
        # cosh d - 1 = 2 sinh^2(d/2) turns acosh, blind near 1, into asinh of a chord, exact near 0.
        space = x[..., 1:] - y[..., 1:]
        lift = ((x[..., 1:] + y[..., 1:]) * space).sum(-1) / (x[..., 0] + y[..., 0])
        curvature = self._curvature_by(x)
        chord = curvature * (space.square().sum(-1) - lift.square())
        return -2 * torch.asinh(_safe_sqrt(chord) / 2).squeeze(-1) / curvature.sqrt()


TOPOLOGIES: dict[str, type[Topology]] = {
    kind.family: kind for kind in (SphereTopology, ObliqueTopology, EuclideanTopology, LorentzTopology)
}
_SPEC = re.compile(r"\s*([a-z]+)\s*\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)\s*(?:/\s*([a-z0-9]+)\s*)?", re.ASCII)


def parse_topology(spec: str) -> Topology:
    """The topology that a text such as `oblique(32,16)/inner` names.

    Raises:
        UserError: for a misspelt spec, a size out of range or a distance that the topology lacks, with what exists.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> topology = parse_topology("oblique(3,2)")  # two unit vectors of three numbers
        >>> topology.embed_dim, topology.range
        (6, (-2.0, 2.0))
        >>> points = topology.project(torch.tensor([[[2.0, 0, 0], [0, 3, 0]], [[1, 1, 0], [0, 0, 5]]]))
        >>> topology.similarity(points, points).double().round(decimals=3).tolist()
        [[2.0, 0.707], [0.707, 2.0]]
        >>> parse_topology("oblique(3,2)/cosine")
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: oblique has no distance 'cosine'; there is inner, geodesic, chordal
    """
    match = _SPEC.fullmatch(spec)
    if match is None or match[1] not in TOPOLOGIES:
        raise UserError(f"unknown topology {spec!r}; there is {_menu()}")
    family, first, second, distance = match.groups()
    kind = TOPOLOGIES[family]
    if (second is None) == (family == "oblique"):
        raise UserError(f"topology {spec!r} has the wrong number of sizes; there is {_menu()}")
    n, m = int(first), int(second or 1)
    smallest = 2 if issubclass(kind, ObliqueTopology) else 1
    if n < smallest or m < 1:
        raise UserError(f"topology {spec!r}: the first size must be at least {smallest}, the second at least 1")
    distance = distance or kind.distances[0]
    if distance not in kind.distances:
        raise UserError(f"{family} has no distance {distance!r}; there is {', '.join(kind.distances)}")
    return kind(n, m, distance)


def _menu() -> str:
    forms = (
        f"{name}({'n,m' if name == 'oblique' else 'd'})/{{{'|'.join(kind.distances)}}}"
        for name, kind in TOPOLOGIES.items()
    )
    return ", ".join(forms)


def _full_precision(like: Tensor) -> Any:
    """Autocast would run the products in bfloat16, where logits near 100 are half a unit apart."""
    return torch.autocast(like.device.type, enabled=False)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _weighted(points: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return points / points.shape[0]
    return points * (weights / weights.sum()).view(-1, *[1] * (points.ndim - 1))


def _safe_sqrt(x: Tensor) -> Tensor:
    """Square root with a zero gradient at 0, where the true one is infinite; rounding below 0 counts as 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


def _clamped_slope(function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)` in value, `slope(x)` as first derivative."""
    value = function(x.detach())
    return value + slope(x.detach()) * (x - x.detach())


def _safe_acos(c: Tensor) -> Tensor:
    """Angle of a cosine (within 1e-3 in float32) whose slope stays finite at both ends."""
    floor = 1e-6 if c.dtype == torch.float32 else 1e-14
    return _clamped_slope(lambda v: v.clamp(-1, 1).acos(), lambda v: -(1 - v.square()).clamp(min=floor).rsqrt(), c)


def _safe_acosh(c: Tensor) -> Tensor:
    floor = 1e-6 if c.dtype == torch.float32 else 1e-14
    return _clamped_slope(lambda v: v.clamp(min=1).acosh(), lambda v: (v.square() - 1).clamp(min=floor).rsqrt(), c)
