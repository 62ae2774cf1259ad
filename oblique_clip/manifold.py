"""The oblique manifold Ob(n, m): m unit vectors of dimension n, as a geoopt manifold.

A point is a tensor (..., m, n) whose rows lie on the sphere S^(n-1), so the manifold is a product of m
spheres, and every operation acts on all rows at once and on each row alone. (Pymanopt and much of the
literature keep the unit vectors in the columns: transpose to compare.)

Nothing here computes below float32: float16 and bfloat16 tensors are widened first, since a bfloat16
normalisation misses the sphere by 4e-3. Results are therefore float32 or float64.
"""

import math
import warnings
from typing import Literal

import geoopt
import torch
from geoopt.utils import broadcast_shapes, size2shape
from torch import Tensor
from torch.linalg import vector_norm

__all__ = ["TINY_NORM", "MeanMethod", "Oblique", "drift_of", "normalize_rows", "row_angle"]

MeanMethod = Literal["extrinsic", "karcher"]

TINY_NORM = 1e-12
"""A row shorter than this has no direction worth keeping, and projects to the first axis."""


def _widen(*tensors: Tensor) -> list[Tensor]:
    """The same tensors, at least float32; an explicit cast, which autocast does not undo."""
    return [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]


def _row_dot(u: Tensor, v: Tensor) -> Tensor:
    # Not vecdot or matmul, which autocast would take back to half precision.
    return (u * v).sum(-1, keepdim=True)


def _row_norm(u: Tensor) -> Tensor:
    norm: Tensor = vector_norm(u, dim=-1, keepdim=True)
    return norm


def normalize_rows(x: Tensor) -> Tensor:
    """Divide every row by its length: the nearest point of the oblique manifold.

    Rows shorter than `TINY_NORM` have no nearest point and become the first axis (1, 0, ..., 0), with gradient zero.
    Elsewhere the gradient is exact. NaN and infinity stay visible as NaN.

    Args:
        x: (..., n); the length of a row must fit its dtype (1.8e19 in float32).

    Returns:
        (..., n), rows of length 1.

    Examples:
        >>> import torch
        >>> from oblique_clip.manifold import normalize_rows
        >>> normalize_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).double().round(decimals=3).tolist()
        [[0.6, 0.8], [1.0, 0.0]]
    """
    (x,) = _widen(x)
    length = _row_norm(x)
    short = length < TINY_NORM
    first_axis = torch.eye(1, x.shape[-1], dtype=x.dtype, device=x.device)
    # Dividing by infinity sends both the short row and its gradient to an exact zero.
    return torch.addcmul(x / length.masked_fill(short, math.inf), short.to(x.dtype), first_axis)


def row_angle(x: Tensor, y: Tensor) -> Tensor:
    """Angle between matching rows of unit vectors.

    Kahan's 2 atan2(|x - y|, |x + y|) (2006, "How futile are mindless assessments of roundoff"), accurate to a
    few units of rounding everywhere, where acos of the inner product loses half the digits at both ends. The
    gradient is exact between the ends and, by convention, zero where the angle has a kink: at 0 and at pi.

    Args:
        x: (..., n), unit rows.
        y: (..., n), unit rows, broadcast against x.

    Returns:
        (...), in [0, pi].

    Examples:
        >>> import math
        >>> import torch
        >>> from oblique_clip.manifold import row_angle
        >>> x, y = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(1e-4), math.sin(1e-4)])
        >>> round(row_angle(x, y).item(), 6)
        0.0001
        >>> (x * y).sum().acos().item()  # float32 has no cosine that near to 1
        0.0
    """
    x, y = _widen(x, y)
    # The norm has subgradient zero at zero, and atan2 is smooth, as its arguments never vanish together.
    return 2 * torch.atan2(_row_norm(x - y), _row_norm(x + y)).squeeze(-1)


def drift_of(point: geoopt.ManifoldParameter | geoopt.ManifoldTensor) -> float:
    """How far the numbers of a point are from where they would be on its manifold: the largest difference of one.

    Examples:
        >>> from oblique_clip.manifold import Oblique, drift_of
        >>> point = Oblique().origin(8, 16)
        >>> drift_of(point), round(drift_of(point.mul_(1.5)), 3)
        (0.0, 0.5)
    """
    with torch.no_grad():
        return float((point.manifold.projx(point) - point).abs().max())


def _any_tangent(x: Tensor) -> Tensor:
    """One unit tangent vector a row, always the same: towards the axis most nearly orthogonal to the row."""
    axis = torch.nn.functional.one_hot(x.abs().argmin(-1), x.shape[-1]).to(x.dtype)
    return normalize_rows(axis - _row_dot(x, axis) * x)


def _shares(weights: Tensor | None, points: Tensor, dim: int) -> Tensor:
    """Weights as shares of one along `dim`, shaped to multiply points."""
    lead = points.shape[:-2]
    if weights is None:
        return points.new_full((), 1 / lead[dim])
    weights = weights.to(points).broadcast_to(lead)
    total = weights.sum(dim, keepdim=True)
    if bool((weights < 0).any()) or not bool((total > 0).all()):
        raise ValueError("weights must not be negative, and must have a positive sum")
    return (weights / total)[..., None, None]


class Oblique(geoopt.Manifold):
    """Tensors (..., m, n) whose rows are unit vectors, n >= 2, with the metric of the surrounding space.

    For m = 1 it is geoopt's `geoopt.Sphere`, without its NaN at zero and its floor under small distances. Vector
    transport is a projection at the end point, so geoopt's own `retr_transp` and `expmap_transp`, one step and one
    projection, are already the fused forms.

    Sources, for one sphere: Absil, Mahony & Sepulchre (2008), *Optimization Algorithms on Matrix Manifolds*;
    Boumal (2023), *An Introduction to Optimization on Smooth Manifolds*.

    Examples:
        >>> import geoopt
        >>> import torch
        >>> from oblique_clip.manifold import Oblique
        >>> oblique = Oblique()
        >>> target = oblique.random(8, 16, generator=torch.Generator().manual_seed(0))
        >>> point = geoopt.ManifoldParameter(oblique.origin(8, 16), manifold=oblique)
        >>> optimizer = geoopt.optim.RiemannianAdam([point], lr=0.1)
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     oblique.dist2(point, target).backward()
        ...     _ = optimizer.step()
        >>> oblique.dist(point, target).item() < 0.01
        True
        >>> oblique.check_point_on_manifold(point)
        True
    """

    name = "Oblique"
    ndim = 2
    reversible = False

    def projx(self, x: Tensor) -> Tensor:
        """Nearest point: each row divided by its length, a zero row becoming (1, 0, ..., 0).

        Args:
            x: (..., m, n); see `normalize_rows`.
        """
        return normalize_rows(x)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Orthogonal projection onto the tangent space at x: each row loses its part along x's row.

        Args:
            x: point, (..., m, n).
            u: any tensor that broadcasts against x.
        """
        x, u = _widen(x, u)
        return torch.addcmul(u, _row_dot(x, u), x, value=-1)

    # The metric is that of the surrounding space, so projecting a gradient makes it Riemannian.
    egrad2rgrad = proju

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """Step along u and project back: `expmap` up to third order in u, at less cost.

        Absil, Mahony & Sepulchre (2008), example 4.1.1.

        Args:
            x: point, (..., m, n).
            u: tangent vector at x.
        """
        x, u = _widen(x, u)
        return normalize_rows(x + u)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Follow each row's great circle for the length of u's row: x cos|u| + u sin|u| / |u|.

        Absil, Mahony & Sepulchre (2008), example 5.4.1.

        Args:
            x: point, (..., m, n).
            u: tangent vector at x.
        """
        x, u = _widen(x, u)
        angle = _row_norm(u)
        # Projected, so that rounding does not add up over many steps.
        return normalize_rows(torch.cos(angle) * x + torch.sinc(angle / math.pi) * u)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Shortest tangent vector at x that `expmap` takes to y; its rows are at most pi long.

        To an antipodal row a whole sphere of directions leads: a fixed one is returned, of length pi. Boumal
        (2023), section 10.2.

        Args:
            x: point, (..., m, n).
            y: point that broadcasts against x.
        """
        x, y = _widen(x, y)
        far = _row_dot(x, y) < 0
        # y, y - x and y + x have the same tangent part; the shortest of them keeps most of its digits.
        direction = self.proju(x, torch.where(far, y + x, y - x))
        rounding = 4 * torch.finfo(direction.dtype).eps
        antipodal = far & (_row_norm(direction) < rounding)
        direction = torch.where(antipodal, _any_tangent(x), direction)
        length = _row_norm(direction)
        # Next to x the direction is already as long as the angle, and their quotient would be noise.
        coincident = length < rounding
        stretch = row_angle(x, y)[..., None] / length.masked_fill(coincident, 1)
        return direction * stretch.masked_fill(coincident, 1)

    def geodesic(self, t: float | Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Where the shortest geodesic from x at time 0 to y at time 1 is at time t.

        Args:
            t: a number, or a tensor that broadcasts against (..., m, n), as (T, 1, 1) for T times.
            x: point, (..., m, n).
            y: point that broadcasts against x.
        """
        return self.expmap(x, t * self.logmap(x, y))

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Transport v from x to y by projection (Absil, Mahony & Sepulchre 2008, section 8.1.3).

        Linear, never lengthens a row, and the identity where y = x. It keeps the part of each row orthogonal
        to the geodesic, and takes <u, y><v, y> a row from inner products. That is second order in the step;
        parallel transport would keep them exactly, at the price of a logarithm.

        Returns:
            Tangent vector at y, (..., m, n).
        """
        return self.proju(y, v)

    def parallel_transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Carry v along the shortest geodesic from x to y: each row turns with its sphere in the plane of x and y.

        Keeps all inner products, row by row, and takes `logmap(x, y)` to -`logmap(y, x)`. From a row to its antipode it
        follows the geodesic that `logmap` chooses. Absil, Mahony & Sepulchre (2008), example 8.1.1.

        Args:
            x: point, (..., m, n).
            y: point that broadcasts against x.
            v: tangent vector at x.

        Returns:
            Tangent vector at y, (..., m, n).
        """
        x, v = _widen(x, v)
        u = self.logmap(x, y)
        angle = _row_norm(u) / math.pi
        # The part of v along u / |u| turns by the angle; the factors keep their digits where that is near zero.
        turned = -0.5 * torch.sinc(angle / 2).square() * u - torch.sinc(angle) * x
        return self.proju(y, v + _row_dot(u, v) * turned)

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        """Inner product of tangent vectors at x, the sum over all rows; v defaults to u.

        Returns:
            (...), or (..., 1, 1) with `keepdim`.
        """
        u, v = _widen(u, u if v is None else v)
        inner = (u * v).sum((-2, -1), keepdim=keepdim)
        return inner.expand(broadcast_shapes(x.shape[:-2] + (1, 1) * keepdim, inner.shape))

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Inner product row by row, (..., m, 1), so that RiemannianAdam scales each row by itself."""
        u, v = _widen(u, u if v is None else v)
        inner = _row_dot(u, v)
        return inner.expand(broadcast_shapes((*x.shape[:-1], 1), inner.shape))

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """Length of a tangent vector, with gradient zero, not NaN, where it is zero.

        Returns:
            (...), or (..., 1, 1) with `keepdim`.
        """
        (u,) = _widen(u)
        # By rows first: over 5 x 4,096 float32 entries at once the norm was seen 6e-6 off, and so 3e-7.
        norm: Tensor = vector_norm(_row_norm(u), dim=(-2, -1), keepdim=keepdim)
        return norm.expand(broadcast_shapes(x.shape[:-2] + (1, 1) * keepdim, norm.shape))

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Geodesic distance, the root of the summed squares of `row_angle`, in [0, pi sqrt(m)].

        Returns:
            (...), or (..., 1, 1) with `keepdim`. The gradient is finite everywhere, and zero at y = x.
        """
        distance: Tensor = vector_norm(row_angle(x, y)[..., None], dim=(-2, -1), keepdim=keepdim)
        return distance

    def dist2(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Squared geodesic distance, in [0, pi^2 m], without taking the root; shapes as in `dist`."""
        return row_angle(x, y)[..., None].square().sum((-2, -1), keepdim=keepdim)

    def random_uniform(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> geoopt.ManifoldTensor:
        """Independent uniform rows: Gaussian vectors, normalised.

        Args:
            size: the shape (..., m, n).

        Raises:
            ValueError: fewer than two dimensions, or n < 2.
        """
        self._assert_check_shape(size2shape(*size), "x")
        gaussian = torch.randn(*size, dtype=dtype, device=device, generator=generator)
        return geoopt.ManifoldTensor(self.projx(gaussian), manifold=self)

    random = random_uniform

    def origin(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = 42,
    ) -> geoopt.ManifoldTensor:
        """The point whose rows are all (1, 0, ..., 0), where zero projects to; `seed` is ignored.

        Args:
            size: the shape (..., m, n).

        Raises:
            ValueError: fewer than two dimensions, or n < 2.
        """
        self._assert_check_shape(size2shape(*size), "x")
        zero = torch.zeros(*size, dtype=dtype, device=device)
        return geoopt.ManifoldTensor(self.projx(zero), manifold=self)

    def mean(
        self,
        points: Tensor,
        weights: Tensor | None = None,
        *,
        dim: int = -3,
        method: MeanMethod = "extrinsic",
        max_iter: int = 100,
        tol: float | None = None,
    ) -> Tensor:
        """Weighted mean of points over one leading dimension; differentiable.

        `extrinsic` projects the Euclidean mean, which minimises the summed squared chords; a row whose
        points cancel has none, and gives (1, 0, ..., 0). `karcher` starts there and minimises the summed
        squared geodesic distances, repeating mean <- exp(mean of logs). This converges where each row's
        points fit in a ball of radius below pi/2 (Afsari, Tron & Vidal 2013).

        Args:
            points: (..., m, n) with at least one leading dimension.
            weights: broadcast to `points.shape[:-2]`; not negative, with a positive sum along `dim`.
            dim: the dimension averaged over, not one of the last two.
            max_iter: most steps of the Karcher mean; a RuntimeWarning says if they did not suffice.
            tol: stop where no row's step is longer, in radians; by default 32 units of rounding.

        Returns:
            The shape of `points` without `dim`.

        Raises:
            ValueError: unknown method, unfit weights, `dim` not a leading dimension, or no points.
        """
        if method not in ("extrinsic", "karcher"):
            raise ValueError(f"method must be 'extrinsic' or 'karcher', not {method!r}")
        if dim not in range(-points.dim(), -2) and dim not in range(points.dim() - 2):
            raise ValueError(f"dim {dim} is not a leading dimension of points {tuple(points.shape)}")
        if points.shape[dim] == 0:
            raise ValueError("no points to average")
        (points,) = _widen(points)
        dim %= points.dim()
        shares = _shares(weights, points, dim)
        mean = self.projx((shares * points).sum(dim, keepdim=True))
        if method == "karcher":
            tol = 32 * torch.finfo(points.dtype).eps if tol is None else tol
            mean = self._karcher_from(mean, points, shares, dim, max_iter, tol)
        return mean.squeeze(dim)

    def _karcher_from(
        self, mean: Tensor, points: Tensor, shares: Tensor, dim: int, max_iter: int, tol: float
    ) -> Tensor:
        for _ in range(max_iter):
            step = (shares * self.logmap(mean, points)).sum(dim, keepdim=True)
            mean = self.expmap(mean, step)
            if bool((_row_norm(step) <= tol).all()):
                return mean
        warnings.warn(f"Karcher mean not within {tol} after {max_iter} steps", RuntimeWarning, stacklevel=3)
        return mean

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        ok, reason = super()._check_shape(shape, name)
        if ok and shape[-1] < 2:
            return False, f"`{name}` has rows of length {shape[-1]}; on fewer than 2 axes no row can move"
        return ok, reason

    def _check_point_on_manifold(self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5) -> tuple[bool, str | None]:
        """Whether every row has length 1, up to `atol + rtol`."""
        (x,) = _widen(x)
        if bool(((_row_norm(x) - 1).abs() <= atol + rtol).all()):
            return True, None
        return False, f"`x` has a row of norm other than 1 with atol={atol}, rtol={rtol}"

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        """Whether rows of x and u are orthogonal, up to `atol` plus `rtol` times u's length."""
        x, u = _widen(x, u)
        if bool((_row_dot(x, u).abs() <= atol + rtol * _row_norm(u)).all()):
            return True, None
        return False, f"a row of `u` is not orthogonal to that of `x` with atol={atol}, rtol={rtol}"
