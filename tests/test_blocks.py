"""The blocks run the fast way, against open_clip's and timm's own, with masks written out and nothing left out."""

from collections.abc import Callable

import pytest
import torch
from conftest import gradients, relative_error
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transformer import Transformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from oblique_clip.blocks import attend, first_places, is_plain, one_place, packing_of, run_blocks

WIDTH, HEADS, BATCH, LENGTH = 32, 4, 3, 7
USED = torch.tensor([7, 4, 1])
"""Places used in each line of the batch."""

SAME = 1e-12
"""Two ways to the same numbers, in float64."""
BF16 = 2e-2
"""A few roundings of bfloat16, of which each is 4e-3."""


def varied(blocks: nn.ModuleList) -> nn.ModuleList:
    for parameter in blocks.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim == 2 else 1.0)
    return blocks.double()


def open_clip_blocks() -> nn.ModuleList:
    return varied(Transformer(WIDTH, 2, HEADS, ls_init_value=0.5).resblocks)


def timm_blocks() -> nn.ModuleList:
    return varied(nn.ModuleList(Block(WIDTH, HEADS, qkv_bias=bias, init_values=0.5) for bias in (True, False)))


def masks(kind: str) -> tuple[Tensor, dict[str, object]]:
    """A mask written out for each head, (B * heads, L, L), and how `run_blocks` is told of it."""
    used = torch.arange(LENGTH) < USED[:, None]
    shape = BATCH, LENGTH, LENGTH
    allowed = {
        "none": torch.ones(shape, dtype=torch.bool),
        "keys": used[:, None, :].expand(shape),
        "causal": torch.ones(shape, dtype=torch.bool).tril(),
    }[kind]
    written = torch.zeros(shape, dtype=torch.float64).masked_fill(~allowed, -torch.inf)
    told = {"none": {}, "keys": {"key_mask": used}, "causal": {"read_mask": used, "causal": True}}[kind]
    return written.repeat_interleave(HEADS, 0), told


def reference(blocks: nn.ModuleList, x: Tensor, mask: Tensor) -> Tensor:
    for block in blocks:
        x = block(x, attn_mask=mask.unflatten(0, (BATCH, HEADS)) if isinstance(block, Block) else mask)
    return x


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["none", "keys", "causal"])
@pytest.mark.parametrize("make", [open_clip_blocks, timm_blocks])
def test_blocks_are_their_own_forward(
    make: Callable[[], nn.ModuleList], kind: str, packed: bool, checkpointing: bool
) -> None:
    """Where they are read: at the last used place (causal) or the first one, in value and in every gradient."""
    if packed and kind == "none":
        pytest.skip("without a mask every place is used")
    blocks = make()
    x = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    written, told = masks(kind)
    packing = packing_of(torch.arange(LENGTH) < USED[:, None]) if packed else None
    read = one_place(USED - 1, packing) if kind == "causal" else first_places(1, packing)
    start = x if packing is None else packing.pack(x)
    found = run_blocks(blocks, start, read, packing=packing, checkpointing=checkpointing, **told)  # type: ignore[arg-type]
    place = USED - 1 if kind == "causal" else torch.zeros_like(USED)
    expected = reference(blocks, x, written)[torch.arange(BATCH), place][:, None]
    assert relative_error(found, expected) < SAME
    inputs = (x, *blocks.parameters())
    for ours, theirs in zip(gradients(found, *inputs), gradients(expected, *inputs), strict=True):
        assert relative_error(ours, theirs) < SAME


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 3))
def test_packing_takes_out_what_is_unused_and_puts_back_the_rest(lengths: list[int], spare: int) -> None:
    used = torch.arange(max(lengths) + spare) < torch.tensor(lengths)[:, None]
    packing = packing_of(used)
    if used.all():
        assert packing is None
        return
    assert packing is not None
    x = torch.randn(*used.shape, 2)
    packed = packing.pack(x)
    assert len(packed) == sum(lengths)
    assert torch.equal(packing.spread(packed), x * used[..., None])
    last = torch.tensor(lengths) - 1
    assert torch.equal(one_place(last, packing)(packed), one_place(last)(x))
    assert torch.equal(first_places(1, packing)(packed), first_places(1)(x))


def test_on_a_gpu_nothing_waits_for_a_count() -> None:
    assert packing_of(torch.zeros(2, 3, dtype=torch.bool, device="meta")) is None


@pytest.mark.parametrize("masked, causal", [(False, False), (True, False), (False, True)])
def test_attention_in_bfloat16_is_attention(masked: bool, causal: bool) -> None:
    """The two products that stand in for torch's kernel, in value and gradient, against float64."""
    mask = torch.arange(LENGTH) < USED[:, None] if masked else None
    exact = torch.randn(3, BATCH, HEADS, LENGTH, 8).bfloat16().double().requires_grad_()
    short = exact.detach().bfloat16().requires_grad_()
    expected, found = (attend(*qkv.unbind(0), mask, causal) for qkv in (exact, short))
    assert relative_error(found, expected) < BF16
    assert relative_error(gradients(found, short)[0], gradients(expected, exact)[0]) < BF16


def test_blocks_that_do_more_are_told_apart() -> None:
    assert is_plain(Block(WIDTH, HEADS, init_values=0.1, drop_path=0.1))
    assert is_plain(Transformer(WIDTH, 1, HEADS).resblocks[0])
    assert not is_plain(Block(WIDTH, HEADS, qk_norm=True))
    assert not is_plain(Block(WIDTH, HEADS, attn_drop=0.1))
    assert not is_plain(nn.Linear(2, 2))


def test_stochastic_depth_drops_whole_lines() -> None:
    """A dropped branch of the last block leaves what was read as it came in."""
    block = Block(WIDTH, HEADS, drop_path=0.5).train()
    x = torch.randn(64, LENGTH, WIDTH)
    unchanged = (run_blocks([block], x, first_places(2)) == x[:, :2]).flatten(1).all(1)
    assert 0 < unchanged.sum() < 64 / 2
