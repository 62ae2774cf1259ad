"""geoopt's optimisers on the oblique manifold: they arrive, stay on it, and keep its rows apart."""

from collections.abc import Callable

import geoopt
import pytest
import torch
from torch import Tensor

from oblique_clip.manifold import Oblique, normalize_rows, row_angle

STEPS = 2000
ON_MANIFOLD = 1e-6
ARRIVED = {torch.float32: 1e-3, torch.float64: 1e-5}
"""Largest angle of a row from the optimum, in radians; float32 costs are flat within their rounding."""
NEAR_KINK = 0.2
"""Twice the longest step: at a kink the gradient keeps its length, so constant steps hop about it."""
SAME_PATH = 1e-10

Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "adam": lambda p: geoopt.optim.RiemannianAdam(p, lr=1e-2),
    "amsgrad, stabilised": lambda p: geoopt.optim.RiemannianAdam(p, lr=1e-2, amsgrad=True, stabilize=10),
    "sgd": lambda p: geoopt.optim.RiemannianSGD(p, lr=1e-1),
    "sgd with momentum": lambda p: geoopt.optim.RiemannianSGD(p, lr=2e-2, momentum=0.9),
}


def minimise(optimizer: Optimizer, start: Tensor, cost: Callable[[Tensor], Tensor], steps: int = STEPS) -> Tensor:
    x = geoopt.ManifoldParameter(start.clone(), manifold=Oblique())
    optim = optimizer([x])
    for _ in range(steps):
        optim.zero_grad()
        cost(x).backward()
        optim.step()
    return x.detach()


def assert_on_manifold(x: Tensor) -> None:
    assert ((x.double().norm(dim=-1) - 1).abs() < ON_MANIFOLD).all()


def spectra(m: int, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Symmetric matrices (m, n, n) with eigenvalues 1, 1/2, 1/3, ..., and their dominant eigenvectors."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(m, n, n, generator=generator, dtype=torch.float64)).Q
    eigenvalues = 1 / torch.arange(1, n + 1, dtype=torch.float64)
    return (basis * eigenvalues @ basis.mT).to(dtype), basis[..., 0].to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_every_row_finds_the_dominant_eigenvector_of_its_matrix(optimizer: Optimizer, dtype: torch.dtype) -> None:
    matrices, dominant = spectra(4, 8, dtype)
    start = Oblique().random(4, 8, dtype=dtype, generator=torch.Generator().manual_seed(5))

    def cost(x: Tensor) -> Tensor:
        return -torch.einsum("ia,iab,ib->", x, matrices, x)

    x = minimise(optimizer, start, cost)
    angle = row_angle(x, dominant)
    assert torch.minimum(angle, torch.pi - angle).max() < ARRIVED[dtype]  # an eigenvector has no sign
    assert_on_manifold(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_linear_cost_ends_at_the_normalised_rows_of_its_matrix(optimizer: Optimizer, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(11)
    matrix = torch.randn(2, 4, 8, dtype=dtype, generator=generator)
    start = Oblique().random(2, 4, 8, dtype=dtype, generator=generator)
    x = minimise(optimizer, start, lambda x: -(matrix * x).sum())
    assert row_angle(x, normalize_rows(matrix)).max() < ARRIVED[dtype]
    assert_on_manifold(x)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_the_kink_of_a_distance_at_its_optimum_does_no_harm(optimizer: Optimizer) -> None:
    target = Oblique().random(4, 8, generator=torch.Generator().manual_seed(2))
    x = minimise(optimizer, target, lambda x: Oblique().dist(x, target), steps=200)
    assert_on_manifold(x)
    assert row_angle(x, target).max() < NEAR_KINK


def test_adam_moves_each_row_as_if_it_were_alone_on_a_sphere() -> None:
    matrices, _ = spectra(3, 6, torch.float64)
    loudness = torch.tensor([1e-4, 1.0, 1e4], dtype=torch.float64)
    start = Oblique().random(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    together = minimise(
        OPTIMIZERS["adam"],
        start,
        lambda x: torch.einsum("i,ia,iab,ib->", loudness, x, matrices, x),
        steps=100,
    )
    for i in range(3):
        alone = geoopt.ManifoldParameter(start[i].clone(), manifold=geoopt.Sphere())
        optim = OPTIMIZERS["adam"]([alone])
        for _ in range(100):
            optim.zero_grad()
            (loudness[i] * alone @ matrices[i] @ alone).backward()
            optim.step()
        assert (together[i] - alone.detach()).norm() < SAME_PATH


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_can_be_optimised(half: torch.dtype) -> None:
    matrix = torch.randn(4, 8, generator=torch.Generator().manual_seed(4))
    start = Oblique().random(4, 8, generator=torch.Generator().manual_seed(6)).to(half)
    x = minimise(OPTIMIZERS["sgd"], start, lambda x: -(matrix * x).sum(), steps=200)
    rounding = torch.finfo(half).eps
    assert ((x.float().norm(dim=-1) - 1).abs() < rounding).all()
    assert row_angle(x, normalize_rows(matrix)).max() < 10 * rounding
