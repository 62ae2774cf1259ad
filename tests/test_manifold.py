"""The laws of the oblique manifold, over dtypes, shapes and every angle from coincident to antipodal rows."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import geoopt
import numpy as np
import pymanopt.manifolds
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oblique_clip.manifold import TINY_NORM, MeanMethod, Oblique, normalize_rows, row_angle

OB = Oblique()
DTYPES = [torch.float32, torch.float64]
HALVES = [torch.float16, torch.bfloat16]

LAW = {torch.float32: 6e-6, torch.float64: 3e-14}
"""Error allowed to a law, relative to the reference or to 1, whichever is larger."""
ANGLE = {torch.float32: 1e-6, torch.float64: 4e-15}
"""Error allowed to one angle, in radians: a few units of rounding of pi, with the points' own rounding."""
SELF_DIST = 1e-6
PYMANOPT = 1e-10
SPHERE = 1e-12
DERIVATIVE = 1e-9
"""For derivatives in float64 against closed forms, away from the kinks."""
NEAR_THE_END = 1 / math.sin(0.1)
"""How much worse the direction of a geodesic is known 0.1 short of coincident or antipodal rows."""
THIRD_ORDER = 1.0
"""retr and expmap differ by less than this times |step|^3."""

laws = settings(max_examples=60, deadline=None, database=None)
few = settings(max_examples=20, deadline=None, database=None)

angles = st.one_of(
    st.sampled_from([0.0, 1e-12, 1e-8, 1e-4, math.pi / 2, math.pi - 1e-4, math.pi - 1e-8, math.pi]),
    st.floats(0, math.pi),
)
"""Angles between rows, with both ends and their neighbourhoods drawn often."""
generic_angles = st.floats(0.1, 3.0)


@dataclass
class Case:
    """Points x and y at a known angle in each row, tangent vectors u and v at x, and a tensor a anywhere."""

    x: Tensor
    y: Tensor
    u: Tensor
    v: Tensor
    a: Tensor
    angle: Tensor

    @property
    def law(self) -> float:
        return LAW[self.x.dtype]


def unit_tangent(x: Tensor, generator: torch.Generator) -> Tensor:
    u = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    for _ in range(2):  # the second time takes away what rounding left of x
        u = u - (u * x).sum(-1, keepdim=True) * x
        u = u / torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    return u


@st.composite
def cases(
    draw: st.DrawFn,
    angles: st.SearchStrategy[float] = angles,
    dtypes: list[torch.dtype] = DTYPES,
    rows: tuple[int, ...] = (1, 2, 5),
    lengths: tuple[int, ...] = (2, 3, 16, 4096),
) -> Case:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    dtype, m = draw(st.sampled_from(dtypes)), draw(st.sampled_from(rows))
    shape = (*draw(st.sampled_from([(), (1,), (3,), (2, 2)])), m, draw(st.sampled_from(lengths)))
    angle = torch.tensor(draw(st.lists(angles, min_size=m, max_size=m)), dtype=torch.float64)

    x, a = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    x = x / x.norm(dim=-1, keepdim=True)
    towards, v = unit_tangent(x, generator), 3 * unit_tangent(x, generator)
    y = torch.cos(angle)[:, None] * x + torch.sin(angle)[:, None] * towards
    x, y, a = x.to(dtype), y.to(dtype), a.to(dtype)
    u, v = OB.proju(x, angle.to(dtype)[:, None] * towards.to(dtype)), OB.proju(x, v.to(dtype))
    return Case(OB.projx(x), OB.projx(y), u, v, a, angle.expand(shape[:-1]))


def error(actual: Tensor, expected: Tensor | float) -> float:
    """Relative Frobenius error, absolute below 1; a number as reference stands for every entry."""
    actual = actual.detach().double()
    expected = expected.double() if isinstance(expected, Tensor) else torch.full_like(actual, expected)
    assert actual.shape == expected.shape
    return float((actual - expected).norm() / expected.norm().clamp_min(1))


def row_dot(u: Tensor, v: Tensor) -> Tensor:
    return (u.double() * v.double()).sum(-1)


def first_axis(*shape: int) -> Tensor:
    axis = torch.zeros(*shape, dtype=torch.float64)
    axis[..., 0] = 1
    return axis


def assert_point(x: Tensor) -> None:
    law = LAW[x.dtype]
    assert OB.check_point_on_manifold(x, atol=law, rtol=0.0)


def assert_tangent(x: Tensor, u: Tensor) -> None:
    law = LAW[x.dtype]
    assert OB.check_vector_on_tangent(x, u, atol=law, rtol=law)


# projections


@laws
@given(cases(), st.floats(1e-6, 1e6))
def test_projx_is_idempotent_and_blind_to_length(case: Case, length: float) -> None:
    p = OB.projx(case.a)
    assert_point(p)
    assert error(OB.projx(p), p) < case.law
    assert error(OB.projx(length * case.a), p) < case.law


@laws
@given(cases())
def test_projx_finds_the_nearest_point(case: Case) -> None:
    def distance(p: Tensor) -> Tensor:
        return torch.linalg.vector_norm(p - case.a, dim=-1)

    nearest = distance(OB.projx(case.a))
    assert (nearest <= distance(case.x) * (1 + case.law)).all()
    assert error(nearest, (case.a.norm(dim=-1) - 1).abs()) < case.law


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("length", [0.0, 0.1 * TINY_NORM])
def test_a_row_without_direction_becomes_the_first_axis_and_has_no_gradient(dtype: torch.dtype, length: float) -> None:
    x = torch.randn(3, 4, 8, dtype=dtype)
    x[1, 2] = 0
    x[1, 2, 5] = length
    x.requires_grad_()
    p = OB.projx(x)
    assert torch.equal(p[1, 2].double(), first_axis(8))
    assert_point(p)
    (grad,) = torch.autograd.grad((p * torch.randn(3, 4, 8)).sum(), x)
    assert torch.equal(grad[1, 2], torch.zeros_like(grad[1, 2]))
    others = grad.norm(dim=-1).flatten() > 0
    assert grad.isfinite().all() and others.sum() == 3 * 4 - 1


def test_projx_does_not_hide_nan_or_infinity() -> None:
    x = torch.randn(3, 4)
    x[0, 1], x[1, 1] = math.nan, math.inf
    assert OB.projx(x).isnan().any(-1).tolist() == [True, True, False]


@laws
@given(cases())
def test_proju_is_an_orthogonal_projection(case: Case) -> None:
    x, a, b = case.x, case.a, case.a.roll(1, -1)
    p = OB.proju(x, a)
    assert_tangent(x, p)
    assert error(OB.proju(x, p), p) < case.law
    assert error(OB.proju(x, case.u), case.u) < case.law
    assert error(row_dot(p, b), row_dot(a, OB.proju(x, b))) < case.law * x.shape[-1] ** 0.5


@few
@given(cases(dtypes=[torch.float64]), st.sampled_from(["retr", "expmap"]))
def test_riemannian_gradient_gives_the_slope_along_every_step(case: Case, step: str) -> None:
    def cost(x: Tensor) -> Tensor:
        return (x.exp() * case.a).sum((-2, -1))

    x = case.x.clone().requires_grad_()
    (egrad,) = torch.autograd.grad(cost(x).sum(), x)
    at_start = (torch.tensor(0.0, dtype=torch.float64),), (torch.tensor(1.0, dtype=torch.float64),)
    slope = torch.func.jvp(lambda t: cost(getattr(OB, step)(case.x, t * case.v)), *at_start)[1]
    assert error(OB.inner(case.x, OB.egrad2rgrad(case.x, egrad), case.v), slope) < DERIVATIVE


# inner products


@laws
@given(cases())
def test_component_inner_is_one_number_a_row_and_sums_to_inner(case: Case) -> None:
    x, u, v = case.x, case.u, case.v
    components = OB.component_inner(x, u, v)
    assert components.shape == (*x.shape[:-1], 1)
    assert error(components[..., 0], row_dot(u, v)) < case.law
    assert error(OB.inner(x, u, v), row_dot(u, v).sum(-1)) < case.law
    assert error(OB.inner(x, u, v, keepdim=True), components.sum((-2, -1), keepdim=True)) < case.law
    assert torch.equal(OB.inner(x, u, v), OB.inner(x, v, u))


@laws
@given(cases())
def test_norm_is_the_root_of_inner(case: Case) -> None:
    x, u = case.x, case.u
    assert error(OB.norm(x, u).square(), OB.inner(x, u)) < case.law
    assert error(OB.norm(x, u, keepdim=True), OB.component_inner(x, u).sum((-2, -1), True).sqrt()) < case.law


def test_one_vector_against_many_points_gives_a_number_a_point() -> None:
    x, u = OB.random(7, 3, 4), torch.randn(3, 4)
    for value in (OB.inner(x, u), OB.norm(x, u)):
        assert value.shape == (7,) and (value == value[0]).all()
    assert OB.component_inner(x, u).shape == (7, 3, 1)
    assert OB.inner(x, u, keepdim=True).shape == OB.norm(x, u, keepdim=True).shape == (7, 1, 1)


def test_norm_and_dist_have_a_zero_gradient_at_zero() -> None:
    x = OB.random(5, 3, 4)
    u = torch.zeros(5, 3, 4, requires_grad=True)
    OB.norm(x, u).sum().backward()
    assert u.grad is not None and torch.equal(u.grad, torch.zeros_like(u))


# steps


@laws
@given(cases())
def test_expmap_arrives_on_the_manifold_at_the_length_of_the_vector(case: Case) -> None:
    y = OB.expmap(case.x, case.u)
    assert_point(y)
    assert error(y, case.y) < case.law
    assert error(OB.dist(case.x, y), OB.norm(case.x, case.u)) < case.law


@laws
@given(cases())
def test_logmap_is_tangent_as_long_as_the_distance_and_undone_by_expmap(case: Case) -> None:
    u = OB.logmap(case.x, case.y)
    assert_tangent(case.x, u)
    assert error(OB.norm(case.x, u), OB.dist(case.x, case.y)) < case.law
    assert error(OB.expmap(case.x, u), case.y) < case.law


@laws
@given(cases(angles=st.one_of(st.just(0.0), st.floats(0, 3.0))))
def test_logmap_undoes_expmap_short_of_the_antipode(case: Case) -> None:
    recovered = OB.logmap(case.x, OB.expmap(case.x, case.u))
    lost = case.law / math.sin(3.0)  # the antipode is ahead, and its directions crowd together
    assert error(recovered, case.u) < lost


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 3, 512, 4096])
def test_logmap_at_the_ends(dtype: torch.dtype, n: int) -> None:
    x = OB.random(50, 3, n, dtype=dtype)
    assert error(OB.logmap(x, x), 0.0) < LAW[dtype]
    u = OB.logmap(x, -x)
    assert_tangent(x, u)
    assert error(u.norm(dim=-1), math.pi) < LAW[dtype]
    assert error(OB.expmap(x, u), -x) < LAW[dtype]


@few
@given(cases(dtypes=[torch.float64]), st.sampled_from([1e-1, 1e-2, 1e-3]))
def test_retr_agrees_with_expmap_to_third_order(case: Case, size: float) -> None:
    u = size * OB.projx(case.v)
    y = OB.retr(case.x, u)
    assert_point(y)
    gap = (y - OB.expmap(case.x, u)).norm(dim=-1)
    assert (gap < THIRD_ORDER * size**3).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_of_zero_goes_nowhere(dtype: torch.dtype) -> None:
    x = OB.random(4, 3, 5, dtype=dtype)
    for step in (OB.retr, OB.expmap):
        assert error(step(x, torch.zeros_like(x)), x) < LAW[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_expmap_does_not_drift_from_the_manifold(dtype: torch.dtype) -> None:
    x = OB.random(20, 3, 4, dtype=dtype)
    for _ in range(1000):
        x = OB.expmap(x, OB.proju(x, 0.01 * torch.randn_like(x)))
    assert error(torch.linalg.vector_norm(x, dim=-1), 1.0) < ANGLE[dtype]


# transport


@laws
@given(cases())
def test_transport_lands_tangent_is_linear_and_never_lengthens(case: Case) -> None:
    x, y, u, v = case.x, case.y, case.u, case.v
    moved = OB.transp(x, y, v)
    assert_tangent(y, moved)
    assert error(OB.transp(x, y, 2 * u - 3 * v), 2 * OB.transp(x, y, u) - 3 * moved) < case.law
    assert (moved.norm(dim=-1) <= v.norm(dim=-1) * (1 + case.law)).all()
    assert error(OB.transp(x, x, v), v) < case.law


@laws
@given(cases())
def test_transport_keeps_what_it_says_of_inner_products(case: Case) -> None:
    x, y, u, v = case.x, case.y, case.u, case.v
    kept = row_dot(u, v) - row_dot(u, y) * row_dot(v, y)
    assert error(OB.component_inner(y, OB.transp(x, y, u), OB.transp(x, y, v))[..., 0], kept) < case.law


@laws
@given(cases(angles=generic_angles, lengths=(3, 16, 4096)))
def test_transport_keeps_the_part_orthogonal_to_the_geodesic(case: Case) -> None:
    aside = OB.proju(OB.projx(case.u), case.v)
    assert error(OB.transp(case.x, case.y, aside), aside) < 4 * case.law


@laws
@given(case=cases())
def test_parallel_transport_lands_tangent_and_keeps_all_inner_products(case: Case) -> None:
    u, v = (OB.parallel_transport(case.x, case.y, w) for w in (case.u, case.v))
    for w in (u, v):
        assert_tangent(case.y, w)
    for one, other, before in ((u, u, (case.u, case.u)), (u, v, (case.u, case.v)), (v, v, (case.v, case.v))):
        assert error(row_dot(one, other), row_dot(*before)) <= case.law


@laws
@given(case=cases(angles=generic_angles))
def test_parallel_transport_follows_the_geodesic_and_comes_back(case: Case) -> None:
    """What points to y at x points away from x at y, and the way back undoes the way there."""
    carried = OB.parallel_transport(case.x, case.y, OB.logmap(case.x, case.y))
    assert error(carried, -OB.logmap(case.y, case.x)) <= NEAR_THE_END * case.law
    there = OB.parallel_transport(case.x, case.y, case.v)
    assert error(OB.parallel_transport(case.y, case.x, there), case.v) <= NEAR_THE_END * case.law


@laws
@given(cases())
def test_fused_forms_equal_their_two_steps(case: Case) -> None:
    x, u, v = case.x, case.u, case.v
    for step, fused, follow in (
        (OB.retr, OB.retr_transp, OB.transp_follow_retr),
        (OB.expmap, OB.expmap_transp, OB.transp_follow_expmap),
    ):
        y = step(x, u)
        end, moved = fused(x, u, v)
        assert torch.equal(end, y)
        assert torch.equal(moved, OB.transp(x, y, v))
        assert torch.equal(follow(x, u, v), moved)


# distance


@laws
@given(cases())
def test_row_angle_is_accurate_at_every_angle(case: Case) -> None:
    angle = row_angle(case.x, case.y)
    assert angle.shape == case.x.shape[:-1]
    assert (angle >= 0).all() and (angle <= torch.tensor(math.pi, dtype=angle.dtype)).all()
    assert ((angle - case.angle).abs() < ANGLE[case.x.dtype]).all()


@laws
@given(cases())
def test_dist_is_a_metric_and_the_root_of_summed_squared_angles(case: Case) -> None:
    x, y, z = case.x, case.y, OB.projx(case.a)
    distance = OB.dist(x, y)
    assert error(distance, case.angle.square().sum(-1).sqrt()) < case.law
    assert torch.equal(distance, OB.dist(y, x))
    assert (OB.dist(x, z) <= (distance + OB.dist(y, z)) * (1 + case.law)).all()
    assert error(OB.dist2(x, y), distance.double().square()) < case.law
    for squared, dist in ((1, OB.dist), (2, OB.dist2)):
        assert error(dist(x, y, keepdim=True)[..., 0, 0], distance.double() ** squared) < case.law


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("n", [2, 32, 4096])
def test_dist_to_itself_is_zero_with_zero_gradient(dtype: torch.dtype, n: int) -> None:
    x = OB.random(20, 8, n).to(dtype).requires_grad_()
    y = x.detach().clone().requires_grad_()
    for other in (x, y):
        distance = OB.dist(x, other)
        assert (distance <= SELF_DIST).all()
        for grad in torch.autograd.grad(distance.sum(), (x, other)):
            assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dist_to_the_antipode_is_the_diameter_with_zero_gradient(dtype: torch.dtype) -> None:
    x = OB.random(20, 8, 32, dtype=dtype).requires_grad_()
    y = -x.detach()
    distance = OB.dist(x, y)
    assert error(distance, math.pi * math.sqrt(8)) < LAW[dtype]
    (grad,) = torch.autograd.grad(distance.sum(), x)
    assert torch.equal(grad, torch.zeros_like(grad))


@few
@given(cases(angles=generic_angles))
def test_gradients_of_distances_point_away_along_the_logarithm(case: Case) -> None:
    x, y = case.x.clone().requires_grad_(), case.y.clone().requires_grad_()
    for ends in ((x, y), (y, x)):
        away = -OB.logmap(*ends).detach()
        distance = OB.dist(*ends)
        lost = case.law / math.sin(3.0)
        (grad,) = torch.autograd.grad(distance.sum(), ends[:1])
        assert error(grad, away / distance.detach()[..., None, None]) < lost
        (grad,) = torch.autograd.grad(OB.dist2(*ends).sum(), ends[:1])
        assert error(grad, 2 * away) < lost


@laws
@given(cases())
def test_gradients_are_finite_at_every_angle(case: Case) -> None:
    leaves = [t.clone().requires_grad_() for t in (case.x, case.y, case.u)]
    x, y, u = leaves
    outputs = (
        (OB.dist(x, y), (x, y)),
        (OB.dist2(x, y), (x, y)),
        (row_angle(x, y), (x, y)),
        (OB.logmap(x, y), (x, y)),
        (OB.geodesic(0.5, x, y), (x, y)),
        (OB.expmap(x, u), (x, u)),
        (OB.expmap(x, 0 * u), (x, u)),
        (OB.retr(x, u), (x, u)),
        (OB.norm(x, u), (u,)),
    )
    for output, inputs in outputs:
        for grad in torch.autograd.grad(output.sum(), inputs):
            assert grad.isfinite().all()


@pytest.mark.parametrize("function", [row_angle, OB.dist, OB.dist2, OB.logmap, OB.expmap, OB.retr, OB.proju, OB.inner])
def test_derivatives_agree_with_finite_differences(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = OB.random(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = OB.random(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(function, (x.requires_grad_(), y.requires_grad_()))


# geodesics


@laws
@given(cases(), st.floats(0, 1))
def test_geodesic_runs_from_x_to_y_at_constant_speed(case: Case, t: float) -> None:
    x, y = case.x, case.y
    distance = OB.dist(x, y)
    assert error(OB.geodesic(0.0, x, y), x) < case.law
    assert error(OB.geodesic(1.0, x, y), y) < case.law
    z = OB.geodesic(t, x, y)
    assert error(OB.dist(x, z), t * distance) < case.law
    assert error(OB.dist(z, y), (1 - t) * distance) < case.law


def test_geodesic_takes_many_times_at_once() -> None:
    x, y = OB.random(3, 4), OB.random(3, 4)
    times = torch.linspace(-0.5, 1.5, 5)
    path = OB.geodesic(times[:, None, None], x, y)
    assert error(path, torch.stack([OB.geodesic(t, x, y) for t in times])) < LAW[torch.float32]


# means


@few
@given(cases())
def test_mean_of_one_point_repeated_is_the_point(case: Case) -> None:
    points = case.x.expand(4, *case.x.shape)
    for method in ("extrinsic", "karcher"):
        assert error(OB.mean(points, dim=0, method=method), case.x) < case.law


def cloud(dtype: torch.dtype, *, spread: float = 0.5) -> tuple[Tensor, Tensor]:
    """Nine points about a random one, and weights for them."""
    generator = torch.Generator().manual_seed(7)
    centre = OB.random(3, 8, dtype=dtype, generator=generator)
    noise = torch.randn(9, 3, 8, dtype=dtype, generator=generator)
    return OB.retr(centre, spread * OB.proju(centre, noise)), torch.rand(9, dtype=dtype, generator=generator)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extrinsic_mean_minimises_squared_chords(dtype: torch.dtype) -> None:
    points, weights = cloud(dtype)
    mean = OB.mean(points, weights)
    assert_point(mean)
    x = mean.clone().requires_grad_()
    cost = (weights * (points - x).square().sum((-2, -1))).sum()
    (egrad,) = torch.autograd.grad(cost, x)
    assert error(OB.egrad2rgrad(mean, egrad), 0.0) < LAW[dtype]
    assert cost < (weights * (points - OB.projx(points[0])).square().sum((-2, -1))).sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_karcher_mean_minimises_squared_distances(dtype: torch.dtype) -> None:
    points, weights = cloud(dtype)
    mean = OB.mean(points, weights, method="karcher")
    assert_point(mean)
    pull = (weights[:, None, None] * OB.logmap(mean, points)).sum(0)
    assert error(pull, 0.0) < LAW[dtype]

    def cost(x: Tensor) -> Tensor:
        return (weights * OB.dist2(x, points)).sum()

    assert cost(mean) < cost(OB.mean(points, weights)) < cost(points[0])


@few
@given(cases(angles=generic_angles), st.floats(0.05, 0.95))
def test_karcher_mean_of_two_points_lies_on_their_geodesic(case: Case, t: float) -> None:
    weights = torch.tensor([1 - t, t], dtype=case.x.dtype)
    mean = OB.mean(torch.stack([case.x, case.y], -3), weights, method="karcher", max_iter=3000)
    # Between nearly antipodal points the steps shrink slowly, so much way is left after the last.
    assert error(mean, OB.geodesic(t, case.x, case.y)) < 100 * case.law


@pytest.mark.parametrize("method", ["extrinsic", "karcher"])
def test_mean_ignores_order_counts_repeats_as_weights_and_turns_with_its_points(method: MeanMethod) -> None:
    points, _ = cloud(torch.float64)
    mean = OB.mean(points, method=method)
    counts = torch.arange(1, 10)
    turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    law = LAW[torch.float64]
    assert error(OB.mean(points.flip(0), method=method), mean) < law
    assert error(OB.mean(points @ turn, method=method), mean @ turn) < law
    repeated = points.repeat_interleave(counts, 0)
    assert error(OB.mean(points, counts, method=method), OB.mean(repeated, method=method)) < law


@pytest.mark.parametrize("method", ["extrinsic", "karcher"])
@pytest.mark.parametrize("dim", [0, 1, -3, -4])
def test_mean_averages_the_dimension_it_is_asked_to(method: MeanMethod, dim: int) -> None:
    clouds = torch.stack([cloud(torch.float64, spread=s)[0] for s in (0.1, 0.3, 0.5)])
    weights = torch.rand(3, 9, dtype=torch.float64)
    mean = OB.mean(clouds, weights, dim=dim, method=method)
    apart = dim % 4
    alone = [
        OB.mean(c, w, method=method) for c, w in zip(clouds.unbind(1 - apart), weights.unbind(1 - apart), strict=True)
    ]
    assert error(mean, torch.stack(alone)) < LAW[torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_means_of_antipodal_points(dtype: torch.dtype) -> None:
    x = OB.random(3, 8, dtype=dtype)
    pair = torch.stack([x, -x])
    assert error(OB.mean(pair), first_axis(3, 8)) < LAW[dtype]
    halfway = OB.mean(pair, method="karcher")
    assert error(row_angle(halfway, x), math.pi / 2) < LAW[dtype]


def test_mean_passes_gradients_to_points_and_weights() -> None:
    points, weights = cloud(torch.float64)

    def tight(points: Tensor, weights: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fixed number of steps, so that differences are smooth
            return OB.mean(points, weights, method="karcher", max_iter=3, tol=0.0)

    inputs = (points[:3, :2, :3].clone().requires_grad_(), weights[:3].clone().requires_grad_())
    assert torch.autograd.gradcheck(tight, inputs)
    assert torch.autograd.gradcheck(lambda p, w: OB.mean(p, w), inputs)


def test_mean_refuses_what_it_cannot_average_and_says_when_it_stopped_early() -> None:
    points, weights = cloud(torch.float64)
    with pytest.raises(ValueError, match="method"):
        OB.mean(points, method="median")  # type: ignore[arg-type]
    for dim in (-1, -2, 1, 2, 3, -4):
        with pytest.raises(ValueError, match="dimension"):
            OB.mean(points, dim=dim)
    with pytest.raises(ValueError, match="no points"):
        OB.mean(points[:0])
    for unfit in (weights - weights.mean() / 2, -weights, 0 * weights, weights * math.nan):
        with pytest.raises(ValueError, match="weights"):
            OB.mean(points, unfit)
    with pytest.warns(RuntimeWarning, match="1 steps"):
        OB.mean(points, method="karcher", max_iter=1)


# random points and checks


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_points_are_uniform(dtype: torch.dtype) -> None:
    count, n = 20_000, 4
    sample = OB.random_uniform(count, 2, n, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert sample.manifold is OB and sample.dtype == dtype
    assert_point(sample)
    tolerance = 5 / math.sqrt(count)
    assert sample.mean(0).abs().max() < tolerance
    covariance = torch.einsum("kia,kjb->iajb", sample, sample).reshape(2 * n, 2 * n) / count
    assert (covariance - torch.eye(2 * n, dtype=dtype) / n).abs().max() < tolerance
    for direction in (first_axis(n), torch.full((n,), n**-0.5)):  # no corners: a diagonal is like an axis
        fourth_moment = (sample @ direction.to(dtype)).pow(4).mean()
        assert abs(fourth_moment - 3 / (n * (n + 2))) < 0.2 * tolerance


def test_origin_is_where_zero_projects_to_and_draws_no_random_number() -> None:
    state = torch.random.get_rng_state()
    origin = OB.origin(2, 3, 4, dtype=torch.float64)
    assert torch.equal(origin, OB.projx(torch.zeros(2, 3, 4, dtype=torch.float64)))
    assert origin.manifold is OB
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("make", [OB.random, OB.random_uniform, OB.origin])
def test_shapes_without_rows_to_move_are_refused(make: Callable[..., Tensor]) -> None:
    assert make((2, 3)).shape == make(2, 3).shape
    for size in [(), (5,), (5, 1), (5, 0)]:
        with pytest.raises(ValueError):
            make(*size)


def test_check_point_sees_one_bad_row() -> None:
    x = OB.random(3, 4, 5)
    assert OB.check_point_on_manifold(x)
    for bad in (1.001, 0.0, math.nan):
        y = x.clone()
        y[1, 2] *= bad
        ok, reason = OB.check_point_on_manifold(y, explain=True)
        assert not ok and "norm" in reason
    assert not OB.check_point_on_manifold(torch.ones(5))


def test_check_vector_sees_one_bad_row_at_any_length() -> None:
    x = OB.random(3, 4, 5)
    for length in (1e-3, 1.0, 1e3):
        u = length * OB.proju(x, torch.randn(3, 4, 5))
        assert OB.check_vector_on_tangent(x, u)
        u[1, 2] += 0.1 * length * x[1, 2]
        ok, reason = OB.check_vector_on_tangent(x, u, explain=True)
        assert not ok and "orthogonal" in reason
    assert not OB.check_vector_on_tangent(x, x * math.nan, ok_point=True)


# one tensor or many


@few
@given(cases(rows=(2, 5), lengths=(2, 16)))
def test_a_batch_equals_a_loop_over_points_and_over_rows(case: Case) -> None:
    case_inputs = (case.x, case.y, case.u, case.v, case.a)
    x, y, u, v, a = (t.reshape(-1, *t.shape[-2:]) for t in case_inputs)
    methods: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (OB.projx, (a,)),
        (OB.proju, (x, a)),
        (OB.retr, (x, u)),
        (OB.expmap, (x, u)),
        (OB.logmap, (x, y)),
        (OB.transp, (x, y, v)),
        (OB.component_inner, (x, u, v)),
    ]
    for method, inputs in methods:
        whole = method(*inputs)
        points = torch.stack([method(*one) for one in zip(*inputs, strict=True)])
        rows = torch.cat([method(*(t[:, i : i + 1] for t in inputs)) for i in range(x.shape[1])], 1)
        assert error(points, whole) < case.law
        assert error(rows, whole) < case.law
    for method, inputs in ((OB.dist, (x, y)), (OB.dist2, (x, y)), (OB.inner, (x, u, v)), (OB.norm, (x, u))):
        points = torch.stack([method(*one) for one in zip(*inputs, strict=True)])
        assert error(points, method(*inputs)) < case.law


@few
@given(cases(rows=(2,), lengths=(3,)))
def test_one_point_broadcasts_against_many(case: Case) -> None:
    many = OB.random(4, *case.y.shape, dtype=case.y.dtype)
    for method in (OB.dist, OB.logmap, OB.proju):
        assert error(method(case.x, many), torch.stack([method(case.x, y) for y in many])) < case.law
        assert error(method(many, case.x), torch.stack([method(y, case.x) for y in many])) < case.law


# other precisions, other libraries


@pytest.mark.parametrize("half", HALVES)
def test_half_precision_is_computed_in_float32(half: torch.dtype) -> None:
    x, y = (OB.random(5, 3, 8).to(half) for _ in range(2))
    u = torch.randn(5, 3, 8).to(half)
    methods: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (normalize_rows, (u,)),
        (row_angle, (x, y)),
        (OB.projx, (u,)),
        (OB.proju, (x, u)),
        (OB.egrad2rgrad, (x, u)),
        (OB.retr, (x, u)),
        (OB.expmap, (x, u)),
        (OB.logmap, (x, y)),
        (OB.transp, (x, y, u)),
        (OB.dist, (x, y)),
        (OB.dist2, (x, y)),
        (OB.inner, (x, u)),
        (OB.component_inner, (x, u, u)),
        (OB.norm, (x, u)),
        (OB.mean, (x,)),
    ]
    for method, inputs in methods:
        wide = [t.float() for t in inputs]
        assert torch.equal(method(*inputs), method(*wide))
        assert method(*inputs).dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(method(*wide), method(*inputs))
            assert method(*wide).dtype == torch.float32
    assert OB.random(2, 3, dtype=half).dtype == torch.float32


@few
@given(cases(angles=generic_angles, dtypes=[torch.float64], rows=(1,)))
def test_with_one_row_it_is_geoopts_sphere(case: Case) -> None:
    sphere = geoopt.Sphere()
    x, y, u, v, a = (t[..., 0, :] for t in (case.x, case.y, case.u, case.v, case.a))
    rows = (case.x, case.y, case.u, case.v, case.a)

    def same(ours: Tensor, theirs: Tensor) -> None:
        assert error(ours.reshape(theirs.shape), theirs) < SPHERE

    X, Y, U, V, A = rows
    same(OB.projx(A), sphere.projx(a))
    same(OB.proju(X, A), sphere.proju(x, a))
    same(OB.egrad2rgrad(X, A), sphere.egrad2rgrad(x, a))
    same(OB.retr(X, U), sphere.retr(x, u))
    same(OB.expmap(X, U), sphere.expmap(x, u))
    same(OB.logmap(X, Y), sphere.logmap(x, y))
    same(OB.transp(X, Y, V), sphere.transp(x, y, v))
    same(OB.dist(X, Y), sphere.dist(x, y))
    same(OB.dist2(X, Y), sphere.dist2(x, y))
    same(OB.inner(X, U, V), sphere.inner(x, u, v))
    same(OB.component_inner(X, U, V), sphere.component_inner(x, u, v))
    same(OB.norm(X, U), sphere.norm(x, u))
    for ours, theirs in zip(OB.retr_transp(X, U, V), sphere.retr_transp(x, u, v), strict=True):
        same(ours, theirs)


@few
@given(cases(angles=generic_angles, dtypes=[torch.float64], lengths=(2, 3, 16)))
def test_it_agrees_with_pymanopt_whose_unit_vectors_are_columns(case: Case) -> None:
    m, n = case.x.shape[-2:]
    theirs = pymanopt.manifolds.Oblique(n, m)

    def columns(t: Tensor) -> np.ndarray:
        return t.reshape(-1, m, n)[0].T.numpy()

    def rows(value: np.ndarray) -> Tensor:
        return torch.as_tensor(value).T if np.ndim(value) else torch.as_tensor(value)

    x, y, u, v, a = (t.reshape(-1, m, n)[0] for t in (case.x, case.y, case.u, case.v, case.a))
    cx, cy, cu, cv, ca = (columns(t) for t in (x, y, u, v, a))
    pairs = [
        (OB.proju(x, a), theirs.projection(cx, ca)),
        (OB.egrad2rgrad(x, a), theirs.euclidean_to_riemannian_gradient(cx, ca)),
        (OB.retr(x, u), theirs.retraction(cx, cu)),
        (OB.expmap(x, u), theirs.exp(cx, cu)),
        (OB.logmap(x, y), theirs.log(cx, cy)),
        (OB.transp(x, y, v), theirs.transport(cx, cy, cv)),
        (OB.dist(x, y), theirs.dist(cx, cy)),
        (OB.inner(x, u, v), theirs.inner_product(cx, cu, cv)),
        (OB.norm(x, u), theirs.norm(cx, cu)),
        (OB.mean(torch.stack([x, y])), theirs.pair_mean(cx, cy)),
        (OB.mean(torch.stack([x, y]), method="karcher", max_iter=3000), theirs.pair_mean(cx, cy)),
    ]
    for ours, reference in pairs:
        assert error(ours, rows(reference)) < PYMANOPT


def test_geoopt_can_scale_it() -> None:
    x, y = OB.random(3, 4, dtype=torch.float64), OB.random(3, 4, dtype=torch.float64)
    scaled = geoopt.Scaled(OB, 2.0)
    law = LAW[torch.float64]
    assert error(scaled.dist(x, y), 2 * OB.dist(x, y)) < law
    assert error(scaled.dist2(x, y), 4 * OB.dist2(x, y)) < law
    assert error(scaled.expmap(x, scaled.logmap(x, y)), y) < law
    assert error(scaled.geodesic(0.3, x, y), OB.geodesic(0.3, x, y)) < law
