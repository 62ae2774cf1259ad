"""The two losses, against open_clip's, against loops over plain numbers, and by their symmetries."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import LargestTensor, relative_error
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import oblique_clip.loss
from oblique_clip.errors import UserError
from oblique_clip.loss import LOSSES, info_nce, sigmoid_loss
from oblique_clip.topology import Topology, parse_topology

SPECS = [
    "sphere(6)", "sphere(6)/geodesic", "sphere(6)/chordal", "oblique(3,2)", "oblique(3,2)/geodesic",
    "oblique(3,2)/chordal", "euclidean(6)", "euclidean(6)/squared", "lorentz(6)",
]  # fmt: skip
BATCH = 5
GROUPS = [None, [0, 1, 0, 2, 1], [3, 3, 3, 3, 3]]
SCALE, BIAS = 3.7, -1.3

FLOAT64 = 1e-12
"""Two ways to the same float64 number."""
FLOAT32 = 1e-6
"""Two ways to the same float32 number."""
CHANGED = 1e-6
"""A change that is no rounding in float64."""

Loss = Callable[..., Tensor]


def batch(topology: Topology, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    features = torch.randn(2, BATCH, topology.m, topology.n, dtype=dtype)
    return topology.project(features[0]).detach(), topology.project(features[1]).detach()


def as_groups(groups: list[int] | None) -> Tensor | None:
    return None if groups is None else torch.tensor(groups)


def logits_of(topology: Topology, x: Tensor, y: Tensor) -> list[list[float]]:
    return [[SCALE * topology.similarity_rowwise(a, b).item() + BIAS for b in y] for a in x]


def log_softmax(row: list[float], chosen: int) -> float:
    return row[chosen] - math.log(sum(math.exp(value) for value in row))


def looped_info_nce(logits: list[list[float]], groups: list[int]) -> float:
    total = 0.0
    for i in range(BATCH):
        column = [row[i] for row in logits]
        twins = [j for j in range(BATCH) if groups[j] == groups[i]]
        total += sum((log_softmax(logits[i], j) + log_softmax(column, j)) / len(twins) for j in twins)
    return -total / (2 * BATCH)


def looped_sigmoid(logits: list[list[float]], groups: list[int]) -> float:
    total = 0.0
    for i in range(BATCH):
        for j in range(BATCH):
            sign = 1 if groups[i] == groups[j] else -1
            total += math.log(1 + math.exp(-sign * logits[i][j]))
    return total / BATCH


LOOPS = {"info_nce": looped_info_nce, "sigmoid": looped_sigmoid}


def test_every_loss_has_its_loop() -> None:
    assert LOOPS.keys() == LOSSES.keys()


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_equation(name: str, spec: str, groups: list[int] | None) -> None:
    topology = parse_topology(spec).double()
    x, y = batch(topology)
    found = LOSSES[name](x, y, topology, SCALE, bias=torch.tensor(BIAS, dtype=torch.float64), groups=as_groups(groups))
    expected = LOOPS[name](logits_of(topology, x, y), groups or list(range(BATCH)))
    assert found.item() == pytest.approx(expected, rel=FLOAT64)


def test_info_nce_on_the_sphere_is_clips() -> None:
    topology = parse_topology("sphere(16)")
    x, y = batch(topology, torch.float32)
    scale = torch.tensor(1 / 0.07)
    theirs = ClipLoss()(x.flatten(1), y.flatten(1), scale)
    assert relative_error(info_nce(x, y, topology, scale), theirs) < FLOAT32


def test_the_sigmoid_loss_on_the_sphere_is_siglips() -> None:
    topology = parse_topology("sphere(16)")
    x, y = batch(topology, torch.float32)
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    theirs = SigLipLoss()(x.flatten(1), y.flatten(1), scale, bias)
    assert relative_error(sigmoid_loss(x, y, topology, scale, bias=bias), theirs) < FLOAT32


@pytest.mark.parametrize("loss", LOSSES.values())
def test_groups_of_one_are_the_index(loss: Loss) -> None:
    topology = parse_topology("oblique(3,2)").double()
    x, y = batch(topology)
    labels = torch.tensor([7, 2, 9, 0, 4])
    ours, plain = loss(x, y, topology, SCALE, groups=labels), loss(x, y, topology, SCALE)
    assert relative_error(ours, plain) < FLOAT64


@pytest.mark.parametrize("name", LOSSES)
def test_groups_pull_twins_together_and_the_index_apart(name: str) -> None:
    """What `groups` is for: the caption of pair 1, on its own image, flees image 0 or is drawn to it."""
    topology = parse_topology("euclidean(1)/squared").double()
    images = torch.tensor([0.0, 3.0, 9.0], dtype=torch.float64).view(3, 1, 1)

    def pull(groups: Tensor | None) -> float:
        captions = images.clone().requires_grad_()
        LOSSES[name](images, captions, topology, 0.1, groups=groups).backward()
        assert captions.grad is not None
        return float(captions.grad[1])

    assert pull(None) < 0 < pull(torch.tensor([0, 0, 1]))


@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("loss", LOSSES.values())
def test_gradients_are_the_derivatives(loss: Loss, spec: str, groups: list[int] | None, tile: int | None) -> None:
    topology = parse_topology(spec).double()
    features = torch.randn(2, 3, topology.m, topology.n, dtype=torch.float64)
    labels = as_groups(groups)
    chosen = None if labels is None else labels[:3]

    def of_features(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return loss(topology.project(x), topology.project(y), topology, scale, bias=bias, groups=chosen, tile=tile)

    start = [features[0], features[1], torch.tensor(SCALE).double(), torch.tensor(BIAS).double()]
    assert torch.autograd.gradcheck(of_features, [t.clone().requires_grad_() for t in start], fast_mode=True)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("loss", LOSSES.values())
def test_the_order_of_pairs_and_the_side_do_not_matter(loss: Loss, spec: str, groups: list[int] | None) -> None:
    topology = parse_topology(spec).double()
    x, y = batch(topology)
    labels = as_groups(groups)
    value = partial(loss, topology=topology, scale=SCALE)
    order = torch.randperm(BATCH)
    shuffled = None if labels is None else labels[order]
    assert relative_error(value(x[order], y[order], groups=shuffled), value(x, y, groups=labels)) < FLOAT64
    assert relative_error(value(y, x, groups=labels), value(x, y, groups=labels)) < FLOAT64


@pytest.mark.parametrize("loss", LOSSES.values())
def test_the_order_of_captions_alone_does_matter(loss: Loss) -> None:
    topology = parse_topology("oblique(3,2)").double()
    x, _ = batch(topology)
    assert loss(x, x, topology, SCALE) < loss(x, x.roll(1, 0), topology, SCALE)


@pytest.mark.parametrize("groups", GROUPS)
def test_a_bias_cancels_in_info_nce_and_not_in_the_sigmoid(groups: list[int] | None) -> None:
    topology = parse_topology("oblique(3,2)").double()
    x, y = batch(topology)
    bias = torch.tensor(-2.0).double().requires_grad_()
    with_bias = info_nce(x, y, topology, SCALE, bias=bias, groups=as_groups(groups))
    assert relative_error(with_bias, info_nce(x, y, topology, SCALE, groups=as_groups(groups))) < FLOAT64
    (grad,) = torch.autograd.grad(with_bias, bias)
    assert abs(grad.item()) < FLOAT64
    moved = sigmoid_loss(x, y, topology, SCALE, bias=bias, groups=as_groups(groups))
    assert relative_error(moved, sigmoid_loss(x, y, topology, SCALE, groups=as_groups(groups))) > CHANGED


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("loss", LOSSES.values())
def test_the_largest_scale_overflows_nothing(loss: Loss, spec: str) -> None:
    """Coincident pairs and duplicates at the clamp: loss and gradient stay finite in float32."""
    topology = parse_topology(spec)
    features = torch.randn(1, topology.m, topology.n).repeat(4, 1, 1).requires_grad_()
    points = topology.project(torch.cat([features, -features]))
    value = loss(points, points, topology, topology.max_scale)
    value.backward()
    assert value.isfinite()
    assert features.grad is not None and features.grad.isfinite().all()


def dense(
    name: str, x: Tensor, y: Tensor, topology: Topology, scale: Tensor, bias: Tensor, groups: Tensor | None
) -> Tensor:
    """The loss from all logits at once, by torch's own functions and graph."""
    logits = scale * topology.similarity(x, y) + bias
    groups = torch.arange(len(x)) if groups is None else groups
    same = groups[:, None] == groups
    if name == "sigmoid":
        return F.binary_cross_entropy_with_logits(logits, same.to(logits.dtype), reduction="sum") / len(x)
    targets = same / same.sum(1, keepdim=True, dtype=logits.dtype)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def value_and_gradients(loss: Loss, points: tuple[Tensor, Tensor], topology: Topology, scale: float) -> list[Tensor]:
    """`loss(x, y, topology, scale, bias)` and its gradients: points, scale, bias and, for Lorentz, curvature."""
    x, y = (point.detach().clone().requires_grad_() for point in points)
    numbers = [torch.tensor(value, dtype=x.dtype, requires_grad=True) for value in (scale, BIAS)]
    # The other parameter of Lorentz acts before the points given here.
    inputs = [x, y, *numbers, *(p for name, p in topology.named_parameters() if name == "log_curvature")]
    value = loss(x, y, topology, *numbers)
    return [value, *torch.autograd.grad(value, inputs)]


def tiled(name: str, tile: int | None, groups: Tensor | None = None) -> Loss:
    return lambda x, y, topology, scale, bias: LOSSES[name](x, y, topology, scale, bias=bias, groups=groups, tile=tile)


@pytest.mark.parametrize("tile", [1, 2, 3, BATCH])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", LOSSES)
def test_tiles_change_no_number(name: str, spec: str, groups: list[int] | None, tile: int) -> None:
    """Value and every gradient (points, scale, bias, curvature) equal the dense loss, whatever the tile."""
    topology = parse_topology(spec).double()
    points, labels = batch(topology), as_groups(groups)
    found = value_and_gradients(tiled(name, tile, labels), points, topology, SCALE)
    expected = value_and_gradients(partial(dense, name, groups=labels), points, topology, SCALE)
    for ours, reference in zip(found, expected, strict=True):
        # A bias cancels in InfoNCE: its gradient is rounding in both.
        assert relative_error(ours, reference) < 1e-9 or (ours - reference).abs().max() < FLOAT64
    assert relative_error(found[0], expected[0]) < FLOAT64


LARGER = [
    ("sphere(64)", 100.0), ("sphere(64)/geodesic", 30.0), ("sphere(64)/chordal", 30.0), ("oblique(16,4)", 50.0),
    ("oblique(16,4)/geodesic", 14.0), ("oblique(16,4)/chordal", 14.0), ("euclidean(64)", 14.0),
    ("euclidean(64)/squared", 1.0), ("lorentz(64)", 14.0),
]  # fmt: skip
"""Topologies of the size of real ones, and a large scale for each."""


def pairs(topology: Topology, size: int, noise: float) -> tuple[Tensor, Tensor]:
    """Points in float32 of alike images and captions."""
    features = torch.randn(size, topology.m, topology.n)
    others = features + noise * torch.randn_like(features)
    return topology.project(features).detach(), topology.project(others).detach()


def errors_of(loss: Loss, exact: Loss, points: tuple[Tensor, Tensor], spec: str, scale: float) -> list[float]:
    """Relative errors of float32 value and gradients against `exact` in float64."""
    found = value_and_gradients(loss, points, parse_topology(spec), scale)
    doubled = points[0].double(), points[1].double()
    expected = value_and_gradients(exact, doubled, parse_topology(spec).double(), scale)
    return [relative_error(ours, reference) for ours, reference in zip(found, expected, strict=True)]


@pytest.mark.parametrize("grouped", [False, True], ids=["index", "groups"])
@pytest.mark.parametrize("tile", [None, 77])
@pytest.mark.parametrize(("spec", "scale"), LARGER)
@pytest.mark.parametrize("name", LOSSES)
def test_float32_in_tiles_is_float64_at_once(
    name: str, spec: str, scale: float, tile: int | None, grouped: bool
) -> None:
    """600 pairs: value to 1e-6, every gradient to 1e-5."""
    groups = torch.randint(300, (600,)) if grouped else None
    points = pairs(parse_topology(spec), 600, noise=4.0)
    value, *gradients = errors_of(
        tiled(name, tile, groups), partial(dense, name, groups=groups), points, spec, scale
    )  # fmt: skip
    if name == "info_nce":
        del gradients[3]  # The bias cancels: rounding in both.
    assert value < 1e-6
    assert max(gradients) < 1e-5


@pytest.mark.parametrize(("spec", "scale"), [("sphere(8)", 100.0), ("lorentz(8)", 10.0)])
@pytest.mark.parametrize("name", LOSSES)
def test_thousands_of_tiles_round_no_more_than_one(name: str, spec: str, scale: float) -> None:
    """2,048 pairs in 4,096 tiles of 32 x 32; scale, bias and curvature get a term of each, which nearly cancel."""
    points = pairs(parse_topology(spec), 2048, noise=1.0)
    value, *gradients = errors_of(tiled(name, 32), partial(dense, name, groups=None), points, spec, scale)
    if name == "info_nce":
        del gradients[3]
    assert value < 1e-6
    assert max(gradients) < 1e-5


@pytest.mark.parametrize(("spec", "scale"), LARGER)
def test_a_loss_near_zero_rounds_as_torchs_own(spec: str, scale: float) -> None:
    """Where every pair is found, what is left of the loss is what float32 logits allow, in tiles as at once."""
    points = pairs(parse_topology(spec), 600, noise=1.0)
    exact = partial(dense, "info_nce", groups=None)
    ours, torchs = (errors_of(loss, exact, points, spec, scale) for loss in (tiled("info_nce", 77), exact))
    assert all(mine < max(3 * theirs, 1e-5) for mine, theirs in zip(ours[:3], torchs, strict=False))


@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_reach_the_curvature(name: str, tile: int | None) -> None:
    topology = parse_topology("lorentz(6)").double()
    x, y = batch(topology)

    def of_parameter(log_curvature: Tensor) -> Tensor:
        assert log_curvature is topology.log_curvature
        return LOSSES[name](x, y, topology, SCALE, tile=tile)

    assert torch.autograd.gradcheck(of_parameter, [topology.log_curvature])


@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_only_what_asks_gets_a_gradient(name: str, tile: int | None) -> None:
    """Locked towers, a fixed scale, no grad at all: the same value, and the same gradient for who is left."""
    topology = parse_topology("oblique(3,2)").double()
    x, y = batch(topology)
    value, _, whole, *_ = value_and_gradients(tiled(name, tile), (x, y), topology, SCALE)
    bias = torch.tensor(BIAS, dtype=torch.float64)
    y.requires_grad_()
    locked = LOSSES[name](x, y, topology, SCALE, bias=bias, tile=tile)
    (2 * locked).backward()
    assert y.grad is not None
    assert relative_error(y.grad, 2 * whole) < FLOAT64
    with torch.no_grad():
        free = LOSSES[name](x, y, topology, SCALE, bias=bias, tile=tile)
    assert torch.equal(free, value) and torch.equal(locked, value) and not free.requires_grad


@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_points_need_not_be_contiguous(name: str, tile: int | None) -> None:
    topology = parse_topology("oblique(3,2)").double()
    points = batch(topology)
    strided = tuple(point.permute(2, 1, 0).contiguous().permute(2, 1, 0) for point in points)
    assert not strided[0].is_contiguous()
    for found, expected in zip(
        value_and_gradients(tiled(name, tile), strided, topology, SCALE),
        value_and_gradients(tiled(name, tile), points, topology, SCALE),
        strict=True,
    ):
        assert relative_error(found, expected) < FLOAT64 or (found - expected).abs().max() < FLOAT64


@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("groups", [None, [0, 1, 0, 2, 1]])
@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_no_number(name: str, groups: list[int] | None, tile: int | None) -> None:
    topology = parse_topology("oblique(3,2)")
    points, loss = batch(topology, torch.float32), tiled(name, tile, as_groups(groups))
    plain = value_and_gradients(loss, points, topology, SCALE)
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradients(loss, points, topology, SCALE)
    assert all(torch.equal(ours, expected) for ours, expected in zip(found, plain, strict=True))


@pytest.mark.parametrize("grouped", [False, True], ids=["index", "groups"])
@pytest.mark.parametrize("tile", [None, 20])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", LOSSES)
def test_no_tensor_grows_with_the_square_of_the_batch(
    name: str, spec: str, tile: int | None, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, every tensor holds a tile of each sphere or a batch of points, at most."""
    size, side = 101, 20
    for budget in ("WHOLE", "CPU_TILE"):
        monkeypatch.setattr(oblique_clip.loss, budget, side**2)
    topology = parse_topology(spec)
    points = pairs(topology, size, noise=1.0)
    groups = torch.arange(size) // 2 if grouped else None
    with LargestTensor() as largest:
        value_and_gradients(tiled(name, tile, groups), points, topology, SCALE)
    tiles = side**2 * (topology.m if tile is not None and topology.distance == "geodesic" else 1)
    assert tiles <= largest.numbers <= max(tiles, points[0].numel()) < size**2 // 10


@pytest.mark.parametrize(("name", "tile", "products"), [("info_nce", 16, 4), ("info_nce", 64, 3), ("sigmoid", 16, 3)])
def test_the_number_of_products(name: str, tile: int, products: int) -> None:
    """Forward and backward; ClipLoss makes six. A locked tower saves one; without gradients there is one."""
    topology = parse_topology("sphere(8)")
    x, y = pairs(topology, 64, noise=1.0)
    one = 2 * 64 * 64 * 8
    for locked in (True, False):
        x.requires_grad_(not locked)
        with FlopCounterMode(display=False) as counter:
            LOSSES[name](x, y.requires_grad_(), topology, SCALE, tile=tile).backward()
        assert counter.get_total_flops() == (products - locked) * one
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        LOSSES[name](x, y, topology, SCALE, tile=tile)
    assert counter.get_total_flops() == one


def test_a_tile_below_one_is_refused() -> None:
    topology = parse_topology("sphere(6)")
    with pytest.raises(UserError, match="at least 1"):
        info_nce(*batch(topology), topology, SCALE, tile=0)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_pairs_that_do_not_match_in_number_are_refused(loss: Loss) -> None:
    topology = parse_topology("sphere(6)")
    x, y = batch(topology)
    with pytest.raises(UserError, match="there are 5 images, 3 captions"):
        loss(x, y[:3], topology, SCALE)
    with pytest.raises(UserError, match="5 images, 5 captions, 6 groups"):
        loss(x, y, topology, SCALE, groups=torch.arange(6))


@pytest.mark.parametrize("loss", LOSSES.values())
def test_what_is_no_batch_of_points_is_refused(loss: Loss) -> None:
    """Flat vectors above all, which open_clip's losses take."""
    topology = parse_topology("oblique(3,2)")
    x, y = batch(topology)
    with pytest.raises(UserError, match=r"images must be points \(B, 2, 3\) of oblique\(3,2\), not \(5, 6\)"):
        loss(topology.flat(x), topology.flat(y), topology, SCALE)
    with pytest.raises(UserError, match=r"captions must be points .* not \(5, 3, 2\)"):
        loss(x, y.transpose(1, 2), topology, SCALE)
    with pytest.raises(UserError, match=r"groups must be \(B,\) integers, not \(5, 1\)"):
        loss(x, y, topology, SCALE, groups=torch.zeros(5, 1, dtype=torch.long))
    with pytest.raises(UserError, match="no pairs"):
        loss(x[:0], y[:0], topology, SCALE)


@pytest.mark.parametrize("tile", [None, 2])
def test_second_derivatives_are_refused_rather_than_left_out(tile: int | None) -> None:
    topology = parse_topology("sphere(6)")
    x, y = batch(topology)
    loss = info_nce(x.requires_grad_(), y, topology, SCALE, tile=tile)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(loss, x, create_graph=True)
