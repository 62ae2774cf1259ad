"""Class tokens beyond one a sphere: how many are read, what they share, and tokens that nobody reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from oblique_clip import UserError, create_model, model_config
from oblique_clip.config import Architecture, ModelConfig
from oblique_clip.model import DualEncoder
from oblique_clip.step import train_step

ARCH = Architecture(vision_width=32, vision_layers=2, vision_heads=2, text_width=32, text_layers=2, text_heads=2)
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
# Of all weights of tiny-oblique at seed 0, before there were these options.
SUM = 2683.9059053
IDS = torch.tensor([[5, 9, 4095, 0], [7, 4095, 0, 0], [3, 4, 8, 4095], [11, 4095, 0, 0]])


def config(form: Any = "oblique", **changes: Any) -> ModelConfig:
    return model_config("tiny", form, arch=ARCH, **changes)


def build(form: Any = "oblique", **changes: Any) -> DualEncoder:
    torch.manual_seed(0)
    return create_model(config(form, **changes)).eval()


def encode(model: DualEncoder, normalize: bool = True) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model.encode_image(IMAGES, normalize), model.encode_text(IDS, normalize)


@pytest.mark.parametrize(
    "topology", ["sphere(128)", "oblique(16,8)", "oblique(64,2)", "euclidean(128)", "lorentz(128)"]
)
def test_each_of_t_tokens_gives_its_own_part_of_the_numbers(topology: str) -> None:
    """Features are the tokens' numbers one behind the other, whatever rows the topology cuts them into."""
    model = build(topology=topology, tokens=4)
    before = [features.flatten(1) for features in encode(model, normalize=False)]
    for tower in (model.visual, model.text):
        tower.projection.weight.data[2] = 0
    for old, new in zip(before, encode(model, normalize=False), strict=True):
        changed = (old != new.flatten(1)).any(0)
        assert changed.nonzero().flatten().tolist() == list(range(64, 96))


def test_one_norm_over_many_tokens_is_one_unit_vector() -> None:
    for points in encode(build(topology="sphere(128)", tokens=8)):
        assert points.shape[1:] == (1, 128)
        torch.testing.assert_close(points.norm(dim=-1), torch.ones(4, 1))


def test_one_token_named_is_one_token_reshaped() -> None:
    for one, other in zip(
        encode(build(projection="reshaped", tokens=1)), encode(build(projection="reshaped")), strict=True
    ):
        assert torch.equal(one, other)


def test_registers_are_attended_to_and_trained_but_never_read() -> None:
    plain, model = build("sphere"), build("sphere", registers=3)
    model.visual.projection.weight.data = plain.visual.projection.weight.data
    assert model.visual.num_tokens == model.text.num_tokens == 1
    with torch.no_grad():
        before = model.visual(IMAGES), model.text(IDS)
        for registers in (model.visual.trunk.reg_token, model.text.class_tokens):
            registers[1:] = registers[1:].flip(-1)
        after = model.visual(IMAGES), model.text(IDS)
    for old, new in zip(before, after, strict=True):
        assert old.shape == (4, 1, 128) and not torch.allclose(old, new, atol=1e-4)
    train_step(model, IMAGES, IDS, None, "info_nce", "float32")
    for registers in (model.visual.trunk.reg_token, model.text.class_tokens):
        assert registers.grad is not None and (registers.grad.abs().sum(-1) > 0).all()


def test_padding_stays_unseen_behind_registers() -> None:
    model = build(registers=2, token_positions=False)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(IDS[1:2]), model.encode_text(IDS[1:2, :2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("positions, equal", [(True, False), (False, True)])
def test_tokens_that_start_together_are_told_apart_by_their_positions_alone(positions: bool, equal: bool) -> None:
    model = build(token_start="together", token_positions=positions)
    with torch.no_grad():
        tokens = model.visual.tokens(IMAGES)
    spread = (tokens - tokens[:, :1]).abs().amax()
    assert (spread < 1e-5) == equal
    # The text tower has no such look inside: with one projection for all, equal tokens give equal rows.
    model.text.projection.weight.data[:] = model.text.projection.weight.data[0]
    with torch.no_grad():
        rows = model.text(IDS)
    assert bool((rows - rows[:, :1]).abs().amax() < 1e-5) == equal


def test_tokens_that_start_apart_need_no_positions() -> None:
    model = build(token_positions=False)
    with torch.no_grad():
        tokens = model.visual.tokens(IMAGES)
    assert (tokens[:, 0] - tokens[:, 1]).abs().amax() > 0.1
    assert model.text.positional_embedding.shape[0] == ARCH.context_length


def test_defaults_draw_what_was_always_drawn() -> None:
    """A run of old settings begins as it did before there were these options."""
    torch.manual_seed(0)
    model = create_model(model_config("tiny", "oblique"))
    total = sum(parameter.double().sum().item() for parameter in model.parameters())
    assert total == pytest.approx(SUM, abs=1e-3)


@pytest.mark.parametrize(
    "form, changes, said",
    [
        ("sphere", {"tokens": 8}, "one class token"),
        ("oblique", {"tokens": 3}, "does not divide"),
        ("oblique", {"tokens": 8, "projection": "reshaped"}, "reads one class token"),
        ("oblique", {"tokens": 1}, "--projection reshaped"),
        ("clip", {"registers": 2}, "no registers"),
        ("clip", {"token_positions": False}, "no registers, and one start and position"),
    ],
)
def test_what_no_tower_can_do_is_said(form: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        create_model(config(form, **changes))


def test_a_convnet_has_no_registers() -> None:
    arch = replace(ARCH, timm_name="test_resnet", image_size=64)
    with pytest.raises(UserError, match="pools a feature map"):
        create_model(model_config("tiny", "oblique", arch=arch, registers=1))
