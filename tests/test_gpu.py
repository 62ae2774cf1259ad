"""On a CUDA GPU, where there is one: the numbers of the CPU, and steps that never wait for the device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import TINY, relative_error
from torch import Tensor

from oblique_clip import create_model, model_config
from oblique_clip.config import OptimConfig
from oblique_clip.evaluate.retrieval import retrieval
from oblique_clip.loss import info_nce
from oblique_clip.model import DualEncoder
from oblique_clip.optim import Optimizer
from oblique_clip.step import train_step
from oblique_clip.topology import parse_topology

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")
GPU = torch.device("cuda")
SAME = 1e-4
"""Float32 on two devices, without TensorFloat-32."""


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def build(form: str = "oblique", **changes: object) -> DualEncoder:
    torch.manual_seed(1)
    topology = "oblique(8,4)" if form == "oblique" else "sphere(32)"
    return create_model(model_config("tiny", form, topology=topology, embed_dim=32, arch=TINY, **changes))  # type: ignore[arg-type]


def batch(pairs: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images, ids = (
        torch.randn(pairs, 3, 32, 32, generator=generator),
        torch.randint(1, 4000, (pairs, 7), generator=generator),
    )
    ids[: pairs // 2, 4:] = 0
    return images, ids


def gradient(model: DualEncoder) -> Tensor:
    return torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("micro_batch", [None, 5])
@pytest.mark.parametrize("form", ["clip", "sphere", "oblique"])
def test_a_step_is_that_of_the_cpu(form: str, micro_batch: int | None) -> None:
    """Captions are packed on the CPU and padded on the GPU."""
    images, ids = batch()
    steps = []
    for device in (torch.device("cpu"), GPU):
        model = build(form).to(device)
        loss, _, _ = train_step(model, images.to(device), ids, None, "info_nce", "float32", micro_batch)
        steps.append((loss.cpu(), gradient(model)))
    (loss, own), (other_loss, other) = steps
    assert relative_error(other_loss, loss) < SAME
    assert relative_error(other, own) < SAME


@pytest.mark.parametrize("spec", ["sphere(32)", "oblique(8,4)/geodesic", "lorentz(32)"])
def test_tiles_are_the_whole(spec: str) -> None:
    topology = parse_topology(spec).to(GPU)
    points = [topology.project(torch.randn(50, topology.m, topology.n, device=GPU)) for _ in range(2)]
    whole, tiled = (info_nce(*points, topology, 2.0, tile=tile) for tile in (50, 7))
    assert relative_error(tiled, whole) < SAME


@pytest.mark.parametrize("class_tokens", ["free", "oblique"])
def test_a_step_waits_for_nothing(class_tokens: str) -> None:
    model = build(class_tokens=class_tokens).to(GPU).train()
    optimizer = Optimizer(model, OptimConfig(lr=1e-3), total_steps=10)
    images, ids = batch()
    images, ids = images.to(GPU), ids.pin_memory()
    for turn in range(2):
        # What is allocated once, in the first step, may wait.
        torch.cuda.set_sync_debug_mode("error" if turn else "default")
        try:
            train_step(model, images, ids, None, "info_nce", "bf16")
            optimizer.step()
            model.temperature.update(0.5)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_points_may_stay_on_the_gpu_for_retrieval() -> None:
    topology = parse_topology("oblique(8,4)")
    points = [topology.project(torch.randn(20, 4, 8)) for _ in range(2)]
    matches = torch.arange(20)[:, None].expand(-1, 2)
    assert retrieval(*(part.to(GPU) for part in points), matches, topology) == pytest.approx(
        retrieval(*points, matches, topology)
    )
