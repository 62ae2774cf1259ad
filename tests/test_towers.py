"""What the towers promise: tokens of their own, no trace of padding, exact blocks, and freezing as told."""

import dataclasses
from collections.abc import Callable, Iterable

import geoopt
import pytest
import torch
from conftest import TINY, gradients, relative_error
from open_clip.transformer import Transformer
from torch import Tensor, nn

from oblique_clip.config import Architecture, ModelConfig, OptimConfig
from oblique_clip.errors import UserError
from oblique_clip.model import DualEncoder, create_model
from oblique_clip.optim import Optimizer
from oblique_clip.step import train_step
from oblique_clip.tokenizer import PAD_ID
from oblique_clip.towers import (
    OPEN_CLIP_WEIGHTS,
    ImageTower,
    OpenClipImageTower,
    OpenClipTextTower,
    TextTower,
    TokenProjection,
    init_blocks,
)

VOCABULARY, N, M = 100, 8, 4
END = VOCABULARY - 1

SAME = 1e-12
"""Two ways to the same numbers, in float64."""
SAME_GRADIENT = 1e-6
"""The same gradient twice, in float32."""
ON_MANIFOLD = 1e-6
SAMPLED = 0.05
"""Relative error of a deviation estimated from the 4,096 numbers or more of a matrix."""
CHANGED = 1e-6
"""Relative change that is no rounding in float64, however little an untrained tower reads of its input."""
ALIKE = 3
"""Largest factor between what towers of the same sizes read of their input before training."""
APART = 0.1
"""Relative distance of two tokens' outputs that counts as different."""


def images(count: int = 3, arch: Architecture = TINY) -> Tensor:
    return torch.randn(count, 3, arch.image_size, arch.image_size, dtype=torch.float64)


def captions(*lengths: int, width: int | None = None) -> Tensor:
    """Random captions of so many tokens and an end token, padded to `width`."""
    ids = torch.full((len(lengths), width or max(lengths) + 1), PAD_ID)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, END, (length,))
        ids[row, length] = END
    return ids


def image_tower(**options: object) -> ImageTower:
    return ImageTower(TINY, N, M, **options).double()  # type: ignore[arg-type]


def text_tower(**options: object) -> TextTower:
    return TextTower(TINY, VOCABULARY, N, M, **options).double()  # type: ignore[arg-type]


TOWERS: dict[str, Callable[[], nn.Module]] = {
    "image": image_tower,
    "text": text_tower,
    "open_clip image": lambda: OpenClipImageTower.fresh(TINY, N * M).double(),
    "open_clip text": lambda: OpenClipTextTower.fresh(TINY, VOCABULARY, N * M).double(),
}


def input_of(tower: nn.Module) -> Tensor:
    return images() if isinstance(tower, ImageTower | OpenClipImageTower) else captions(3, 5, 1, width=9)


def assert_same_gradients(found: Tensor, expected: Tensor, parameters: Iterable[nn.Parameter]) -> None:
    """And the same values."""
    inputs = list(parameters)
    assert relative_error(found, expected) < SAME
    for own, theirs in zip(gradients(found, *inputs), gradients(expected, *inputs), strict=True):
        assert relative_error(own, theirs) < SAME


def test_the_causal_tower_is_open_clips_own_at_full_context() -> None:
    tower = OpenClipTextTower.fresh(TINY, VOCABULARY, N * M).double()
    ids = captions(3, 15, 1, width=TINY.context_length)
    assert_same_gradients(tower(ids).squeeze(1), tower.trunk(ids), tower.parameters())


def test_the_bidirectional_tower_is_its_blocks_over_the_whole_padded_batch() -> None:
    """Nothing packed, every block run everywhere, and open_clip's own forward under a mask written out."""
    tower = text_tower()
    ids = captions(3, 15, 1, width=TINY.context_length)
    x = torch.cat([tower.class_tokens.expand(len(ids), -1, -1), tower.token_embedding(ids)], 1)
    lengths = M + torch.tensor([[4], [16], [2]])
    written = torch.zeros(len(ids), 1, x.shape[1], dtype=torch.float64)
    written.masked_fill_((torch.arange(x.shape[1]) >= lengths)[:, None], -torch.inf)
    mask = written.expand(-1, x.shape[1], -1).repeat_interleave(TINY.text_heads, 0)
    whole = tower.transformer(x + tower.positional_embedding, attn_mask=mask)
    expected = tower.projection(tower.ln_final(whole)[:, :M])
    assert_same_gradients(tower(ids), expected, tower.parameters())


@pytest.mark.parametrize("kind", ["text", "open_clip text"])
def test_text_features_do_not_depend_on_the_padding(kind: str) -> None:
    tower = TOWERS[kind]()
    ids = captions(3, 5, 1)
    padded = torch.nn.functional.pad(ids, (0, TINY.context_length - ids.shape[1]), value=PAD_ID)
    assert relative_error(tower(ids), tower(padded)) < SAME
    assert relative_error(tower(ids)[:1], tower(ids[:1, :4])) < SAME


@pytest.mark.parametrize("kind", ["text", "open_clip text"])
def test_the_padding_id_within_a_caption_is_a_token(kind: str) -> None:
    """CLIP's vocabulary has "!" there: it is read before the end token, and not behind it."""
    tower = TOWERS[kind]()
    ids = torch.tensor([[1, PAD_ID, 2, END, PAD_ID], [1, 2, END, PAD_ID, PAD_ID]])
    embedding = tower.token_embedding if isinstance(tower, TextTower) else tower.trunk.token_embedding
    before = tower(ids)
    nn.init.normal_(embedding.weight.data[PAD_ID])
    after = tower(ids)
    assert relative_error(after[0], before[0]) > CHANGED
    assert relative_error(after[1], before[1]) < SAME


@pytest.mark.parametrize("kind", ["text", "open_clip text"])
def test_text_features_depend_on_the_words_and_their_order(kind: str) -> None:
    tower = TOWERS[kind]()
    ids = torch.tensor([[1, 2, 3, END], [3, 2, 1, END], [1, 2, 4, END]])
    features = tower(ids)
    assert relative_error(features[1], features[0]) > CHANGED
    assert relative_error(features[2], features[0]) > CHANGED


def test_image_features_depend_on_where_patches_are() -> None:
    tower, picture = image_tower(), images(1)
    assert relative_error(tower(picture.roll(TINY.patch_size, -1)), tower(picture)) > CHANGED


@pytest.mark.parametrize("class_tokens", ["free", "oblique"])
@pytest.mark.parametrize("make", [image_tower, text_tower])
def test_tokens_start_apart(make: Callable[..., nn.Module], class_tokens: str) -> None:
    """Before their projections, in every input."""
    tower = make(class_tokens=class_tokens, projection="shared")
    tower.projection.weight = nn.Parameter(torch.eye(32, dtype=torch.float64)[None])
    tower.projection.n = 32
    tokens = tower(input_of(tower))
    for i in range(M):
        for j in range(i):
            assert relative_error(tokens[:, i], tokens[:, j]) > APART


def tokens_and_positions(tower: nn.Module) -> tuple[nn.Parameter, Tensor]:
    """The class tokens (m, width) and a view of their rows of the position embedding."""
    if isinstance(tower, ImageTower):
        return tower.trunk.reg_token, tower.trunk.pos_embed[0, :M]
    assert isinstance(tower, TextTower)
    return tower.class_tokens, tower.positional_embedding[:M]


@torch.no_grad()
@pytest.mark.parametrize("make", [image_tower, text_tower])
def test_each_token_has_a_position_and_a_projection_of_its_own(make: Callable[..., nn.Module]) -> None:
    """Tokens, positions and projections permuted together permute the features; permuted alone, each changes them."""
    tower = make()
    order = torch.tensor([2, 0, 3, 1])
    batch = input_of(tower)
    tokens, positions = tokens_and_positions(tower)
    positions.copy_(torch.randn_like(positions))
    expected = tower(batch)[:, order]
    parts = (tokens, positions, tower.projection.weight)
    for part in parts:
        kept = part.clone()
        part.copy_(kept[order])
        assert relative_error(tower(batch), expected) > APART
        part.copy_(kept)
    for part in parts:
        part.copy_(part[order].clone())
    assert relative_error(tower(batch), expected) < SAME


@pytest.mark.parametrize("kind, weights", [("per_token", M), ("shared", 1), ("reshaped", 1)])
def test_projections_are_their_loops(kind: str, weights: int) -> None:
    projection = TokenProjection(kind, 6, N, M).double()  # type: ignore[arg-type]
    tokens = torch.randn(3, 1 if kind == "reshaped" else M, 6, dtype=torch.float64)
    weight = projection.weight.detach()
    assert len(weight) == weights
    if kind == "reshaped":
        rows = [tokens[:, 0] @ weight[0, :, i * N : (i + 1) * N] for i in range(M)]
    else:
        rows = [tokens[:, i] @ weight[i if kind == "per_token" else 0] for i in range(M)]
    assert relative_error(projection(tokens), torch.stack(rows, 1)) < SAME


@pytest.mark.parametrize("make", [image_tower, text_tower])
def test_a_reshaped_projection_reads_one_token(make: Callable[..., nn.Module]) -> None:
    tower = make(projection="reshaped")
    tokens = tower.trunk.reg_token if isinstance(tower, ImageTower) else tower.class_tokens  # type: ignore[union-attr]
    assert tower.num_tokens == len(tokens) == 1
    assert tower(input_of(tower)).shape == (3, M, N)
    one_token = make(projection="per_token")
    extra = sum(p.numel() for p in one_token.parameters()) - sum(p.numel() for p in tower.parameters())
    assert extra == 2 * (M - 1) * 32, "only tokens and their positions are fewer"


def test_a_seed_draws_blocks_name_by_name() -> None:
    """The order that runs of the same seed have in common; a weight that a block lacks is passed over."""
    width, layers = 8, 3
    blocks = Transformer(width, layers, 2).resblocks
    del blocks[1].mlp
    torch.manual_seed(1)
    init_blocks(blocks, width, OPEN_CLIP_WEIGHTS)
    torch.manual_seed(1)
    for name in OPEN_CLIP_WEIGHTS:
        for parameters in (dict(block.named_parameters()) for block in blocks):
            if name in parameters:
                unit = torch.randn_like(parameters[name])
                cosine = torch.nn.functional.cosine_similarity(unit.flatten(), parameters[name].flatten(), dim=0)
                assert cosine.item() == pytest.approx(1, abs=SAME_GRADIENT), name


def test_blocks_start_by_clips_rule() -> None:
    """In both towers, matrix by matrix, the deviation that open_clip's text tower starts with."""
    arch = dataclasses.replace(TINY, vision_width=64, text_width=64)
    theirs = OpenClipTextTower.fresh(arch, VOCABULARY, N * M).trunk.transformer.resblocks
    ours = TextTower(arch, VOCABULARY, N, M).transformer.resblocks
    trunk = ImageTower(arch, N, M).trunk.blocks
    for at, names in enumerate(zip(*(matrices_of(blocks) for blocks in (theirs, ours, trunk)), strict=True)):
        expected, *found = (matrix.std().item() for matrix in names)
        assert found == pytest.approx([expected] * 2, rel=SAMPLED), at


def matrices_of(blocks: nn.ModuleList) -> list[Tensor]:
    return [parameter for parameter in blocks.parameters() if parameter.ndim == 2]


@torch.no_grad()
def test_the_image_towers_start_within_a_factor_of_three_in_what_they_read() -> None:
    """How much features differ between images, untrained, in our towers and in open_clip's."""
    arch = Architecture()
    batch = torch.randn(12, 3, arch.image_size, arch.image_size)

    def spread(tower: nn.Module) -> float:
        features = tower(batch)
        return relative_error(features, features.mean(0).expand_as(features))

    baseline = spread(OpenClipImageTower.fresh(arch, 128))
    assert baseline / ALIKE < spread(ImageTower(arch, 128, 1)) < baseline * ALIKE
    assert baseline / ALIKE < spread(ImageTower(arch, 16, 8)) < baseline * ALIKE


def small_model(class_tokens: str, form: str = "oblique") -> DualEncoder:
    topology = f"oblique({N},{M})" if form == "oblique" else f"sphere({N * M})"
    config = ModelConfig(form=form, topology=topology, class_tokens=class_tokens, embed_dim=N * M, arch=TINY)  # type: ignore[arg-type]
    return create_model(config)


@pytest.mark.parametrize("form, class_tokens", [("clip", "free"), ("oblique", "free"), ("oblique", "oblique")])
def test_a_fixed_batch_is_learned_and_points_stay_points(form: str, class_tokens: str) -> None:
    model = small_model(class_tokens, form)
    optimizer = Optimizer(model, OptimConfig(lr=1e-3, point_lr=1e-2, warmup=0.0), total_steps=30)
    batch = images(8).float(), captions(3, 4, 5, 6, 3, 4, 5, 6)
    named = dict(model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    losses = [_step(model, optimizer, *batch) for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    for name, parameter in named.items():
        assert not torch.equal(parameter, before[name]), f"{name} did not train"
    points = {name for name, p in named.items() if isinstance(p, geoopt.ManifoldParameter)}
    assert points == ({"visual.trunk.reg_token", "text.class_tokens"} if class_tokens == "oblique" else set())
    for name in points:
        assert ((named[name].detach().double().norm(dim=-1) - 1).abs() < ON_MANIFOLD).all()


def _step(model: DualEncoder, optimizer: Optimizer, pictures: Tensor, ids: Tensor) -> float:
    loss, _, _ = train_step(model, pictures, ids, None, "info_nce", "float32")
    optimizer.step()
    return loss.item()


def names_by_group(tower: nn.Module) -> list[set[str]]:
    """Names of parameters by the order data flows: embeddings, each block, the last with its norm, the projection."""
    blocks = ("trunk.blocks.", "trunk.transformer.resblocks.", "transformer.resblocks.")
    norms = ("trunk.norm.", "ln_final.", "trunk.ln_final.", "trunk.ln_post.")
    projections = ("projection.", "trunk.proj", "trunk.text_projection")
    groups: list[set[str]] = [set() for _ in range(2 + TINY.vision_layers)]
    for name, _ in tower.named_parameters():
        inside = [name.removeprefix(prefix) for prefix in blocks if name.startswith(prefix)]
        if inside:
            groups[1 + int(inside[0].split(".")[0])].add(name)
        else:
            groups[-1 if name.startswith(projections) else -2 if name.startswith(norms) else 0].add(name)
    return groups


@pytest.mark.parametrize("unlocked", [0, 1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize("kind", TOWERS)
def test_locking_leaves_exactly_the_last_groups(kind: str, unlocked: int) -> None:
    tower = TOWERS[kind]()
    tower.lock(unlocked)  # type: ignore[operator]
    trained = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    groups = names_by_group(tower)
    assert all(groups)
    assert trained == set().union(*groups[max(0, len(groups) - unlocked) :])


@pytest.mark.parametrize("kind", TOWERS)
def test_checkpointing_recomputes_every_block_and_changes_no_gradient(kind: str) -> None:
    tower = TOWERS[kind]()
    batch = input_of(tower)
    norms = [m for name, m in tower.named_modules() if name.endswith((".ln_1", ".norm1"))]
    calls = [0]
    for norm in norms:
        norm.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    plain = gradients(tower(batch), *tower.parameters())
    assert calls[0] == len(norms) == 2
    tower.set_grad_checkpointing(True)  # type: ignore[operator]
    checkpointed = gradients(tower(batch), *tower.parameters())
    assert calls[0] == 3 * len(norms)
    for found, expected in zip(checkpointed, plain, strict=True):
        assert relative_error(found, expected) < SAME_GRADIENT


@pytest.mark.parametrize(
    "name",
    ["vit_base_patch16_224", "deit3_small_patch16_224", "vit_base_patch16_siglip_224", "vit_small_patch14_dinov2",
     "aimv2_large_patch14_224", "vit_small_patch16_18x2_224", "vit_pwee_patch16_reg1_gap_256",
     "eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "vit_base_patch16_rope_mixed_224"],
)  # fmt: skip
def test_any_vit_of_timm_with_prefix_tokens_trains_all_its_parameters(name: str) -> None:
    tower = ImageTower(dataclasses.replace(TINY, timm_name=name), N, M)
    features = tower(images().float())
    for (parameter_name, _), gradient in zip(
        tower.named_parameters(), gradients(features, *tower.parameters()), strict=True
    ):
        assert gradient.abs().max() > 0, parameter_name
    tower.lock()
    assert not any(parameter.requires_grad for parameter in tower.parameters())


@pytest.mark.parametrize(
    "name, words",
    [
        ("vit_huge_patch3", "timm has no model"),
        ("deit_tiny_distilled_patch16_224", "does not take"),
        ("vit_small_patch16_224.no_such_tag", "Invalid pretrained tag"),
    ],
)
def test_a_model_that_cannot_have_m_tokens_is_refused_by_name(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        ImageTower(dataclasses.replace(TINY, timm_name=name), N, M)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "make", [lambda arch: ImageTower(arch, N, M), lambda arch: OpenClipImageTower.fresh(arch, N * M)]
)
def test_patch_dropout_leaves_tokens_and_a_share_of_the_patches_in_training_alone(
    make: Callable[[Architecture], nn.Module],
) -> None:
    whole = make(dataclasses.replace(TINY, patch_size=8))
    tower = make(dataclasses.replace(TINY, patch_size=8, patch_dropout=0.75))
    tower.load_state_dict(whole.state_dict())
    seen: list[int] = []
    first = next(m for name, m in tower.named_modules() if name.endswith((".ln_1", ".norm1")))
    first.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    batch = images(arch=TINY).float()
    assert torch.equal(tower.eval()(batch), whole.eval()(batch))
    once, again = tower.train()(batch), tower(batch)
    assert relative_error(once, again) > CHANGED
    tokens = tower.num_tokens
    assert seen == [16 + tokens, 4 + tokens, 4 + tokens]


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_clip_224", "deit3_small_patch16_224", "vit_base_patch16_siglip_224"]
)
def test_the_image_tower_is_timms_own_forward_at_its_tokens(name: str) -> None:
    tower = ImageTower(dataclasses.replace(TINY, timm_name=name), N, M).double()
    batch = images()
    assert_same_gradients(tower.tokens(batch), tower.trunk.forward_features(batch)[:, :M], tower.trunk.parameters())


def test_open_clips_image_tower_is_its_own_forward_with_its_gradients() -> None:
    tower, batch = OpenClipImageTower.fresh(TINY, N * M).double(), images()
    assert_same_gradients(tower(batch).squeeze(1), tower.trunk(batch), tower.parameters())
