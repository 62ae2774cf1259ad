"""What training says aloud: steps that are not finite move nothing, points stay points, and a sick model is told of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import geoopt
import pytest
import torch
from torch import Tensor, nn

from oblique_clip import create_model, load, model_config, optim, parse_topology
from oblique_clip.config import Architecture, DataConfig, OptimConfig, TrainConfig
from oblique_clip.errors import UserError
from oblique_clip.health import BadSteps, collapsed, point_names, settle_points, spheres
from oblique_clip.model import DualEncoder
from oblique_clip.optim import Optimizer
from oblique_clip.train import train

SMALL = Architecture(patch_size=16, vision_width=32, vision_layers=1, text_width=32, text_layers=1)
FEW = DataConfig(test_families=("emoji-fxemoji",), val_families=(), held_out_concepts=())


def build(**changes: object) -> DualEncoder:
    torch.manual_seed(0)
    return create_model(model_config("tiny", "oblique", arch=SMALL, class_tokens="oblique", **changes))


def give_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def everything(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {**{name: p.detach().clone() for name, p in model.named_parameters()}, **optimizer.state_dict()["moments"]}


@pytest.mark.parametrize("on_the_device", [False, True])
@pytest.mark.parametrize("clip_grad", [0.0, 1.0])
@pytest.mark.parametrize("where", ["gradient nan", "gradient inf", "loss"])
def test_a_step_that_is_not_finite_moves_nothing(
    where: str, clip_grad: float, on_the_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither parameters nor moments, be it told on the CPU or, as on a GPU, without waiting for it."""
    if on_the_device:
        monkeypatch.setattr(optim, "_costs_to_ask", lambda device: True)
    model = build()
    optimizer = Optimizer(model, OptimConfig(lr=1e-2, warmup=0.0, clip_grad=clip_grad), total_steps=10)
    give_gradients(model, 0)
    assert not optimizer.step(torch.tensor(1.0))
    before = {name: value.clone() for name, value in everything(model, optimizer).items()}
    give_gradients(model, 1)
    if where != "loss":
        grad = model.visual.projection.weight.grad
        assert grad is not None
        grad[0, 0, 0] = float(where.split()[1])
    assert optimizer.step(torch.tensor(float("nan") if where == "loss" else 1.0))
    after = everything(model, optimizer)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    give_gradients(model, 2)
    assert not optimizer.step(torch.tensor(1.0))
    assert not torch.equal(everything(model, optimizer)["text.class_tokens"], before["text.class_tokens"])


def test_bad_steps_are_counted_and_those_in_a_row_end_a_run() -> None:
    bad = BadSteps(limit=3)
    for step, flag in enumerate([True, True, False, True, True, True, False], 1):
        bad.watch(step, (str(step),), torch.tensor(flag))
        if step == 5:
            assert [found.step for found in bad.settle()] == [1, 2, 4, 5] and not bad.exhausted
    assert [found.keys for found in bad.settle()] == [("6",)]
    assert bad.count == 5 and bad.row == [] and bad.exhausted == [4, 5, 6], "a good step behind does not undo it"
    assert BadSteps(limit=3, count=5, row=[8, 9]).settle() == []
    again = BadSteps(limit=3, count=2, row=[8, 9])
    again.watch(10, (), torch.tensor(True))
    again.settle()
    assert again.exhausted == [8, 9, 10], "a row goes on where a run does"


def config(out: Path, **optim: Any) -> TrainConfig:
    settings = OptimConfig(**{"steps": 6, "batch_size": 16, "lr": 1e-3, **optim})
    model = model_config("tiny", "oblique", arch=SMALL)
    return TrainConfig(model, FEW, optim=settings, out=out, device="cpu", threads=1, log_every=1, log="")


def poisoned(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """The images of some steps become infinite."""
    from oblique_clip import loop

    original, seen = loop.train_step, [0]

    def step(model: DualEncoder, images: Any, *args: Any, **options: Any) -> Any:
        seen[0] += 1
        if seen[0] in steps:
            images = images[0 : len(images)] * float("inf")
        return original(model, images, *args, **options)

    monkeypatch.setattr(loop, "train_step", step)


def test_a_run_skips_bad_steps_and_names_their_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, {2, 4})
    result = train(config(tmp_path / "run"), quiet=True)
    assert result["bad_steps"] == 2 and result["loss"] == pytest.approx(2.77, abs=0.5)
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad_steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(len(line["keys"]) == 16 and all(":" in key or "/" in key for key in line["keys"]) for line in lines)
    assert all(value.isfinite().all() for value in load(tmp_path / "run").model.state_dict().values())


def test_a_run_that_diverges_ends_and_can_be_come_to_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is that before the first bad step: gone on with, it does the same; with other images, it ends well."""
    with monkeypatch.context() as patch:
        poisoned(patch, {3, 4})
        with pytest.raises(UserError, match="not finite in 2 steps in a row, from step 3: the run diverged"):
            train(config(tmp_path / "run", max_bad_steps=2), quiet=True)
    assert not (tmp_path / "run" / "result.json").exists()
    with monkeypatch.context() as patch:
        # From the state of step 1, the newest before them.
        poisoned(patch, {2, 3})
        with pytest.raises(UserError, match="from step 3: the run diverged"):
            train(config(tmp_path / "run", max_bad_steps=2), quiet=True, resume=True)
    train(config(tmp_path / "run", max_bad_steps=2), quiet=True, resume=True)
    train(config(tmp_path / "well"), quiet=True)
    one, other = (load(tmp_path / name).model.state_dict() for name in ("run", "well"))
    assert all(torch.equal(one[name], value) for name, value in other.items())


def test_points_that_left_their_manifold_are_put_back_and_lost_ones_are_told_of() -> None:
    model = build()
    names = point_names(model)
    assert set(names) == {"visual.trunk.reg_token", "text.class_tokens"}
    within = settle_points(model, names, "here")
    assert within < 1e-6
    before = model.text.class_tokens.detach().clone()
    model.text.class_tokens.data *= 1.5
    assert settle_points(model, names, "here") > 0.01
    assert torch.allclose(model.text.class_tokens, before, atol=1e-6)
    assigned = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(assigned, assign=True)
    assert not isinstance(model.text.class_tokens, geoopt.ManifoldParameter)
    with pytest.raises(UserError, match=r"step 7: .* is no point of a manifold any more"):
        settle_points(model, names, "step 7")


def test_an_average_of_weights_is_the_running_average_and_stays_on_the_manifold(tmp_path: Path) -> None:
    from oblique_clip.loop import Loop

    seen: list[dict[str, Tensor]] = []
    original = Loop._note

    def noted(loop: Loop, batch: Any) -> None:
        seen.append({name: value.clone() for name, value in loop.model.state_dict().items()})
        original(loop, batch)

    made = config(tmp_path / "run", ema=0.5, lr=1e-2)
    made = replace(made, model=replace(made.model, class_tokens="oblique"), eval_every=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_note", noted)
        train(made, quiet=True)
    # AveragedModel begins with the weights of the first step.
    expected = seen[0]
    for weights in seen[1:]:
        expected = {name: 0.5 * expected[name] + 0.5 * value for name, value in weights.items()}
    found = load(tmp_path / "run" / "checkpoints" / "last.safetensors").model
    for name, value in found.state_dict().items():
        points = name in point_names(found)
        wanted = found.text.class_tokens.manifold.projx(expected[name]) if points else expected[name]
        assert torch.allclose(value, wanted, atol=1e-6), name


def test_a_collapsed_batch_is_told_from_one_that_is_not() -> None:
    for spec in ("sphere(8)", "oblique(4,2)", "euclidean(8)", "lorentz(8)"):
        topology = parse_topology(spec)
        features = torch.randn(16, topology.m, topology.n)
        apart = topology.project(features)
        assert not collapsed(topology.similarity(apart, apart), topology)
        same = topology.project(features[:1].expand(16, -1, -1) + 1e-6 * features)
        assert "collapsed" in collapsed(topology.similarity(same, same), topology)["collapse"]


def test_dead_and_duplicate_spheres_are_named_and_others_are_not() -> None:
    topology = parse_topology("oblique(8,5)")
    points = topology.project(torch.randn(64, 5, 8))
    assert spheres(points, topology) == {}
    points[:, 3] = points[:, 1]
    assert spheres(points, topology) == {"duplicate spheres": "of 5 spheres some tell the same as another: 1 and 3"}
    points[:, 3] = points[0, 3]
    points[:, 4] = points[0, 4]
    assert spheres(points, topology) == {"dead spheres": "all pictures are one point on sphere 3, 4 of 5"}
    assert spheres(parse_topology("sphere(8)").project(torch.ones(9, 1, 8)), parse_topology("sphere(8)")) == {}


def test_a_scale_at_its_clamp_and_a_run_no_better_than_chance_are_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run too short to learn anything, whose scale may not move."""
    made = config(tmp_path / "run", steps=8, lr=1e-6)
    temperature = replace(made.model.temperature, max_scale=0.1)
    data = replace(FEW, val_families=("emoji-fxemoji",), test_families=("emoji-fluent",))
    result = train(replace(made, model=replace(made.model, temperature=temperature), data=data), quiet=True)
    kinds = [warning.split(" ")[:4] for warning in result["warnings"]]
    assert ["the", "scale", "has", "stood"] in kinds and ["validation", "is", "no", "better"] in kinds
    said = capsys.readouterr().err
    assert all(said.count(warning) == 1 for warning in result["warnings"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["warning"] for line in lines if "warning" in line] == result["warnings"]
