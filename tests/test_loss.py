"""The two losses, against open_clip's, against loops over plain numbers, and by their symmetries."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from conftest import relative_error
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

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


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("loss", LOSSES.values())
def test_gradients_are_the_derivatives(loss: Loss, spec: str, groups: list[int] | None) -> None:
    topology = parse_topology(spec).double()
    features = torch.randn(2, 3, topology.m, topology.n, dtype=torch.float64)
    labels = as_groups(groups)
    chosen = None if labels is None else labels[:3]

    def of_features(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return loss(topology.project(x), topology.project(y), topology, scale, bias=bias, groups=chosen)

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


@pytest.mark.parametrize("groups", [None, [0, 1, 0, 2, 1]])
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_in_float32_under_autocast(name: str, groups: list[int] | None) -> None:
    topology = parse_topology("oblique(3,2)")
    x, y = batch(topology, torch.float32)
    plain = LOSSES[name](x, y, topology, SCALE, groups=as_groups(groups))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LOSSES[name](x, y, topology, SCALE, groups=as_groups(groups)), plain)


@pytest.mark.parametrize("tile", [1, 2, 3, BATCH])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_tiles_change_no_number(loss: Loss, spec: str, groups: list[int] | None, tile: int) -> None:
    """Value and every gradient (points, scale, bias, curvature) equal the dense loss, whatever the tile."""
    topology = parse_topology(spec).double()
    points = [point.requires_grad_() for point in batch(topology)]
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (SCALE, BIAS))
    # Only Lorentz has parameters; of its two, the lift's factor acts before the points given here.
    inputs = [*points, scale, bias, *(p for name, p in topology.named_parameters() if name == "log_curvature")]
    dense = loss(*points, topology, scale, bias=bias, groups=as_groups(groups))
    tiled = loss(*points, topology, scale, bias=bias, groups=as_groups(groups), tile=tile)
    assert relative_error(tiled, dense) < FLOAT64
    for found, expected in zip(torch.autograd.grad(tiled, inputs), torch.autograd.grad(dense, inputs), strict=True):
        # A bias cancels in InfoNCE: its gradient is rounding in both.
        assert relative_error(found, expected) < 1e-9 or (found - expected).abs().max() < FLOAT64


def test_a_tile_below_one_is_refused() -> None:
    topology = parse_topology("sphere(6)")
    with pytest.raises(UserError, match="at least 1"):
        info_nce(*batch(topology), topology, SCALE, tile=0)
