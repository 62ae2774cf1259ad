"""Micro-batches: the loss and gradients of the whole batch, in the memory of a part of it."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, relative_error
from torch import Tensor, nn

from oblique_clip import create_model, model_config
from oblique_clip.cli import main
from oblique_clip.config import Architecture
from oblique_clip.data.images import Augmentation, TrainingPixels
from oblique_clip.loss import LOSSES
from oblique_clip.model import DualEncoder, preprocess_of
from oblique_clip.step import train_step

PAIRS = 10
SIZES = (1, 4, 5, 9)
"""Of micro-batches; two of them do not divide the batch, which leaves a single pair at the end."""
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
BF16 = 2e-2
"""A few roundings of bfloat16."""
TOPOLOGIES = {
    "clip": ("clip", "sphere(32)"),
    "sphere": ("sphere", "sphere(32)"),
    "oblique": ("oblique", "oblique(8,4)"),
    "geodesic": ("oblique", "oblique(8,4)/geodesic"),
    "lorentz": ("sphere", "lorentz(32)"),
}

Batch = tuple[Tensor, Tensor, Tensor]


def build(
    kind: str, loss: str = "info_nce", dtype: torch.dtype = torch.float32, arch: Architecture = TINY
) -> DualEncoder:
    form, topology = TOPOLOGIES[kind]
    torch.manual_seed(1)
    return create_model(model_config("tiny", form, topology=topology, embed_dim=32, arch=arch), loss).to(dtype)


def make_batch(pairs: int = PAIRS, dtype: torch.dtype = torch.float32) -> Batch:
    """Pictures, captions of two to seven tokens that grow with the row, and groups of two rows."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(pairs, 3, 32, 32, generator=generator, dtype=dtype)
    ids = torch.randint(1, 4000, (pairs, 7), generator=generator)
    ends = 1 + torch.arange(pairs) * 6 // pairs
    ids[torch.arange(pairs), ends] = 4095
    ids[torch.arange(7) > ends[:, None]] = 0
    return images, ids, torch.arange(pairs) // 2


def gradients(model: DualEncoder) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step(
    model: DualEncoder, batch: Batch, loss: str, micro_batch: int | None, grouped: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    model.zero_grad(set_to_none=True)
    images, ids, groups = batch
    return train_step(model, images, ids, groups if grouped else None, loss, "float32", micro_batch)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    whole, reference = (torch.cat([g.flatten() for g in side.values()]) for side in (found, expected))
    assert relative_error(whole, reference) < tolerance


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("grouped", [False, True], ids=["", "groups"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", TOPOLOGIES)
def test_loss_points_and_gradients_are_those_of_the_whole_batch(
    kind: str, loss: str, grouped: bool, checkpointing: bool
) -> None:
    model, batch, tolerance = build(kind, loss), make_batch(), TOLERANCE[torch.float32]
    whole = step(model, batch, loss, None, grouped)
    expected = gradients(model)
    model.set_grad_checkpointing(checkpointing)
    for size in SIZES:
        parts = step(model, batch, loss, size, grouped)
        assert all(relative_error(found, reference) < tolerance for found, reference in zip(parts, whole, strict=True))
        assert_same(gradients(model), expected, tolerance)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", TOPOLOGIES)
def test_every_parameter_gets_its_whole_gradient_in_float64(kind: str, loss: str) -> None:
    """Also curvature and factor of the hyperboloid, which work before the points and behind them."""
    tolerance = TOLERANCE[torch.float64]
    model, batch = build(kind, loss, torch.float64), make_batch(dtype=torch.float64)
    step(model, batch, loss, None)
    expected = gradients(model)
    longest = max(float(gradient.norm()) for gradient in expected.values())
    step(model, batch, loss, 4)
    for name, found in gradients(model).items():
        error = float((found - expected[name]).norm())
        assert error <= tolerance * max(float(expected[name].norm()), 1e-6 * longest), name


def test_gradients_add_to_those_that_are_there() -> None:
    model, batch = build("oblique"), make_batch()
    for _ in range(2):
        train_step(model, batch[0], batch[1], None, "info_nce", "float32", 4)
    twice = gradients(model)
    step(model, batch, "info_nce", None)
    assert_same(twice, {name: 2 * g for name, g in gradients(model).items()}, TOLERANCE[torch.float32])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_random_layers_draw_the_same_both_times(checkpointing: bool) -> None:
    """A graph of all micro-batches at once, each encoded a single time from the same seed, is the reference."""
    model, (images, ids, _) = build("oblique", arch=replace(TINY, patch_dropout=0.5)), make_batch()
    for layer in (model.visual.trunk.blocks[0].mlp, model.visual.projection, model.text.ln_final):
        layer.register_forward_hook(lambda layer, inputs, output: F.dropout(output, 0.3))
    model.set_grad_checkpointing(checkpointing)
    torch.manual_seed(3)
    image_points = torch.cat([model.encode_image(part) for part in images.split(4)])
    text_points = torch.cat([model.encode_text(part[:, part.any(0)]) for part in ids.split(4)])
    LOSSES["info_nce"](image_points, text_points, model.topology, model.temperature.scale).backward()
    expected, drawn_next = gradients(model), torch.rand(())

    torch.manual_seed(3)
    _, again, _ = step(model, (images, ids, ids), "info_nce", 4)
    assert torch.rand(()) == drawn_next
    assert relative_error(again, image_points) < TOLERANCE[torch.float32]
    assert_same(gradients(model), expected, TOLERANCE[torch.float32])


def test_both_runs_of_a_tower_take_autocast() -> None:
    model, (images, ids, _) = build("oblique"), make_batch()
    seen: list[tuple[bool, torch.dtype]] = []
    for layer in (model.visual.projection, model.text.projection):
        layer.register_forward_hook(lambda _, __, out: seen.append((torch.is_grad_enabled(), out.dtype)))
    _, image_points, _ = train_step(model, images, ids, None, "info_nce", "bf16", 4)
    assert image_points.dtype == torch.float32
    assert seen == [(False, torch.bfloat16)] * 6 + [(True, torch.bfloat16)] * 6


def test_in_bfloat16_the_second_run_gives_the_points_of_the_first() -> None:
    """Gradients are those at the points that the loss has seen, and both are the whole batch's up to rounding."""
    model, (images, ids, _) = build("oblique"), make_batch()
    seen: dict[bool, list[Tensor]] = {False: [], True: []}
    model.visual.register_forward_hook(lambda _, __, out: seen[torch.is_grad_enabled()].append(out.detach()))
    train_step(model, images, ids, None, "info_nce", "bf16", 4)
    parts = gradients(model)
    assert all(torch.equal(*pair) for pair in zip(seen[False], seen[True], strict=True))
    model.zero_grad(set_to_none=True)
    train_step(model, images, ids, None, "info_nce", "bf16")
    assert_same(parts, gradients(model), BF16)


def test_a_frozen_tower_stays_without_gradient() -> None:
    model, batch = build("oblique"), make_batch()
    model.lock_image_tower()
    step(model, batch, "info_nce", None)
    expected = gradients(model)
    assert not any(name.startswith("visual.") for name in expected)
    runs: list[int] = []
    model.visual.register_forward_hook(lambda *_: runs.append(1))
    step(model, batch, "info_nce", 3)
    assert_same(gradients(model), expected, TOLERANCE[torch.float32])
    assert len(runs) == -(-len(batch[0]) // 3), "a frozen tower has no second run"


def test_pixels_are_made_for_one_micro_batch_at_a_time() -> None:
    class Watched(TrainingPixels):
        sizes: ClassVar[list[int]] = []

        def __getitem__(self, part: slice) -> Tensor:
            pixels = super().__getitem__(part)
            self.sizes.append(len(pixels))
            return pixels

    model, (images, ids, _) = build("oblique"), make_batch()
    squares = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = Augmentation.draw(len(images), seed=0)
    pixels = Watched(squares, preprocess_of(model), torch.device("cpu"), draws)
    step(model, (pixels[: len(images)], ids, ids), "info_nce", 4)
    expected = gradients(model)
    Watched.sizes.clear()
    model.zero_grad(set_to_none=True)
    train_step(model, pixels, ids, None, "info_nce", "float32", 4)
    assert_same(gradients(model), expected, TOLERANCE[torch.float32])
    assert max(Watched.sizes) == 4


class Ledger(torch.autograd.graph.saved_tensors_hooks):
    """Bytes that autograd keeps for the backward pass, parameters left out: now, and at most so far."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes = self.peak = 0
        self._own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        super().__init__(self._pack, lambda box: box[0])

    def __enter__(self) -> Ledger:
        super().__enter__()
        return self

    class _Box(list[Tensor]):
        """A tensor in something that can be watched for its end."""

        __hash__ = object.__hash__

    def _pack(self, tensor: Tensor) -> _Box:
        box = self._Box([tensor])
        if tensor.untyped_storage().data_ptr() not in self._own:
            self._count(tensor.nbytes)
            weakref.finalize(box, self._count, -tensor.nbytes)
        return box

    def _count(self, change: int) -> None:
        self.bytes += change
        self.peak = max(self.peak, self.bytes)


def test_the_graph_in_memory_is_that_of_one_micro_batch() -> None:
    model, batch = build("oblique"), make_batch(64)

    def peak(pairs: int, micro_batch: int | None) -> int:
        with Ledger(model) as ledger:
            step(model, tuple(part[:pairs] for part in batch), "info_nce", micro_batch)
        assert ledger.bytes == 0
        return ledger.peak

    whole, part = peak(64, None), peak(8, None)
    assert whole > 6 * part
    assert peak(64, 8) <= part


SMALL = ["--vision-width", "32", "--vision-layers", "1", "--text-width", "32", "--text-layers", "1", "--threads", "1"]


def run(out: Path, *args: str) -> list[float]:
    """Losses of three steps on the shipped set, of which little is held out, so that the end comes soon."""
    data = ["--test-families", "emoji-fxemoji", "--val-families", "--held-out-concepts"]
    sizes = ["--steps", "3", "--batch-size", "16", "--log-every", "1", "--device", "cpu", "--out", str(out)]
    assert main(["train", *SMALL, *data, *sizes, *args]) == 0
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_a_run_by_micro_batches_has_the_losses_of_the_run_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[tuple[int, bool]] = []
    encode = DualEncoder.encode_image

    def watched(model: DualEncoder, images: Tensor) -> Tensor:
        if model.training:
            encoded.append((len(images), model.visual.trunk.grad_checkpointing))
        return encode(model, images)

    monkeypatch.setattr(DualEncoder, "encode_image", watched)
    whole = run(tmp_path / "whole")
    assert encoded == 3 * [(16, False)]
    encoded.clear()
    assert run(tmp_path / "parts", "--micro-batch", "5", "--grad-checkpointing") == pytest.approx(whole, rel=1e-5)
    assert encoded == 3 * 2 * [(5, True), (5, True), (5, True), (1, True)]


@pytest.mark.parametrize("size", ["0", "-4"])
def test_a_micro_batch_that_is_none_is_one_line_and_status_2(
    size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--micro-batch", size, "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "--micro-batch" in message
    assert not (tmp_path / "run").exists()
