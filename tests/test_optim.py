"""Which parameter is moved by what: decay, schedule, clipping, points, and an exact continuation."""

import copy
import io

import geoopt
import pytest
import torch
from conftest import TINY, relative_error
from torch import Tensor, nn

from oblique_clip.config import ModelConfig, OptimConfig
from oblique_clip.model import DualEncoder, create_model
from oblique_clip.optim import Optimizer, _undone_step
from oblique_clip.step import train_step

FORMS = {"clip": "sphere(32)", "sphere": "sphere(32)", "oblique": "oblique(8,4)"}
SAME = 1e-6
"""Two ways to the same float32 number."""
ON_MANIFOLD = 1e-6
EXEMPT_ROLES = {"class token", "position", "norm", "bias", "scale"}


def build(form: str = "oblique", class_tokens: str = "free", topology: str | None = None) -> DualEncoder:
    config = ModelConfig(
        form=form, topology=topology or FORMS[form], class_tokens=class_tokens, embed_dim=32, arch=TINY
    )  # type: ignore[arg-type]  # fmt: skip
    return create_model(config, "sigmoid")


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def backward(model: DualEncoder, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 3, 32, 32, generator=generator)
    ids = torch.randint(1, 4000, (6, 5), generator=generator)
    ids[:, -1] = 4095
    train_step(model, images, ids, None, "sigmoid", "float32")


def role_of(name: str, model: nn.Module) -> str:
    """What a parameter is for, told from the module that owns it."""
    owner, _, attribute = name.rpartition(".")
    if attribute in ("log_scale", "logit_bias", "log_curvature", "log_factor"):
        return "scale"
    if attribute in ("reg_token", "class_tokens", "class_embedding"):
        return "class token"
    if attribute in ("pos_embed", "positional_embedding"):
        return "position"
    if isinstance(model.get_submodule(owner), nn.LayerNorm):
        return "norm"
    return "bias" if attribute.endswith("bias") else "matrix"


@pytest.mark.parametrize("topology", [None, "lorentz(32)"])
@pytest.mark.parametrize("form", FORMS)
def test_decay_shrinks_matrices_and_nothing_else_in_every_form(form: str, topology: str | None) -> None:
    """With gradients of zero, decay is all that moves a parameter."""
    if topology and form == "oblique":
        topology = "oblique(8,4)/geodesic"
    model = build(form, topology=topology)
    optimizer = Optimizer(model, OptimConfig(lr=1e-2, weight_decay=0.1, warmup=0.0), total_steps=10)
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.ones_(parameter)
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    roles = {name: role_of(name, model) for name, _ in model.named_parameters()}
    assert set(roles.values()) == EXEMPT_ROLES | {"matrix"}
    for name, parameter in model.named_parameters():
        expected = 1 - 1e-2 * 0.1 if roles[name] == "matrix" else 1.0
        assert relative_error(parameter, torch.full_like(parameter, expected)) < SAME, name


def test_points_are_moved_by_their_own_learning_rate_and_stay_points() -> None:
    """AdamW never has them: without a learning rate of their own they rest, without one of its own all else rests."""
    for lr, point_lr in ((1e-2, 0.0), (0.0, 1e-2), (1e-2, 1e-2)):
        model = build(class_tokens="oblique")
        before = values(model)
        optimizer = Optimizer(model, OptimConfig(lr=lr, point_lr=point_lr, warmup=0.0), total_steps=50)
        for step in range(10):
            backward(model, step)
            optimizer.step()
        points = {name for name, p in model.named_parameters() if isinstance(p, geoopt.ManifoldParameter)}
        assert points == {"visual.trunk.reg_token", "text.class_tokens"}
        for name, after in values(model).items():
            rate = point_lr if name in points else lr
            assert torch.allclose(after, before[name], rtol=0, atol=SAME) == (rate == 0), name
            if name in points:
                assert ((after.double().norm(dim=-1) - 1).abs() < ON_MANIFOLD).all()


def test_frozen_parameters_rest_and_need_no_gradient() -> None:
    model = build(class_tokens="oblique")
    model.lock_image_tower()
    before = values(model)
    optimizer = Optimizer(model, OptimConfig(lr=1e-2, warmup=0.0), total_steps=10)
    backward(model, 0)
    optimizer.step()
    for name, after in values(model).items():
        assert torch.equal(after, before[name]) == name.startswith("visual."), name


@pytest.mark.parametrize("total, warmup", [(100, 0.1), (37, 0.25), (10, 0.0), (1, 0.1), (3, 1.0)])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(total: int, warmup: float) -> None:
    model = build()
    optimizer = Optimizer(model, OptimConfig(lr=2e-3, warmup=warmup), total)
    rates = []
    for _ in range(total):
        rates.append(optimizer.lr)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    rise = max(1, round(total * warmup))
    assert max(rates) == pytest.approx(2e-3)
    assert rates[:rise] == pytest.approx([2e-3 * (step + 1) / rise for step in range(rise)])
    assert all(later < earlier for earlier, later in zip(rates[rise:], rates[rise + 1 :], strict=False))
    if total > rise:
        middle = rise + (total - rise) // 2
        share = (middle - rise) / (total - rise)
        assert rates[middle] == pytest.approx(2e-3 * (1 + torch.cos(torch.tensor(torch.pi * share)).item()) / 2)
        assert optimizer.lr == pytest.approx(0, abs=1e-12)


def test_clipping_bounds_the_gradient_of_all_parameters_together() -> None:
    """A step with a long gradient is the step with that gradient cut to the bound, points included."""
    clipped, scaled = build(class_tokens="oblique"), build(class_tokens="oblique")
    scaled.load_state_dict(clipped.state_dict())
    one = Optimizer(clipped, OptimConfig(lr=1e-3, warmup=0.0, clip_grad=0.5), total_steps=10)
    other = Optimizer(scaled, OptimConfig(lr=1e-3, warmup=0.0, clip_grad=0.0), total_steps=10)
    for length in (300.0, 0.1, 2.0):
        gradients = {name: torch.randn_like(p) for name, p in clipped.named_parameters()}
        norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
        for model, wanted in ((clipped, length), (scaled, min(length, 0.5))):
            for name, parameter in model.named_parameters():
                parameter.grad = gradients[name] * wanted / norm
        one.step()
        other.step()
    for (name, found), expected in zip(clipped.named_parameters(), scaled.parameters(), strict=True):
        assert relative_error(found, expected) < 10 * SAME, name


def test_the_scale_takes_steps_of_its_own_rate_and_nothing_else_does() -> None:
    """Adam's steps are proportional to the rate: with ten times the rate, log scale goes ten times as far."""
    plain, apart = build(class_tokens="oblique"), build(class_tokens="oblique")
    apart.load_state_dict(plain.state_dict())
    before = values(plain)
    for model, scale_lr in ((plain, None), (apart, 1e-2)):
        optimizer = Optimizer(model, OptimConfig(lr=1e-3, scale_lr=scale_lr, warmup=0.5, clip_grad=0.5), 10)
        generator = torch.Generator().manual_seed(0)
        for _ in range(7):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    for name, expected in values(plain).items():
        found = values(apart)[name]
        if name == "temperature.log_scale":
            moved = [float(value - before[name]) for value in (found, expected)]
            assert moved[0] == pytest.approx(10 * moved[1], rel=1e-3) and abs(moved[1]) > 1e-4
        else:
            assert torch.equal(found, expected), name


@pytest.mark.parametrize(("class_tokens", "scale_lr"), [("free", None), ("oblique", None), ("oblique", 1e-1)])
def test_a_saved_state_continues_identically(class_tokens: str, scale_lr: float | None) -> None:
    def run(model: DualEncoder, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            backward(model, step)
            optimizer.step()

    config = OptimConfig(lr=1e-3, scale_lr=scale_lr, warmup=0.3)
    model = build(class_tokens=class_tokens)
    optimizer = Optimizer(model, config, total_steps=10)
    run(model, optimizer, range(4))
    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    run(model, optimizer, range(4, 8))

    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    again = build(class_tokens=class_tokens)
    again.load_state_dict(state["model"])
    resumed = Optimizer(again, config, total_steps=10)
    resumed.load_state_dict(state["optimizer"])
    run(again, resumed, range(4, 8))
    assert resumed.lr == optimizer.lr
    for (name, found), expected in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_a_step_clears_the_gradient() -> None:
    model = build(class_tokens="oblique")
    optimizer = Optimizer(model, OptimConfig(), total_steps=10)
    twin = copy.deepcopy(model)
    backward(model, 0)
    backward(twin, 0)
    optimizer.step()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in twin.parameters())


@pytest.mark.parametrize("good_steps", [0, 2])
def test_a_step_of_points_is_taken_back_where_it_was_bad(good_steps: int) -> None:
    """As on a GPU, where nobody waits to hear whether it was."""
    generator = torch.Generator().manual_seed(3)
    start = geoopt.Sphere().projx(torch.randn(4, 8, generator=generator))
    pull = torch.randn(4, 8, generator=generator)
    steps = []
    for kind in ("plain", "guarded"):
        point = geoopt.ManifoldParameter(start.clone(), manifold=geoopt.Sphere())
        optimizer = geoopt.optim.RiemannianAdam([point], lr=0.1)
        for _ in range(good_steps):
            point.grad = pull.clone()
            optimizer.step() if kind == "plain" else _undone_step(optimizer, torch.tensor(False))
        before = point.detach().clone()
        if kind == "guarded":
            moments = copy.deepcopy(dict(optimizer.state[point]))
            point.grad = torch.full_like(pull, torch.nan)
            _undone_step(optimizer, torch.tensor(True))
            assert torch.equal(point, before)
            for key, value in optimizer.state[point].items():
                assert torch.equal(value, moments.get(key, torch.zeros_like(value)))
        steps.append(before)
    assert torch.equal(*steps)
