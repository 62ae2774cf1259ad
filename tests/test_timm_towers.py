"""timm's own weights in towers of m tokens, and towers of what has no tokens: against timm's models themselves."""

import dataclasses
from pathlib import Path

import pytest
import timm
import torch
from conftest import TINY, gradients, relative_error
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from oblique_clip.checkpoint import load, save_model
from oblique_clip.config import Architecture, ModelConfig
from oblique_clip.convnet import ConvTower
from oblique_clip.errors import UserError
from oblique_clip.model import create_model
from oblique_clip.optim import is_decayed
from oblique_clip.pretrained import SPREAD
from oblique_clip.towers import ImageTower, make_image_tower

N, M = 8, 4

WITH_CLASS_TOKEN = {
    "vit_tiny_patch16_224": 0,
    "vit_base_patch16_clip_224": 0,
    "deit3_small_patch16_224": 0,
    "vit_small_patch14_dinov2": 0,
    "vit_small_patch14_reg4_dinov2": 4,
    "eva02_tiny_patch14_224": 0,
    "vit_small_patch16_dinov3": 4,
}
"""Registers of timm's own layout, by model."""
WITHOUT = {"vit_base_patch16_siglip_224": 0, "vit_betwixt_patch16_reg4_gap_256": 4}
CONVNETS = ("test_resnet", "test_convnext")

SAME = 1e-12
"""Two ways to the same numbers, in float64."""
SAME_FLOAT32 = 1e-5
SAMPLED = 0.5
"""Relative error of a length estimated from the 32 numbers of a token."""
APART = 1e-3


def arch_of(name: str, pretrained: Path | None = None, **changes: object) -> Architecture:
    given = {"timm_name": name, "pretrained": None if pretrained is None else str(pretrained), **changes}
    return dataclasses.replace(TINY, **given)  # type: ignore[arg-type]


def timms_own(name: str, image_size: int = 32) -> nn.Module:
    """A timm model in its own layout, at the sizes of `TINY`, every parameter drawn at random."""
    own: nn.Module = timm.create_model(
        name, img_size=image_size, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=0
    )
    for parameter in own.parameters():
        nn.init.normal_(parameter, std=0.3)
    return own.eval()


def saved(own: nn.Module, folder: Path, suffix: str = "pt") -> Path:
    path = folder / f"own.{suffix}"
    weights = own.state_dict()
    save_file(weights, path) if suffix == "safetensors" else torch.save(weights, path)
    return path


def images(count: int = 3, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, dtype=torch.float64)


@pytest.mark.parametrize("name", WITH_CLASS_TOKEN)
def test_one_token_gives_timms_own_class_token(name: str, tmp_path: Path) -> None:
    """So every part has found its place: one class token has nothing to be set apart from."""
    own = timms_own(name)
    tower = ImageTower(arch_of(name, saved(own, tmp_path)), N, 1).double().eval()
    batch = images()
    features = own.double().forward_features(batch)[:, 0]
    expected = own.fc_norm(features) if isinstance(own.norm, nn.Identity) else features
    assert relative_error(tower.tokens(batch).squeeze(1), expected) < SAME


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("name", [*WITH_CLASS_TOKEN, *WITHOUT])
def test_patches_keep_their_positions_row_by_row(name: str, suffix: str, tmp_path: Path) -> None:
    own = timms_own(name)
    tower = ImageTower(arch_of(name, saved(own, tmp_path, suffix)), N, M)
    registers = {**WITH_CLASS_TOKEN, **WITHOUT}[name]
    assert tower.trunk.num_prefix_tokens == M + registers == len(tower.trunk.reg_token)
    if own.pos_embed is None:
        assert tower.trunk.pos_embed is None
        return
    before, after = own.pos_embed[0], tower.trunk.pos_embed[0]
    patches = len(after) - M - registers
    assert patches == 4
    for patch in range(patches):
        assert torch.equal(after[M + registers + patch], before[len(before) - patches + patch]), patch


@pytest.mark.parametrize("name", WITH_CLASS_TOKEN)
def test_a_class_token_is_copied_and_set_apart(name: str, tmp_path: Path) -> None:
    own = timms_own(name)
    arch = arch_of(name, saved(own, tmp_path))
    torch.manual_seed(1)
    trunk = ImageTower(arch, N, M).trunk
    token, tokens = own.cls_token[0, 0], trunk.reg_token[:M]
    positioned = own.pos_embed is not None and not own.no_embed_class
    length = (token + own.pos_embed[0, 0]).norm() if positioned else token.norm()
    for row in tokens:
        assert ((row - token).norm() / length).item() == pytest.approx(SPREAD, rel=SAMPLED)
    assert min(relative_error(tokens[i], tokens[j]) for i in range(M) for j in range(i)) > SPREAD / 2
    if own.reg_token is not None:
        assert torch.equal(trunk.reg_token[M:], own.reg_token[0])
    if own.pos_embed is not None:
        expected = own.pos_embed[0, :1].expand(M, -1) if positioned else torch.zeros(M, 32)
        assert torch.equal(trunk.pos_embed[0, :M], expected)
    torch.manual_seed(1)
    assert torch.equal(ImageTower(arch, N, M).trunk.reg_token, trunk.reg_token)


@pytest.mark.parametrize("name", WITHOUT)
def test_tokens_that_timm_lacks_are_drawn_anew(name: str, tmp_path: Path) -> None:
    """As without weights, and with all the others: the last norm may have stood behind the pooling."""
    own = timms_own(name)
    torch.manual_seed(1)
    trunk = ImageTower(arch_of(name, saved(own, tmp_path)), N, M).trunk
    torch.manual_seed(1)
    fresh = ImageTower(arch_of(name), N, M).trunk
    assert relative_error(trunk.reg_token[:M].norm(dim=1), fresh.reg_token.norm(dim=1)) < SAMPLED
    assert (trunk.pos_embed[0, :M] != 0).all()
    last = own.fc_norm if isinstance(own.norm, nn.Identity) else own.norm
    assert torch.equal(trunk.norm.weight, last.weight)
    for ours, theirs in zip(trunk.blocks.parameters(), own.blocks.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "eva02_tiny_patch14_224"])
def test_another_resolution_resizes_positions_as_timm_does(name: str, tmp_path: Path) -> None:
    own = timms_own(name, image_size=64)
    prefix = 0 if own.no_embed_class else 1
    trunk = ImageTower(arch_of(name, saved(own, tmp_path)), N, M).trunk
    expected = resample_abs_pos_embed(own.pos_embed, [2, 2], [4, 4], num_prefix_tokens=prefix)
    assert relative_error(trunk.pos_embed[0, M:], expected[0, prefix:]) < SAME_FLOAT32
    assert relative_error(trunk.pos_embed[0, M:], own.pos_embed[0, prefix : prefix + 4]) > APART


def test_a_run_that_started_from_weights_loads_without_them(tmp_path: Path) -> None:
    own = timms_own("vit_tiny_patch16_224")
    path = saved(own, tmp_path)
    config = ModelConfig(
        topology=f"oblique({N},{M})", embed_dim=N * M, arch=arch_of("vit_small_patch14_reg4_dinov2", None)
    )
    started = dataclasses.replace(config, arch=arch_of("vit_tiny_patch16_224", path))
    model = create_model(started)
    save_model(model, started, tmp_path / "model.safetensors")
    path.unlink()
    again = load(tmp_path / "model.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    trained_on = timm.get_pretrained_cfg("vit_tiny_patch16_224")
    assert again.preprocess.mean == model.visual.image_mean == trained_on.mean
    assert again.preprocess.std == trained_on.std
    assert create_model(config).visual.image_mean != trained_on.mean


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "no such file"),
        (b"damaged", "is no .pt or .safetensors file"),
        ({"weight": torch.zeros(2)}, "no ViT in timm's own layout"),
        ({"patch_embed.proj.weight": "text"}, "no state dict"),
        ([torch.zeros(2)], "no state dict"),
        (
            {"pos_embed": torch.zeros(2), "patch_embed.proj.weight": torch.zeros(2)},
            "a layout that timm knows.*--timm-name",
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_that_cannot_be_read_are_named(content: object, words: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        if suffix == "safetensors":
            pytest.skip("safetensors holds tensors alone")
        torch.save(content, path)
    with pytest.raises(UserError, match=words) as caught:
        ImageTower(arch_of("vit_tiny_patch16_224", path), N, M)
    assert str(path) in str(caught.value)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    own = timms_own("vit_tiny_patch16_224")
    weights = own.state_dict()
    path = tmp_path / "weights.pt"

    def refused(match: str, changed: dict[str, Tensor], **changes: object) -> None:
        torch.save(changed, path)
        with pytest.raises(UserError, match=match):
            ImageTower(arch_of("vit_tiny_patch16_224", path, **changes), N, M)

    refused("lacks 'cls_token'", {k: v for k, v in weights.items() if k != "cls_token"})
    refused("has 'reg_token'", {**weights, "reg_token": torch.zeros(1, 4, 32)})
    refused("another shape of 'pos_embed'", {**weights, "pos_embed": weights["pos_embed"][..., :16]})
    refused("lacks 'blocks.1.mlp.fc2.bias'", {k: v for k, v in weights.items() if k != "blocks.1.mlp.fc2.bias"})
    refused("unknown there 'blocks.0.attn.q_norm.weight'", {**weights, "blocks.0.attn.q_norm.weight": torch.ones(16)})
    refused("another shape of 'blocks.0.mlp.fc1.bias'", {**weights, "blocks.0.mlp.fc1.bias": torch.ones(64)})
    refused("add --vision-width 32 --vision-layers 2$", weights, vision_width=64)
    refused("add --vision-width 32 --vision-layers 2$", weights, vision_layers=3)
    native = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=0).state_dict()
    refused("--vision-width 192 --vision-layers 1 --vision-heads 3", native)
    refused("192 wide with 3 heads", native, vision_width=192, vision_layers=1, vision_heads=4)


def test_what_cannot_start_from_weights_says_why(tmp_path: Path) -> None:
    path = saved(timms_own("vit_tiny_patch16_224"), tmp_path)
    with pytest.raises(UserError, match="take --class-tokens free"):
        ImageTower(arch_of("vit_tiny_patch16_224", path), N, M, class_tokens="oblique")
    config = ModelConfig(form="clip", topology="sphere(32)", embed_dim=32, arch=arch_of("vit_tiny_patch16_224", path))
    with pytest.raises(UserError, match="open_clip's own model"):
        create_model(config)
    untrained = dataclasses.replace(TINY, pretrained="timm", timm_name="vit_small_patch16_36x1_224")
    with pytest.raises(UserError, match="--vision-width 384 --vision-heads 6"):
        ImageTower(untrained, N, M)
    with pytest.raises(UserError, match="timm has no pretrained weights for 'vit_small_patch16_36x1_224'"):
        ImageTower(dataclasses.replace(untrained, vision_width=384, vision_heads=6, vision_layers=1), N, M)


def conv_tower(name: str = "test_resnet", **options: object) -> ConvTower:
    tower = make_image_tower(arch_of(name, image_size=64), N, M, **options)  # type: ignore[arg-type]
    assert isinstance(tower, ConvTower)
    return tower.double().eval()


@pytest.mark.parametrize("name", CONVNETS)
def test_each_query_of_a_convnet_is_a_pool_of_its_own(name: str) -> None:
    """Token by token, attention pooling written out over the net's own feature map."""
    tower, batch = conv_tower(name), images(size=64)
    pool = tower.pool
    places = tower.norm(tower.trunk(batch).flatten(2).transpose(1, 2)) + pool.pos_embed
    keys, values = pool.kv(places).unflatten(-1, (2, pool.num_heads, -1)).unbind(2)
    for index in range(M):
        query = pool.q(pool.latent[index]).unflatten(-1, (pool.num_heads, -1))
        shares = ((keys * query).sum(-1) / query.shape[-1] ** 0.5).softmax(1)
        mixed = pool.proj((shares[..., None] * values).sum(1).flatten(1))
        token = mixed + pool.mlp(pool.norm(mixed))
        assert relative_error(tower(batch)[:, index], token @ tower.projection.weight[index]) < SAME


@pytest.mark.parametrize("class_tokens", ["free", "oblique"])
@pytest.mark.parametrize("name", CONVNETS)
def test_a_convnet_trains_all_its_parameters_with_queries_apart(name: str, class_tokens: str) -> None:
    tower = conv_tower(name, class_tokens=class_tokens, projection="shared").train()
    for part in tower.trunk.modules():
        if isinstance(part, nn.BatchNorm2d):  # timm starts the last of a residual branch at zero
            nn.init.ones_(part.weight)
    features = tower(images(size=64))
    for (parameter, _), gradient in zip(
        tower.named_parameters(), gradients(features, *tower.parameters()), strict=True
    ):
        assert gradient.abs().max() > 0, parameter
    apart = [relative_error(features[:, i], features[:, j]) for i in range(M) for j in range(i)]
    assert min(apart) > 0.05
    assert not any(is_decayed(f"visual.{name}", p) for name, p in tower.pool.named_parameters(recurse=False))
    tower.lock(1)
    assert {name for name, p in tower.named_parameters() if p.requires_grad} == {"projection.weight"}


@pytest.mark.parametrize("still", [False, True])
def test_statistics_of_a_frozen_convnet_move_unless_they_are_frozen_too(still: bool) -> None:
    tower = conv_tower("test_resnet").train()
    tower.lock(2, freeze_bn_stats=still)
    before = {name: value.clone() for name, value in tower.trunk.named_buffers()}
    tower.eval().train()
    tower(images(size=64))
    moved = {name for name, value in tower.trunk.named_buffers() if not torch.equal(value, before[name])}
    assert moved == (set() if still else set(before))
    assert tower.pool.training


def test_a_convnet_starts_from_its_own_weights(tmp_path: Path) -> None:
    own = timm.create_model("test_resnet", num_classes=5).eval()
    for parameter in own.parameters():
        nn.init.normal_(parameter, std=0.3)
    arch = arch_of("test_resnet", saved(own, tmp_path), image_size=64)
    tower = ConvTower(arch, N, M).eval()
    batch = images(size=64).float()
    assert relative_error(tower.trunk(batch), own.forward_features(batch)) < SAME_FLOAT32
    assert tower.image_mean == timm.get_pretrained_cfg("test_resnet").mean
    fresh = ConvTower(arch, N, M, weights=False).eval()
    assert relative_error(fresh.trunk(batch), own.forward_features(batch)) > APART


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("swin_tiny_patch4_window7_224", {"image_size": 64}, "neither class tokens to read"),
        ("xcit_nano_12_p16_224", {"image_size": 64}, "no feature map"),
        ("test_resnet", {"image_size": 32}, "raise --image-size"),
        ("test_resnet", {"image_size": 64, "patch_dropout": 0.5}, "leave --patch-dropout at 0"),
        ("resnet_of_nobody", {}, "timm has no model"),
    ],
)
def test_what_has_neither_tokens_nor_a_map_is_refused_by_name(name: str, changes: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        make_image_tower(arch_of(name, None, **changes), N, M)
    assert name in str(caught.value)
