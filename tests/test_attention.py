"""What a token looks at: against a softmax written out, in laws of sums and permutations, and in the drawing."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, relative_error
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rc_context
from matplotlib.image import imread
from PIL import Image
from torch import Tensor, nn

from oblique_clip.attention import rolled_out, token_attention
from oblique_clip.blocks import attentions, first_places, run_blocks
from oblique_clip.checkpoint import load, save_model
from oblique_clip.cli import main
from oblique_clip.config import Architecture, ModelConfig
from oblique_clip.errors import UserError
from oblique_clip.explain import SIDE, draw, sphere_shares
from oblique_clip.interop.surgery import to_oblique
from oblique_clip.model import DualEncoder, create_model
from oblique_clip.topology import parse_topology

N, M = 8, 4
FOUR_BY_FOUR = dataclasses.replace(TINY, patch_size=8)

SAME = 1e-12
"""Two ways to the same numbers, in float64."""
SAME_FLOAT32 = 1e-5
CHANGED = 1e-3


def config_of(form: str = "oblique", arch: Architecture = FOUR_BY_FOUR, **changes: object) -> ModelConfig:
    topology = f"oblique({N},{M})" if form == "oblique" else f"sphere({N * M})"
    given = {"form": form, "topology": topology, "embed_dim": N * M, "arch": arch, **changes}
    return ModelConfig(**given)  # type: ignore[arg-type]


def model_of(form: str = "oblique", arch: Architecture = FOUR_BY_FOUR, **changes: object) -> DualEncoder:
    """A model whose attention is far from even."""
    model = create_model(config_of(form, arch, **changes))
    for name, parameter in model.visual.named_parameters():
        if "attn" in name and parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


def images(count: int = 3, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, dtype=torch.float64)


def written_out(model: DualEncoder, batch: Tensor) -> list[Tensor]:
    """Of each block, softmax(q k / sqrt(d)) head by head from timm's or open_clip's own parts: (heads, B, L, L)."""
    x, found = model.visual.embed(batch), []
    for block in model.visual.blocks:
        timms = hasattr(block.attn, "qkv")
        weight, bias = (
            (block.attn.qkv.weight, block.attn.qkv.bias)
            if timms
            else (block.attn.in_proj_weight, block.attn.in_proj_bias)
        )
        normed = block.norm1(x) if timms else block.ln_1(x)
        q, k, _ = (normed @ w.T + b for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True))
        wide = q.shape[-1] // block.attn.num_heads
        heads = [slice(start, start + wide) for start in range(0, q.shape[-1], wide)]
        scores = torch.stack([q[..., head] @ k[..., head].mT for head in heads])
        found.append((scores / wide**0.5).softmax(-1))
        x = block(x)
    return found


@pytest.mark.parametrize("form", ["oblique", "clip"])
def test_a_map_is_the_softmax_of_the_last_block_read_at_its_tokens(form: str) -> None:
    model, batch = model_of(form), images()
    tokens = M if form == "oblique" else 1
    expected = written_out(model, batch)[-1].mean(0)[:, :tokens, tokens:].reshape(3, tokens, 4, 4)
    found = model.token_attention(batch)
    assert relative_error(found, expected) < SAME
    assert torch.equal(found, token_attention(model, batch))


def test_tokens_that_share_the_attention_of_one_draw_no_more_than_one() -> None:
    """A tower whose m tokens are copies of one, in shared attention, has that one's map, m times."""
    one = model_of(topology=f"oblique({N * M},1)")
    shared = model_of(arch=dataclasses.replace(FOUR_BY_FOUR, shared_attention=True), projection="shared")
    weights = {name: value for name, value in one.visual.state_dict().items() if name.startswith("trunk.")}
    pos_embed = weights["trunk.pos_embed"]
    weights["trunk.reg_token"] = weights["trunk.reg_token"].expand(M, -1)
    if pos_embed.shape[1] == 1 + 16:
        weights["trunk.pos_embed"] = torch.cat([pos_embed[:, :1].expand(1, M, -1), pos_embed[:, 1:]], 1)
    found = shared.visual.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys
    batch = images()
    for rollout in (False, True):
        expected = one.token_attention(batch, rollout).expand(-1, M, -1, -1)
        assert relative_error(shared.token_attention(batch, rollout), expected) < SAME


@pytest.mark.parametrize("form", ["sphere", "clip"])
def test_after_surgery_without_noise_every_token_has_the_map_of_the_one_before(form: str) -> None:
    one, batch = model_of(form), images()
    cut = to_oblique(one, N, M, spread=0.0)
    for rollout in (False, True):
        expected = one.token_attention(batch, rollout).expand(-1, M, -1, -1)
        assert relative_error(cut.token_attention(batch, rollout), expected) < SAME


def test_a_shared_attention_under_autocast_is_that_in_full_precision_rounded() -> None:
    """The keys' share of one is added in the precision that the blocks run in."""
    cut, batch = to_oblique(model_of("clip").float(), N, M), images().float()
    expected = cut.encode_image(batch, normalize=False)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context, torch.autocast("cpu", torch.bfloat16):
            found = cut.encode_image(batch, normalize=False)
        assert relative_error(found, expected) < 0.03


@pytest.mark.parametrize("form", ["oblique", "clip"])
def test_rollout_is_the_product_over_blocks(form: str) -> None:
    model, batch = model_of(form), images()
    tokens = M if form == "oblique" else 1
    steps = [(shares.mean(0) + torch.eye(shares.shape[-1])) / 2 for shares in written_out(model, batch)]
    expected = (steps[1] @ steps[0])[:, :tokens, tokens:].reshape(3, tokens, 4, 4)
    assert relative_error(model.token_attention(batch, rollout=True), expected) < SAME
    assert relative_error(model.token_attention(batch, rollout=True), model.token_attention(batch)) > CHANGED


def test_rollout_of_one_block_is_half_its_attention_and_half_the_identity() -> None:
    model, batch = model_of(arch=dataclasses.replace(FOUR_BY_FOUR, vision_layers=1)), images()
    (shares,) = written_out(model, batch)
    assert relative_error(rolled_out([shares.transpose(0, 1)]), (shares.mean(0) + torch.eye(M + 16)) / 2) < SAME
    assert relative_error(model.token_attention(batch, rollout=True), model.token_attention(batch) / 2) < SAME


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3))
def test_rows_of_a_rollout_sum_to_one(blocks: int, places: int, heads: int) -> None:
    maps = [torch.randn(2, heads, places, places, dtype=torch.float64).softmax(-1) for _ in range(blocks)]
    assert relative_error(rolled_out(maps).sum(-1), torch.ones(2, places)) < SAME


@pytest.mark.parametrize("rollout", [False, True])
def test_a_map_sums_to_what_the_prefix_tokens_leave(rollout: bool) -> None:
    model, batch = model_of(), images()
    maps = model.token_attention(batch, rollout)
    assert (maps >= 0).all()
    left = rolled_out(attentions(model.visual.blocks, model.visual.embed(batch)))[:, :M, :M].sum(-1)
    if not rollout:
        left = written_out(model, batch)[-1].mean(0)[:, :M, :M].sum(-1)
    assert (left > 0).all()
    assert relative_error(maps.sum((2, 3)), 1 - left) < SAME


@pytest.mark.parametrize("form", ["oblique", "clip"])
def test_the_blocks_are_run_as_the_tower_runs_them(form: str) -> None:
    """The attention of a block depends on all before it: over one block more, its input is what the tower computes."""
    model, batch = model_of(form), images()
    tower = model.visual
    x = tower.embed(batch)
    *_, last = attentions(tower.blocks, x)
    middle = run_blocks(tower.blocks[:1], x, first_places(x.shape[1]))
    (alone,) = attentions(tower.blocks[1:], middle)
    assert relative_error(last, alone) < SAME


def positionless(model: DualEncoder) -> DualEncoder:
    tower = model.visual
    tower.trunk.pos_embed.data[:, tower.prefix :] = 0
    return model


@pytest.mark.parametrize("rollout", [False, True])
def test_permuting_the_patches_permutes_the_map(rollout: bool) -> None:
    """In a tower whose patches have no positions."""
    model, batch = positionless(model_of()), images()
    order = torch.randperm(16)
    patches = batch.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)[:, :, order]
    shuffled = patches.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(batch.shape)
    before, after = (model.token_attention(x, rollout).flatten(2) for x in (batch, shuffled))
    assert relative_error(after, before[..., order]) < SAME
    assert relative_error(after, before) > CHANGED


@pytest.mark.parametrize("place", [(0, 0), (1, 3), (3, 2)])
def test_a_token_made_to_look_at_one_patch_does(place: tuple[int, int]) -> None:
    """Token 2 has along one axis, which its query reads, what the patch has along another, which its key reads."""
    model = model_of(arch=dataclasses.replace(FOUR_BY_FOUR, vision_layers=1, vision_heads=1))
    trunk, asking, answering, token = model.visual.trunk, 5, 6, 2
    for part in (trunk.pos_embed, trunk.reg_token, trunk.patch_embed.proj.weight.transpose(0, -1)):
        part.data[..., [asking, answering]] = 0
    trunk.pos_embed.data[0, token, asking] = 1e3
    trunk.pos_embed.data[0, M + place[0] * 4 + place[1], answering] = 1e3
    weight = trunk.blocks[0].attn.qkv.weight.data.zero_()
    weight[0, asking] = weight[32, answering] = 1.5
    maps = model.token_attention(images())
    assert (maps[:, token, place[0], place[1]] > 0.99).all()
    assert maps[:, [0, 1, 3]].max() < 0.2


def test_registers_are_no_tokens_and_no_patches(tmp_path: Path) -> None:
    import timm

    name = "vit_small_patch14_reg4_dinov2"
    own = timm.create_model(name, img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    torch.save(own.state_dict(), tmp_path / "own.pt")
    arch = dataclasses.replace(FOUR_BY_FOUR, timm_name=name, pretrained=str(tmp_path / "own.pt"))
    model, batch = model_of(arch=arch), images()
    expected = written_out(model, batch)[-1].mean(0)[:, :M, M + 4 :].reshape(3, M, 4, 4)
    assert relative_error(model.token_attention(batch), expected) < SAME


def test_a_projection_of_one_token_has_one_map() -> None:
    assert model_of(projection="reshaped").token_attention(images()).shape == (3, 1, 4, 4)


def test_attention_is_that_of_evaluation_and_leaves_the_mode_alone() -> None:
    model = model_of(arch=dataclasses.replace(FOUR_BY_FOUR, patch_dropout=0.5))
    batch = images()
    expected = model.token_attention(batch)
    assert not model.visual.training
    assert torch.equal(model.train().token_attention(batch), expected)
    assert model.visual.training and model.visual.trunk.blocks.training
    assert not expected.requires_grad


@pytest.mark.parametrize(
    "arch, words",
    [
        (dataclasses.replace(TINY, timm_name="eva02_tiny_patch14_224"), "EvaBlock is more"),
        (dataclasses.replace(TINY, timm_name="vit_pwee_patch16_reg1_gap_256"), "is more"),
        (dataclasses.replace(TINY, timm_name="test_resnet", image_size=64), "ConvTower has no class tokens"),
    ],
)
def test_a_tower_that_cannot_be_looked_through_is_refused(arch: Architecture, words: str) -> None:
    model = create_model(config_of(arch=arch))
    with pytest.raises(UserError, match=words):
        model.token_attention(torch.zeros(1, 3, arch.image_size, arch.image_size))


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match=r"images must be \(B, 3, 32, 32\)"):
        model_of().token_attention(images(size=48))


@pytest.mark.parametrize("spec", ["oblique(8,4)", "oblique(8,4)/geodesic", "sphere(32)"])
def test_shares_of_the_spheres_sum_to_the_inner_similarity(spec: str) -> None:
    topology = parse_topology(spec)
    inner = parse_topology(spec.split("/")[0])
    x, y = (topology.project(torch.randn(5, topology.m, topology.n, dtype=torch.float64)) for _ in range(2))
    shares = topology.per_sphere(x, y)
    assert shares.shape == (5, topology.m)
    assert relative_error(shares.sum(-1), inner.similarity(x, y).diagonal()) < SAME
    for sphere in range(topology.m):
        own = parse_topology(f"sphere({topology.n})").similarity_rowwise(x[:, [sphere]], y[:, [sphere]])
        assert relative_error(shares[:, sphere], own) < SAME


@pytest.mark.parametrize("spec", ["euclidean(32)", "lorentz(32)"])
def test_points_on_no_sphere_have_no_shares(spec: str) -> None:
    topology = parse_topology(spec)
    points = topology.project(torch.randn(1, 1, 32))
    with pytest.raises(UserError, match="no product of spheres"):
        topology.per_sphere(points, points)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("models")

    def make(**changes: object) -> Path:
        torch.manual_seed(0)
        config = config_of(**changes)  # type: ignore[arg-type]
        path = folder / f"{abs(hash(repr(config)))}.safetensors"
        save_model(create_model(config), config, path)
        return path

    return make


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)).save(path)
    return path


def test_a_drawing_shows_each_map_under_the_share_of_its_sphere(checkpoint: Callable[..., Path]) -> None:
    loaded = load(checkpoint())
    square = torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8)
    batch = loaded.preprocess.batch(square[None])
    maps = loaded.model.token_attention(batch)[0]
    shares = sphere_shares(loaded, batch, "red apple")
    points = loaded.model.encode_text(loaded.tokenizer(["red apple"]))
    total = loaded.model.topology.similarity(loaded.model.encode_image(batch), points)
    assert relative_error(shares.sum(), total.squeeze()) < SAME_FLOAT32
    figure = draw(square, maps, M, "picture.png", "red apple", shares)
    first, *panels = figure.axes[: 1 + M]
    assert first.get_title() == f'picture.png\n"red apple": {total.item():+.2f} of {M}'
    assert np.array_equal(first.images[0].get_array(), square.permute(1, 2, 0))
    for index, panel in enumerate(panels):
        assert panel.get_title() == f"sphere {index + 1}: {shares[index]:+.2f}"
        overlay = panel.images[-1]
        assert np.array_equal(overlay.get_array(), maps[index].numpy())
        assert overlay.get_clim() == pytest.approx((0, maps.max().item())), "one scale for all"


def test_one_token_for_all_spheres_is_no_single_sphere(
    checkpoint: Callable[..., Path], picture: Path, tmp_path: Path
) -> None:
    for flags, title in (([], f"all {M} spheres<"), (["--text", "red apple"], f"all {M} spheres: ")):
        out = tmp_path / "out.svg"
        args = [str(checkpoint(projection="reshaped")), str(picture), "--out", str(out), "--device", "cpu", *flags]
        with rc_context({"svg.fonttype": "none"}):
            assert main(["explain", *args]) == 0
        drawn = out.read_text()
        assert title in drawn and "sphere 1" not in drawn


def test_maps_differ_in_grey_by_their_shares(tmp_path: Path) -> None:
    """On an even picture the panels get lighter with the share, by colour and without."""
    maps = torch.linspace(0, 1, 16).view(1, 4, 4)
    figure = draw(torch.full((3, SIDE, SIDE), 128, dtype=torch.uint8), maps, 1, "picture.png")
    figure.savefig(tmp_path / "drawing.png", dpi=120)
    grey = (
        torch.from_numpy(imread(tmp_path / "drawing.png")[..., :3]).double()
        @ torch.tensor([0.299, 0.587, 0.114]).double()
    )
    box = figure.axes[1].get_window_extent()
    scale = grey.shape[0] / figure.bbox.height
    columns = [round((box.x0 + (i + 0.5) * box.width / 4) * scale) for i in range(4)]
    rows = [grey.shape[0] - round((box.y1 - (i + 0.5) * box.height / 4) * scale) for i in range(4)]
    lightness = grey[rows][:, columns].flatten()
    assert (lightness.diff() > 0).all()
    assert lightness[-1] - lightness[0] > 0.3


@pytest.mark.parametrize("options", [[], ["--rollout"], ["--text", "red apple"]])
@pytest.mark.parametrize("form", ["oblique", "clip"])
def test_explain_writes_a_picture(
    form: str, options: list[str], checkpoint: Callable[..., Path], picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "drawings" / "out.png"
    assert (
        main(["explain", str(checkpoint(form=form)), str(picture), "--out", str(out), "--device", "cpu", *options]) == 0
    )
    with Image.open(out) as drawn:
        assert drawn.format == "PNG" and np.asarray(drawn.convert("L")).std() > 10


def test_explain_names_a_mistake_in_one_line(
    checkpoint: Callable[..., Path], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    model, out = checkpoint(), tmp_path / "out.png"
    convnet = checkpoint(arch=dataclasses.replace(TINY, timm_name="test_resnet", image_size=64))
    euclidean = checkpoint(form="sphere", topology="euclidean(32)")
    for args, words in (
        ((model, tmp_path / "broken.png", "--out", out), "not a readable picture"),
        ((model, tmp_path / "missing.png", "--out", out), "no such file"),
        ((tmp_path / "nowhere", picture, "--out", out), "no such checkpoint"),
        ((model, picture, "--out", tmp_path / "out.mp3"), "ends in one of"),
        ((model, picture), "--out"),
        ((convnet, picture, "--out", out), "has no class tokens"),
        ((euclidean, picture, "--out", out, "--text", "red"), "no product of spheres"),
    ):
        assert main(["explain", *map(str, args)]) == 2
        told = capsys.readouterr().err.strip()
        assert told.startswith("oblique-clip: ") and words in told and "\n" not in told
    assert not out.exists()
