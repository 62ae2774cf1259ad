"""The laws of every topology and distance, against formulas written out in float64."""

import math

import geoopt
import pytest
import torch
from conftest import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from oblique_clip.errors import UserError
from oblique_clip.manifold import Oblique
from oblique_clip.topology import TOPOLOGIES, LorentzTopology, Topology, parse_topology

OBLIQUE = ["oblique(4,3)", "oblique(4,3)/geodesic", "oblique(4,3)/chordal"]
SPHERE = ["sphere(8)", "sphere(8)/geodesic", "sphere(8)/chordal"]
EUCLIDEAN = ["euclidean(8)", "euclidean(8)/squared"]
LORENTZ = ["lorentz(8)"]
SPECS = SPHERE + OBLIQUE + EUCLIDEAN + LORENTZ
BOUNDED = SPHERE + OBLIQUE
MANY_SPHERES = ["oblique(32,16)", "oblique(32,16)/geodesic", "oblique(32,16)/chordal"]
FLAT = ["sphere(8)", "sphere(8)/geodesic", "sphere(8)/chordal", "oblique(4,3)", "oblique(4,3)/chordal"]
HALVES = [torch.float16, torch.bfloat16]

EXACT = 1e-12
"""Two ways to the same float64 number."""
ROWWISE = 1e-6
"""Row by row in float32, for each sphere and points of size 1: times sqrt(m) in all, and times m for inner."""
PAIRWISE = 1e-3
"""Pairwise in float32, an angle or a distance for each sphere and points of size 1: times sqrt(m) in all, so 4e-3 for
oblique(32,16). (Inner products, times m, are far closer: `test_pairwise_inner_products_are_exact_in_float32`.)"""
ROUNDING = 1e-6
"""How far rounding may carry a similarity over the end of its range, relative to the range."""
REFERENCE = 1e-7
"""Error of the float64 references themselves next to a kink, where acos loses half of its digits."""
ON_SHEET = 1e-5
"""Relative error of <x, x>_L in float32, for points a few radii out."""
CLIP_SPREAD = 2 / 0.07
CLIP_LARGEST_SPREAD = 200.0

laws = settings(max_examples=30, deadline=None, database=None)


def reference(topology: Topology, x: Tensor, y: Tensor) -> Tensor:
    """Similarity of matching points by its textbook formula, in float64; unit norms are made exact first."""
    x, y = x.detach().double(), y.detach().double()
    if topology.family == "lorentz":
        assert isinstance(topology, LorentzTopology)
        c = topology.curvature.detach().double()
        a, b = x[..., 0, 1:], y[..., 0, 1:]
        times = (1 / c + a.square().sum(-1)).sqrt() * (1 / c + b.square().sum(-1)).sqrt()
        return -(c * (times - (a * b).sum(-1))).clamp(min=1).acosh() / c.sqrt()
    if topology.family == "euclidean":
        squares = (x - y).square().sum((-2, -1))
        return -squares if topology.distance == "squared" else -squares.sqrt()
    x, y = x / x.norm(dim=-1, keepdim=True), y / y.norm(dim=-1, keepdim=True)
    cosines = (x * y).sum(-1).clamp(-1, 1)
    if topology.distance == "inner":
        return cosines.sum(-1)
    if topology.distance == "geodesic":
        return -cosines.acos().square().sum(-1).sqrt()
    return -(2 - 2 * cosines).sum(-1).clamp(min=0).sqrt()


def size_of(topology: Topology, points: Tensor) -> float:
    """What errors are relative to: the rounding of these points, in units of that of a unit vector."""
    largest = float(points.detach().norm(dim=-1).max())
    if topology.family == "lorentz":
        return largest
    if topology.distance == "squared":
        return 4 * largest**2
    return max(1.0, largest) * (topology.m if topology.distance == "inner" else math.sqrt(topology.m))


def some_points(topology: Topology, count: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return topology.project(torch.randn(count, topology.m, topology.n, dtype=dtype)).detach()


def hard_pairs(topology: Topology) -> tuple[Tensor, Tensor]:
    """Points x and y: far apart, close at every scale, coincident, and opposite or nearly so."""
    features = torch.randn(10, topology.m, topology.n)
    steps = [torch.randn_like(features) * size for size in (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 0.0)]
    others = [features + step for step in steps] + [-features, -features + steps[4]]
    x, y = features.repeat(len(others), 1, 1), torch.cat(others)
    return topology.project(x).detach(), topology.project(y).detach()


@st.composite
def specs(draw: st.DrawFn) -> str:
    family = draw(st.sampled_from(sorted(TOPOLOGIES)))
    sizes = [str(draw(st.integers(2, 4096))) for _ in range(2 if family == "oblique" else 1)]
    return f"{family}({','.join(sizes)})/{draw(st.sampled_from(TOPOLOGIES[family].distances))}"


@laws
@given(specs(), st.sampled_from(["", " "]))
def test_a_spec_and_its_topology_say_the_same(spec: str, gap: str) -> None:
    topology = parse_topology(spec.replace("(", f"{gap}({gap}").replace(",", f",{gap}").replace("/", f"{gap}/{gap}"))
    again = parse_topology(topology.spec)
    assert f"{topology.spec.split('/')[0]}/{topology.distance}" == spec
    assert (type(again), again.n, again.m, again.distance) == (
        type(topology), topology.n, topology.m, topology.distance,
    )  # fmt: skip


def test_the_default_distance_may_be_left_out() -> None:
    for family, kind in TOPOLOGIES.items():
        bare = f"{family}(4,3)" if family == "oblique" else f"{family}(4)"
        assert parse_topology(bare).distance == kind.distances[0]
        assert parse_topology(bare).spec == bare


@pytest.mark.parametrize(
    "spec",
    ["oblik(32,16)", "oblique", "oblique(32)", "sphere(8,2)", "sphere(-3)", "sphere(3.5)", "", "sphere(8)/", "(8)",
     "Sphere(8)", "sphere(8)inner", "oblique(32,16)/inner/chordal", "lorentz(2,2)", "euclidean()"],
)  # fmt: skip
def test_a_misspelt_spec_fails_with_all_that_exists(spec: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_topology(spec)
    for option in (
        "sphere(d)",
        "oblique(n,m)",
        "euclidean(d)",
        "lorentz(d)",
        "inner",
        "geodesic",
        "chordal",
        "squared",
    ):
        assert option in str(caught.value)


@pytest.mark.parametrize("spec", ["sphere(8)/cosine", "euclidean(8)/inner", "lorentz(8)/chordal", "oblique(4,2)/l2"])
def test_a_distance_that_a_topology_lacks_fails_with_those_it_has(spec: str) -> None:
    family, _, wrong = spec.replace("/", "(").split("(")
    with pytest.raises(UserError, match=wrong) as caught:
        parse_topology(spec)
    assert all(distance in str(caught.value) for distance in TOPOLOGIES[family].distances)


@pytest.mark.parametrize(
    "spec", ["sphere(1)", "sphere(0)", "oblique(1,8)", "oblique(8,0)", "euclidean(0)", "lorentz(0)"]
)
def test_a_size_without_room_fails(spec: str) -> None:
    with pytest.raises(UserError, match="at least"):
        parse_topology(spec)


@laws
@given(st.integers(2, 40), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_inner_is_the_sum_over_spheres_and_the_official_formula(n: int, m: int, seed: int) -> None:
    torch.manual_seed(seed)
    topology = parse_topology(f"oblique({n},{m})")
    x, y = some_points(topology, 5, torch.float64), some_points(topology, 7, torch.float64)
    similarity = topology.similarity(x, y)
    by_sphere = sum(x[:, i] @ y[:, i].T for i in range(m))
    assert isinstance(by_sphere, Tensor)
    assert relative_error(similarity, by_sphere) < EXACT
    assert relative_error(similarity, torch.einsum("abd,cbd->ac", x, y)) < EXACT


@pytest.mark.parametrize("distance", TOPOLOGIES["oblique"].distances)
def test_oblique_of_one_sphere_is_the_sphere(distance: str) -> None:
    oblique, sphere = parse_topology(f"oblique(8,1)/{distance}"), parse_topology(f"sphere(8)/{distance}")
    features = torch.randn(6, 1, 8)
    points = oblique.project(features)
    assert torch.equal(points, sphere.project(features))
    assert torch.equal(oblique.similarity(points, points), sphere.similarity(points, points))
    assert torch.equal(oblique.similarity_rowwise(points, points), sphere.similarity_rowwise(points, points))
    assert torch.equal(oblique.mean(points), sphere.mean(points))
    assert torch.equal(oblique.flat(points), sphere.flat(points))
    assert (oblique.range, oblique.max_scale) == (sphere.range, sphere.max_scale)
    assert oblique.initial_scale() == sphere.initial_scale()


@pytest.mark.parametrize("spec", SPECS + MANY_SPHERES)
def test_rowwise_is_exact_in_float32(spec: str) -> None:
    topology = parse_topology(spec)
    x, y = hard_pairs(topology)
    error = (topology.similarity_rowwise(x, y) - reference(topology, x, y)).abs().max().item()
    assert error < ROWWISE * size_of(topology, torch.cat([x, y]))


@pytest.mark.parametrize("spec", ["sphere(8)", "oblique(4,3)", "oblique(32,16)"])
def test_pairwise_inner_products_are_exact_in_float32(spec: str) -> None:
    topology = parse_topology(spec)
    x, y = hard_pairs(topology)
    error = (topology.similarity(x, y) - reference(topology, x[:, None], y[None])).abs().max().item()
    assert error < ROWWISE * topology.m


@pytest.mark.parametrize("spec", SPECS + MANY_SPHERES)
def test_pairwise_is_rowwise_of_all_pairs(spec: str) -> None:
    topology = parse_topology(spec)
    x, y = hard_pairs(topology)
    found = topology.similarity(x, y)
    expected = reference(topology, x[:, None], y[None])
    assert (found - expected).abs().max().item() < PAIRWISE * size_of(topology, torch.cat([x, y]))
    broadcast = topology.similarity_rowwise(x[:, None], y[None])
    assert (broadcast - expected).abs().max().item() < ROWWISE * size_of(topology, torch.cat([x, y]))


@pytest.mark.parametrize("spec", SPECS)
def test_pairwise_is_exact_in_float64(spec: str) -> None:
    topology = parse_topology(spec).double()
    x, y = some_points(topology, 5, torch.float64), some_points(topology, 4, torch.float64)
    expected = reference(topology, x[:, None], y[None])
    assert relative_error(topology.similarity(x, y), expected) < EXACT
    assert relative_error(topology.similarity_rowwise(x[:, None], y[None]), expected) < EXACT


@pytest.mark.parametrize("way", ["pairwise", "rowwise"])
@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_finite_everywhere(spec: str, way: str) -> None:
    topology = parse_topology(spec)
    base = torch.randn(3, topology.m, topology.n)
    rows = [base, -base, base * 1e6, base * 1e-20, torch.zeros_like(base), base + 1e-7 * torch.randn_like(base)]
    x = torch.cat(rows * len(rows)).requires_grad_()
    y = torch.cat([row for row in rows for _ in rows]).requires_grad_()
    compare = topology.similarity if way == "pairwise" else topology.similarity_rowwise
    similarity = compare(topology.project(x), topology.project(y))
    similarity.sum().backward()
    assert similarity.isfinite().all()
    for tensor in (x, y, *topology.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


@pytest.mark.parametrize("spec", SPECS)
def test_two_equal_points_do_not_pull_at_each_other(spec: str) -> None:
    """At its largest value the similarity has gradient zero by convention, where the distance has a kink."""
    topology = parse_topology(spec)
    features = torch.randn(5, topology.m, topology.n).requires_grad_()
    other = topology.project(features).detach()
    topology.similarity_rowwise(topology.project(features), other).sum().backward()
    assert features.grad is not None and features.grad.abs().max() < ROWWISE


@pytest.mark.parametrize("spec", SPECS)
def test_the_range_is_attained_and_never_left(spec: str) -> None:
    topology = parse_topology(spec)
    low, high = topology.range
    x, y = hard_pairs(topology)
    slack = ROUNDING * (high - low if math.isfinite(low) else 1)
    for similarity in (topology.similarity(x, y), topology.similarity_rowwise(x, y)):
        assert similarity.max() <= high + slack
        assert similarity.min() >= low - slack
    assert topology.similarity_rowwise(x, x).min().item() == pytest.approx(high, abs=slack)
    features = torch.randn(4, topology.m, topology.n)
    opposite = topology.similarity_rowwise(topology.project(features), topology.project(-features))
    if math.isfinite(low):
        assert opposite.max().item() == pytest.approx(low, abs=slack)
    else:
        far = topology.project(30 * features / features.norm(dim=-1, keepdim=True))
        assert topology.similarity_rowwise(far, topology.project(-30 * features)).max() < -10


@pytest.mark.parametrize("spec", FLAT)
def test_flat_ranks_exactly_as_the_similarity(spec: str) -> None:
    topology = parse_topology(spec)
    x, y = some_points(topology, 5, torch.float64), some_points(topology, 300, torch.float64)
    flat_x, flat_y = topology.flat(x), topology.flat(y)
    assert relative_error(flat_y.norm(dim=-1), torch.ones(300)) < EXACT
    order = (flat_x @ flat_y.T).argsort(1, descending=True)
    assert torch.equal(order, topology.similarity(x, y).argsort(1, descending=True))


@pytest.mark.parametrize("spec", sorted(set(SPECS) - set(FLAT)))
def test_flat_raises_where_no_unit_vectors_rank_alike(spec: str) -> None:
    topology = parse_topology(spec)
    assert not topology.flat_is_exact
    with pytest.raises(UserError, match="flat"):
        topology.flat(some_points(topology))


def minkowski(x: Tensor, y: Tensor) -> Tensor:
    return (x[..., 1:] * y[..., 1:]).sum(-1) - x[..., 0] * y[..., 0]


def cluster(topology: Topology, count: int) -> Tensor:
    """Points close enough together that their mean is unique."""
    features = torch.randn(1, topology.m, topology.n, dtype=torch.float64)
    return topology.project(features + 0.5 * torch.randn(count, topology.m, topology.n, dtype=torch.float64)).detach()


def cost(topology: Topology, p: Tensor, x: Tensor) -> Tensor:
    """What the mean minimises: geodesic or Euclidean distances squared, chords squared, or -<p, x>_L."""
    if topology.family == "lorentz":
        return -minkowski(p, x).squeeze(-1)
    if topology.distance in ("inner", "squared"):
        return (p - x).square().sum((-2, -1))
    return topology.similarity_rowwise(p, x).square()


def shifted(topology: Topology, point: Tensor, size: float) -> Tensor:
    """A point near another, on the manifold."""
    if topology.family != "lorentz":
        manifold = topology.manifold
        return manifold.retr(point, manifold.proju(point, size * torch.randn_like(point)))
    assert isinstance(topology, LorentzTopology)
    space = point[..., 1:] + size * torch.randn_like(point[..., 1:])
    return torch.cat([(1 / topology.curvature + space.square().sum(-1, keepdim=True)).sqrt(), space], -1).detach()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_the_mean_minimises_the_summed_squared_distances(spec: str, weighted: bool) -> None:
    topology = parse_topology(spec).double()
    points = cluster(topology, 7)
    weights = torch.rand(7, dtype=torch.float64) if weighted else None
    shares = torch.ones(7, dtype=torch.float64) if weights is None else weights
    mean = topology.mean(points, weights).detach()
    least = (shares * cost(topology, mean, points)).sum()
    for size in (1e-1, 1e-2, 1e-3, 1e-4):
        for _ in range(5):
            assert (shares * cost(topology, shifted(topology, mean, size), points)).sum() > least


@pytest.mark.parametrize("spec", SPECS)
def test_the_mean_is_on_the_manifold_and_knows_no_order(spec: str) -> None:
    topology = parse_topology(spec).double()
    points = cluster(topology, 9)
    mean = topology.mean(points)
    order = torch.randperm(9)
    weights = torch.rand(9, dtype=torch.float64)
    assert on_manifold(topology, mean)
    assert relative_error(topology.mean(points[order]), mean) < EXACT
    assert relative_error(topology.mean(points[order], weights[order]), topology.mean(points, weights)) < EXACT


def on_manifold(topology: Topology, point: Tensor) -> bool:
    if topology.family == "lorentz":
        assert isinstance(topology, LorentzTopology)
        square = -(point[..., 0].square() - point[..., 1:].square().sum(-1))
        return relative_error(square, (-1 / topology.curvature).expand(square.shape)) < EXACT
    return bool(topology.manifold.check_point_on_manifold(point, atol=EXACT, rtol=0))


@pytest.mark.parametrize("spec", SPECS)
def test_weights_of_the_mean_count_points(spec: str) -> None:
    """A weight of k is a point given k times, 0 leaves it out, and all alike is none."""
    topology = parse_topology(spec).double()
    points = cluster(topology, 3)
    repeated = torch.cat([points[:1], points[1:2], points[1:2], points[1:2]])
    assert (
        relative_error(topology.mean(points, torch.tensor([1.0, 3.0, 0.0]).double()), topology.mean(repeated)) < EXACT
    )
    assert relative_error(topology.mean(points, torch.full((3,), 7.0).double()), topology.mean(points)) < EXACT
    assert relative_error(topology.mean(points[:1]), points[0]) < EXACT


@pytest.mark.parametrize("spec", SPECS)
def test_the_mean_over_the_first_axis_is_taken_for_each_of_the_others(spec: str) -> None:
    """As with prompts of many classes at once: points (K, C, *point_shape)."""
    topology = parse_topology(spec).double()
    classes = [cluster(topology, 4) for _ in range(3)]
    weights = torch.rand(4, dtype=torch.float64)
    together = topology.mean(torch.stack(classes, 1), weights)
    assert relative_error(together, torch.stack([topology.mean(c, weights) for c in classes])) < EXACT


def test_oblique_starts_at_the_scale_of_the_design() -> None:
    assert parse_topology("oblique(32,16)").initial_scale() == pytest.approx(0.893, abs=5e-4)
    assert parse_topology("oblique(32,16)").max_scale == pytest.approx(6.25)
    assert parse_topology("sphere(512)").initial_scale() == pytest.approx(1 / 0.07)
    assert parse_topology("sphere(512)").max_scale == pytest.approx(100)


@pytest.mark.parametrize("spec", [*BOUNDED, "oblique(32,16)", "oblique(32,16)/geodesic", "oblique(32,16)/chordal"])
def test_scale_times_width_is_that_of_clip(spec: str) -> None:
    topology = parse_topology(spec)
    low, high = topology.range
    assert topology.initial_scale() * (high - low) == pytest.approx(CLIP_SPREAD)
    assert topology.max_scale * (high - low) == pytest.approx(CLIP_LARGEST_SPREAD)
    assert topology.initial_scale("sigmoid") * (high - low) == pytest.approx(20)
    assert topology.initial_scale("sigmoid") * (low + high) / 2 + topology.initial_bias() == pytest.approx(-10)


@pytest.mark.parametrize("spec", EUCLIDEAN + LORENTZ)
def test_unbounded_ranges_take_the_scale_of_clip_as_it_is(spec: str) -> None:
    topology = parse_topology(spec)
    assert topology.range == (-math.inf, 0)
    assert topology.initial_scale() == pytest.approx(1 / 0.07)
    assert topology.max_scale == pytest.approx(100)
    assert topology.initial_bias() == 0


@pytest.mark.parametrize("spec", SPECS)
def test_project_gives_points_of_its_manifold(spec: str) -> None:
    topology = parse_topology(spec).double()
    points = topology.project(torch.randn(20, topology.m, topology.n, dtype=torch.float64))
    assert points.shape == (20, *topology.point_shape)
    assert on_manifold(topology, points)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("spec", SPECS)
def test_half_precisions_are_projected_in_float32(spec: str, dtype: torch.dtype) -> None:
    topology = parse_topology(spec)
    features = torch.randn(6, topology.m, topology.n).to(dtype)
    points = topology.project(features)
    assert points.dtype == torch.float32
    assert torch.equal(points, topology.project(features.float()))


@pytest.mark.parametrize("spec", SPECS)
def test_float64_stays_float64(spec: str) -> None:
    topology = parse_topology(spec)
    points = some_points(topology, dtype=torch.float64)
    assert points.dtype == torch.float64
    assert topology.similarity(points, points).dtype == torch.float64
    assert topology.similarity_rowwise(points, points).dtype == torch.float64
    assert topology.mean(points).dtype == torch.float64


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("spec", SPECS)
def test_autocast_changes_nothing(spec: str, dtype: torch.dtype) -> None:
    topology = parse_topology(spec)
    features, others = torch.randn(6, topology.m, topology.n), torch.randn(5, topology.m, topology.n)

    def compute() -> list[Tensor]:
        x, y = topology.project(features), topology.project(others)
        return [x, topology.similarity(x, y), topology.similarity_rowwise(x[:5], y), topology.mean(x)]

    plain = compute()
    with torch.autocast("cpu", dtype):
        under_autocast = compute()
    for one, other in zip(plain, under_autocast, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


def lorentz(n: int, curvature: float) -> LorentzTopology:
    topology = parse_topology(f"lorentz({n})").double()
    assert isinstance(topology, LorentzTopology)
    with torch.no_grad():
        topology.log_curvature.fill_(math.log(curvature))
    return topology


@pytest.mark.parametrize("curvature", [0.3, 1.0, 4.0])
def test_lorentz_agrees_with_geoopt(curvature: float) -> None:
    topology = lorentz(8, curvature)
    manifold = topology.manifold
    features = torch.randn(6, 1, 8, dtype=torch.float64)
    x, y = topology.project(features).detach(), some_points(topology, 6, torch.float64)
    assert relative_error(minkowski(x, x), torch.full((6, 1), -1 / curvature, dtype=torch.float64)) < EXACT
    assert relative_error(-topology.similarity_rowwise(x, y), manifold.dist(x, y).squeeze(-1)) < REFERENCE
    assert relative_error(-topology.similarity(x, y), manifold.dist(x[:, None], y[None]).squeeze(-1)) < REFERENCE
    tangent = torch.cat([torch.zeros(6, 1, 1).double(), features * topology.log_factor.detach().exp()], -1)
    assert isinstance(manifold, geoopt.Lorentz)
    assert relative_error(x, manifold.expmap0(tangent)) < REFERENCE


@pytest.mark.parametrize("curvature", [0.3, 1.0, 4.0])
def test_the_lift_keeps_distances_from_the_origin(curvature: float) -> None:
    """The exponential map: a tangent vector of length r goes to a point at distance r."""
    topology = lorentz(8, curvature)
    features = torch.randn(6, 1, 8, dtype=torch.float64)
    origin = topology.project(torch.zeros(1, 1, 8, dtype=torch.float64))
    lengths = features.norm(dim=-1).squeeze(-1) * topology.log_factor.exp()
    assert relative_error(-topology.similarity_rowwise(topology.project(features), origin), lengths) < EXACT
    factor_at_start = parse_topology("lorentz(64)").log_factor
    assert isinstance(factor_at_start, Tensor) and factor_at_start.item() == pytest.approx(math.log(1 / 8))


@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 10.0, 1e3, 1e8])
def test_lorentz_points_are_on_the_sheet_however_long_the_features(size: float) -> None:
    """Beyond the largest radius they stay there, each in its own direction, and their mean is on the sheet too."""
    topology = parse_topology("lorentz(8)")
    assert isinstance(topology, LorentzTopology)
    features = size * torch.randn(6, 1, 8)
    points = topology.project(features).detach()
    for point in (points, topology.mean(points), topology.mean(points[:1].expand(3, -1, -1))):
        square = minkowski(point.double(), point.double())
        assert ((square + 1).abs() <= ON_SHEET * point.double()[..., 0].square()).all()
    assert points[..., 0].max() <= math.cosh(topology.max_radius) * (1 + ON_SHEET)
    if size > 0:
        direction = torch.nn.functional.normalize(features, dim=-1)
        assert relative_error(torch.nn.functional.normalize(points[..., 1:], dim=-1), direction) < ON_SHEET


def test_curvature_and_factor_get_the_true_gradient() -> None:
    topology = lorentz(5, 0.7)
    features = torch.randn(2, 4, 1, 5, dtype=torch.float64)

    class Compare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.topology = topology

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            a, b = self.topology.project(x), self.topology.project(y)
            return torch.cat([self.topology.similarity(a, b).flatten(), self.topology.similarity_rowwise(a, b)])

    def compare(log_curvature: Tensor, log_factor: Tensor) -> Tensor:
        weights = {"topology.log_curvature": log_curvature, "topology.log_factor": log_factor}
        return functional_call(Compare(), weights, (features[0], features[1]))

    assert torch.autograd.gradcheck(compare, tuple(topology.parameters()))


@pytest.mark.parametrize("drift", [-1.0, 1.0])
def test_a_curvature_past_its_bounds_can_come_back(drift: float) -> None:
    topology = lorentz(5, 1.0)
    low, high = topology.curvature_bounds
    with torch.no_grad():
        topology.log_curvature.fill_(math.log(high if drift > 0 else low) + drift)
    assert topology.curvature.item() == pytest.approx(high if drift > 0 else low)
    topology.curvature.backward()
    assert topology.log_curvature.grad is not None and topology.log_curvature.grad > 0


@pytest.mark.parametrize("spec", SPECS)
def test_the_manifold_is_geoopts(spec: str) -> None:
    """A point of the topology can be a parameter of geoopt's optimisers, and stays on the manifold."""
    topology = parse_topology(spec)
    target, start = some_points(topology, 1), some_points(topology, 1)
    point = geoopt.ManifoldParameter(start, manifold=topology.manifold)
    optimizer = geoopt.optim.RiemannianSGD([point], lr=1e-2)
    before = topology.similarity_rowwise(point, target).item()
    for _ in range(50):
        optimizer.zero_grad()
        (-topology.similarity_rowwise(point, target).sum()).backward()
        optimizer.step()
    assert topology.similarity_rowwise(point, target).item() > before
    assert topology.manifold.check_point_on_manifold(point.detach(), atol=ON_SHEET, rtol=0)
    assert isinstance(topology.manifold, Oblique) == (spec in BOUNDED)
