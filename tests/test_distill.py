"""Distillation: the loss against loops, what leaves training alone, and what a teacher must be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, gradients, relative_error
from PIL import Image
from torch import Tensor

from oblique_clip import create_model, load, model_config
from oblique_clip.checkpoint import save_model
from oblique_clip.cli import main
from oblique_clip.config import DataConfig, LossConfig, ModelConfig
from oblique_clip.data.emoji import load_emoji
from oblique_clip.data.images import TrainingPixels
from oblique_clip.distill import SoftTargets, Teacher, divergence, open_teacher
from oblique_clip.loss import LOSSES
from oblique_clip.model import DualEncoder
from oblique_clip.step import train_step
from oblique_clip.tokenizer import get_tokenizer

EXACT, CLOSE = 1e-10, 1e-5
PAIRS = 9
TOPOLOGIES = ("sphere(32)", "oblique(8,4)", "oblique(8,4)/geodesic", "lorentz(32)")


def config(topology: str, **changes: object) -> ModelConfig:
    form = "oblique" if topology.startswith("oblique") else "sphere"
    return model_config("tiny", form, topology=topology, embed_dim=32, arch=replace(TINY, **changes))


def build(topology: str, seed: int = 1, dtype: torch.dtype = torch.float64, **changes: object) -> DualEncoder:
    torch.manual_seed(seed)
    return create_model(config(topology, **changes)).to(dtype)


def teacher_of(model: DualEncoder, temperature: float = 2.0, weight: float = 0.3) -> Teacher:
    loaded = load("tiny-oblique")._replace(model=model.eval().requires_grad_(False))
    return Teacher(loaded, temperature, weight)


def batch(side: int = 32, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(PAIRS, 3, side, side, generator=generator, dtype=dtype)
    ids = torch.randint(1, 4000, (PAIRS, 7), generator=generator)
    ids[:, 6] = 4095
    return images, ids


def by_loops(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T^2 times the mean of the divergences of all rows and all columns, number by number."""
    total = 0.0
    for s, t in ((student, teacher), (student.T, teacher.T)):
        for i in range(len(s)):
            p, q = ([(x / temperature).exp() for x in row] for row in (t[i], s[i]))
            total += sum((a / sum(p) * ((a / sum(p)) / (b / sum(q))).log()).item() for a, b in zip(p, q, strict=True))
    return temperature**2 * total / (2 * len(student))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
def test_the_divergence_is_the_one_of_the_formula(temperature: float) -> None:
    student, teacher = 5 * torch.randn(2, 7, 7, dtype=torch.float64)
    found = divergence(student, teacher, temperature).item()
    assert found == pytest.approx(by_loops(student, teacher, temperature), rel=EXACT)
    # Number by number the other way round it is another number.
    assert abs(found - by_loops(teacher, student, temperature)) > 1e-2


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize("student_topology", TOPOLOGIES)
def test_a_step_minimises_both_losses_of_any_two_topologies(student_topology: str, micro_batch: int | None) -> None:
    """Value and gradients; the teacher is of another topology, and of another size of towers and pictures."""
    (images, ids), weight, temperature = batch(), 0.3, 2.0
    student = build(student_topology)
    other = build("oblique(4,8)", 3, image_size=64, text_width=64)
    teacher, large = teacher_of(other, temperature, weight), batch(64)[0]

    x, y = student.encode_image(images), student.encode_text(ids)
    logits = student.temperature.scale * student.topology.similarity(x, y)
    with torch.no_grad():
        hers = other.temperature.scale * other.topology.similarity(other.encode_image(large), other.encode_text(ids))
    contrastive = LOSSES["info_nce"](x, y, student.topology, student.temperature.scale)
    expected = (1 - weight) * contrastive.item() + weight * by_loops(logits.detach(), hers, temperature)
    slopes = 0.0
    for axis in (0, 1):
        target, found = (hers / temperature).softmax(axis), (logits / temperature).log_softmax(axis)
        slopes = slopes - temperature**2 * (target * found).sum() / (2 * PAIRS)
    ((1 - weight) * contrastive + weight * slopes).backward()
    reference = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}

    student.zero_grad(set_to_none=True)
    soft = teacher.targets(student, large, ids, "float32", micro_batch)
    loss, _, _ = train_step(student, images, ids, None, "info_nce", "float32", micro_batch, soft)
    assert loss.item() == pytest.approx(expected, rel=EXACT)
    whole = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    assert relative_error(whole, torch.cat([slope.flatten() for slope in reference.values()])) < EXACT
    assert all(p.grad is None for p in other.parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    model, (images, ids) = build("oblique(8,4)"), batch()
    soft = teacher_of(build("oblique(8,4)"), weight=1.0).targets(model, images, ids, "float32")
    assert soft.divergence(model.encode_image(images), model.encode_text(ids)).item() == pytest.approx(0, abs=1e-12)
    train_step(model, images, ids, None, "info_nce", "float32", None, soft)
    own = max(float(p.grad.norm()) for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    train_step(model, images, ids, None, "info_nce", "float32")
    plain = max(float(p.grad.norm()) for p in model.parameters() if p.grad is not None)
    assert own < 1e-12 * plain


def test_t_squared_keeps_the_size_of_the_gradient() -> None:
    """Where T is large, the gradient is that of half the squared difference of centred logits, whatever T."""
    student, teacher = torch.randn(2, 6, 6, dtype=torch.float64)
    student.requires_grad_()
    warm, hot = (gradients(divergence(student, teacher, t)[None], student)[0] for t in (1e3, 1e4))
    assert relative_error(warm, hot) < 1e-2 and float(hot.norm()) > 1e-2


SMALL = ["--vision-width", "32", "--vision-layers", "1", "--text-width", "32", "--text-layers", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures of the shipped set with their names, as a CSV."""
    folder = tmp_path_factory.mktemp("pairs")
    emoji = load_emoji().of_families(("emoji-twemoji",))
    lines = ["image,caption"]
    for row, record in enumerate(emoji.records[:16]):
        Image.fromarray(emoji.pixels[emoji.rows[row]]).save(folder / f"{row}.png")
        lines.append(f'{row}.png,"{record.caption}"')
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder / "pairs.csv"


def run(table: Path, out: Path, *args: str, steps: int = 3) -> list[dict[str, float]]:
    """The lines of a short run's metrics.jsonl that have a loss."""
    sizes = ["--steps", str(steps), "--batch-size", "16", "--log-every", "1", "--device", "cpu", "--out", str(out)]
    assert main(["train", "--data", str(table), *SMALL, *sizes, *args]) == 0
    return [line for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in line]


def mean(lines: list[dict[str, float]], name: str) -> float:
    return sum(line[name] for line in lines) / len(lines)


def test_a_short_run_comes_closer_to_its_teacher_than_one_that_only_watches_it(table: Path, tmp_path: Path) -> None:
    """From a shipped sphere to an oblique student; beside it one of weight 0, which must be plain training."""
    args = ["--distill-from", "tiny-sphere", "--lr", "3e-3"]
    taught = run(table, tmp_path / "taught", *args, "--distill-weight", "1", steps=40)
    watching = run(table, tmp_path / "watching", *args, "--distill-weight", "0", steps=40)
    plain = run(table, tmp_path / "plain", "--lr", "3e-3", steps=40)
    assert taught[0]["divergence"] == watching[0]["divergence"]
    assert mean(taught[-5:], "divergence") < 0.8 * taught[0]["divergence"]
    assert mean(taught[-5:], "divergence") < mean(watching[-5:], "divergence")
    assert [line["loss"] for line in watching] == [line["loss"] for line in plain]
    same, other = (load(tmp_path / name).model.state_dict() for name in ("watching", "plain"))
    assert all(value.equal(other[name]) for name, value in same.items())
    assert "divergence" not in plain[0]
    saved = json.loads((tmp_path / "taught" / "config.json").read_text())["loss"]
    assert (saved["distill_from"], saved["distill_weight"], saved["distill_temperature"]) == ("tiny-sphere", 1.0, 2.0)


def test_a_teacher_of_larger_pictures_sees_the_same_views(table: Path, tmp_path: Path) -> None:
    """A teacher from a checkpoint, its weights unchanged by the run; micro-batches change nothing."""
    settings = config("sphere(32)", image_size=64, context_length=32)
    path = tmp_path / "teacher.safetensors"
    save_model(create_model(settings), settings, path)
    before = path.read_bytes()
    whole = run(table, tmp_path / "whole", "--distill-from", str(path))
    parts = run(table, tmp_path / "parts", "--distill-from", str(path), "--micro-batch", "5")
    for name in ("loss", "divergence"):
        assert [line[name] for line in parts] == pytest.approx([line[name] for line in whole], rel=CLOSE)
    assert path.read_bytes() == before


def test_files_are_read_large_enough_for_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        Image.new("RGB", (200, 200), (0, 60 * i, 0)).save(tmp_path / f"{i}.png")
    lines = ["image,caption", *(f"{i}.png,board {i}" for i in range(4))]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    settings = config("sphere(32)", image_size=96, context_length=32)
    save_model(create_model(settings), settings, tmp_path / "teacher.safetensors")
    sides: list[int] = []
    targets = Teacher.targets

    def watched(self: Teacher, student: DualEncoder, images: TrainingPixels, *args: Any) -> SoftTargets:
        sides.append(images.squares.shape[-1])
        return targets(self, student, images, *args)

    monkeypatch.setattr(Teacher, "targets", watched)
    args = ["--distill-from", str(tmp_path / "teacher.safetensors"), "--batch-size", "4"]
    run(tmp_path / "pairs.csv", tmp_path / "run", *args, steps=1)
    assert sides and min(sides) >= 96


TRAIN = ["train", "--steps", "1", "--device", "cpu"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--distill-from", "nowhere"], "no such checkpoint or run folder: nowhere"),
        (
            ["--distill-from", "tiny-sphere", "--context-length", "16"],
            "this teacher reads --tokenizer tiny --context-length 32, the student tiny and 16",
        ),
        (["--distill-from", "tiny-sphere", "--tokenizer", "clip"], "the student clip and 32"),
        (
            ["--distill-from", "tiny-sphere", "--test-families", "emoji-noto"],
            "trained on emoji-noto, which the run is judged by",
        ),
        (["--distill-from", "tiny-sphere", "--held-out-concepts", "val"], "trained on val, which"),
        (["--distill-from", "tiny-sphere", "--distill-weight", "1.5"], "--distill-weight must lie in [0, 1]"),
        (["--distill-from", "tiny-sphere", "--distill-temperature", "0"], "--distill-temperature must lie in (0, inf)"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line_and_status_2(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--out", str(tmp_path / "run"), *args]) == 2
    found = capsys.readouterr().err
    assert found.count("\n") == 1 and message in found
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_frozen_and_reads_what_the_student_reads() -> None:
    loss = LossConfig(distill_from="tiny-oblique", distill_temperature=3.0, distill_weight=0.25)
    teacher = open_teacher(loss, DataConfig(), get_tokenizer("tiny", 32))
    assert teacher is not None and (teacher.temperature, teacher.weight) == (3.0, 0.25)
    assert not teacher.loaded.model.training
    assert not any(p.requires_grad for p in teacher.loaded.model.parameters())
    assert open_teacher(LossConfig(), DataConfig(), get_tokenizer("tiny", 32)) is None
    # Pairs of one's own are new to a teacher of the shipped set.
    assert open_teacher(loss, DataConfig(data="pairs.csv"), get_tokenizer("tiny", 32)) is not None
