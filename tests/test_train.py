"""Training: what a seed fixes, what is recorded, and that every kind of model learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import geoopt
import numpy as np
import pytest
import torch
from conftest import LargestTensor

from oblique_clip import create_model, load, model_config
from oblique_clip.ablate import AblateConfig, ablate
from oblique_clip.checkpoint import save_model
from oblique_clip.config import Architecture, DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from oblique_clip.data.batches import MapBatches
from oblique_clip.data.emoji import load_emoji
from oblique_clip.data.splits import EmojiPairs
from oblique_clip.errors import UserError
from oblique_clip.evaluate import tasks
from oblique_clip.evaluate.tasks import HeldOut
from oblique_clip.loop import similarity_figures
from oblique_clip.model import preprocess_of
from oblique_clip.optim import Optimizer
from oblique_clip.step import train_step
from oblique_clip.tokenizer import get_tokenizer
from oblique_clip.train import train

SMALL = Architecture(patch_size=16, vision_width=32, vision_layers=1, text_width=32, text_layers=1)
# Few pictures and names, so that a validation takes a fraction of a second.
FEW = DataConfig(test_families=("emoji-fxemoji",), val_families=(), held_out_concepts=())


def small(form: str = "oblique", **changes: object) -> ModelConfig:
    return model_config("tiny", form, arch=SMALL, **changes)


def losses(out: Path) -> list[float]:
    return [
        line["loss"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ]


def config(out: Path, model: ModelConfig, steps: int = 6, data: DataConfig = FEW, **changes: object) -> TrainConfig:
    optim = OptimConfig(steps=steps, batch_size=32, lr=3e-3)
    return replace(TrainConfig(model, data, optim=optim, out=out, device="cpu", threads=1, log_every=1), **changes)


def test_a_seed_fixes_every_number_and_another_changes_them(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(config(tmp_path / name, small(), seed=seed), quiet=True)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")
    first, second = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ab")
    assert first["evaluation"] == second["evaluation"] and first["seed"] == 0
    # Without a validation family the best checkpoint is the last.
    assert first["evaluation"] == first["last_evaluation"]


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (small("clip"), LossConfig()),
        (small("sphere"), LossConfig()),
        (small(projection="shared"), LossConfig(positives="caption")),
        (small(projection="reshaped", topology="oblique(16,8)/chordal"), LossConfig()),
        (small(class_tokens="oblique"), LossConfig()),
        (small(topology="oblique(16,8)/geodesic"), LossConfig(loss="sigmoid")),
        (small("sphere", topology="euclidean(128)"), LossConfig()),
        (small("sphere", topology="lorentz(128)"), LossConfig()),
    ],
    ids=["clip", "sphere", "shared", "reshaped", "points", "sigmoid", "euclidean", "lorentz"],
)
def test_every_kind_of_model_learns(model: ModelConfig, loss: LossConfig) -> None:
    """Sixty steps on one batch of sixteen pairs take at least half of the loss away."""
    pairs = EmojiPairs(load_emoji().of_families(("emoji-twemoji",)), "name")
    tokenizer = get_tokenizer("tiny", SMALL.context_length)
    batch = next(iter(MapBatches(pairs, tokenizer, 16, seed=0).batches()))
    encoder = create_model(model, loss.loss)
    optimizer = Optimizer(encoder, OptimConfig(lr=3e-3, warmup=0.0), total_steps=60)
    images = preprocess_of(encoder).batch(batch.squares)
    groups = batch.groups if loss.positives == "caption" else None
    curve = []
    for _ in range(60):
        curve.append(train_step(encoder, images, batch.ids, groups, loss.loss, "float32")[0].item())
        optimizer.step()
    assert curve[-1] < curve[0] / 2


def test_similarities_are_averaged_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model(small())
    images, texts = model.topology.project(torch.randn(2, 10, 8, 16, dtype=torch.float64))
    dense = model.topology.similarity(images, texts)
    others = dense[~torch.eye(10, dtype=torch.bool)].mean()
    expected = {"positive": dense.diagonal().mean().item(), "negative": others.item()}
    expected["margin"] = expected["positive"] - expected["negative"]
    for held in (1, 40, 100, 1024):
        monkeypatch.setattr("oblique_clip.loop.HELD", held)
        assert similarity_figures(model, images, texts) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("spec", ["oblique(2,8)", "oblique(2,8)/geodesic"])
def test_logging_holds_no_more_than_a_tile_of_similarities(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model(small(topology=spec, embed_dim=16))
    images, texts = model.topology.project(torch.randn(2, 256, 8, 2))
    monkeypatch.setattr("oblique_clip.loop.HELD", 8192)
    with LargestTensor() as largest:
        similarity_figures(model, images, texts)
    assert largest.numbers <= max(8192, images.numel())


def test_the_pixel_floor_of_a_run_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    counted = tasks.pixel_neighbour
    monkeypatch.setattr(tasks, "pixel_neighbour", lambda *args: calls.append(1) or counted(*args))
    result = train(config(tmp_path, small(), steps=1), quiet=True)
    floors = [result[name]["family"]["pixel_floor"] for name in ("evaluation", "last_evaluation")]
    assert len(calls) == 1 and floors[0] == floors[1]


def test_class_tokens_that_are_points_move_and_stay_points(tmp_path: Path) -> None:
    train(config(tmp_path, small(class_tokens="oblique"), steps=20), quiet=True)
    model, _, _ = load(tmp_path)
    for token in (model.visual.trunk.reg_token, model.text.class_tokens):
        assert isinstance(token, geoopt.ManifoldParameter)
        assert (token.norm(dim=-1) - 1).abs().max() < 1e-6


def test_noise_is_recorded_and_moves_the_share_asked_for(tmp_path: Path) -> None:
    train(config(tmp_path, small(), steps=1, data=replace(FEW, caption_noise=0.3)), quiet=True)
    rows = np.load(tmp_path / "caption_rows.npy")
    assert sorted(rows) == list(range(len(rows)))
    assert (rows != np.arange(len(rows))).sum() == round(0.3 * len(rows))


def test_a_loaded_checkpoint_gives_the_points_of_the_trained_model(tmp_path: Path) -> None:
    train(config(tmp_path, small(), steps=2), quiet=True)
    best, _, tokenizer = load(tmp_path)
    again, _, _ = load(tmp_path / "checkpoints" / "last.safetensors")
    ids = tokenizer(["red apple", "dog"])
    assert best.encode_text(ids).equal(again.encode_text(ids))
    save_model(best, small(), tmp_path / "half.safetensors", half=True)
    half, _, _ = load(tmp_path / "half.safetensors")
    difference = (half.encode_text(ids) - best.encode_text(ids)).norm() / best.encode_text(ids).norm()
    assert difference < 2e-3
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (
        tmp_path / "checkpoints/last.safetensors"
    ).stat().st_size


def test_points_off_their_manifold_are_refused(tmp_path: Path) -> None:
    model = create_model(small(class_tokens="oblique"))
    model.text.class_tokens.data *= 1.1
    save_model(model, small(class_tokens="oblique"), tmp_path / "off.safetensors")
    with pytest.raises(UserError, match=r"class_tokens is off its manifold"):
        load(tmp_path / "off.safetensors")


def test_ablate_keeps_finished_runs_and_refuses_those_of_another_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = AblateConfig(
        forms=("sphere",), data=FEW, optim=OptimConfig(steps=1, batch_size=16), out=tmp_path, device="cpu", threads=1
    )
    first = ablate(arguments)
    page = (tmp_path / "report.html").read_text()
    assert "data:image/webp" in page and "sphere(128)" in page
    # The page is drawn anew whenever it is asked for; once is enough here.
    monkeypatch.setattr("oblique_clip.ablate.write_page", lambda out, *runs, **options: out / "report.html")
    before = (tmp_path / "sphere" / "result.json").stat().st_mtime_ns
    assert ablate(arguments)["runs"] == first["runs"]
    # A run of before a setting existed has it at its default.
    saved = tmp_path / "sphere" / "config.json"
    older = json.loads(saved.read_text())
    del older["optim"]["micro_batch"]
    saved.write_text(json.dumps(older))
    assert ablate(arguments)["runs"] == first["runs"]
    assert (tmp_path / "sphere" / "result.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds a run of another optim"):
        ablate(replace(arguments, optim=OptimConfig(steps=2, batch_size=16)))


def test_a_trial_is_chosen_and_calibrated_without_a_look_at_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked(*_: object) -> None:
        raise AssertionError("the test was looked at")

    monkeypatch.setattr(HeldOut, "pixel_ranks", property(looked))
    monkeypatch.setattr(HeldOut, "concepts", property(looked))
    data = DataConfig(val_families=("emoji-fxemoji",))
    result = train(config(tmp_path, small(), steps=2, data=data, test=False), quiet=True)
    assert result["evaluation"] == result["last_evaluation"] == {}
    assert result["best"]["step"] in (1, 2)
    assert load(tmp_path).model.temperature.calibrated is not None
