"""Residual blocks of open_clip and timm: one attention call each, no work on padding, the last only where it is read.

Three ways to the same numbers with less work than the blocks' own `forward`:

- A tower is read at its class tokens (or at the end token), so behind the last attention nobody looks at any other
  position: the last block computes queries, output and MLP for those alone. In a tower of d blocks this saves 5/6 of
  a block, as the MLP (8/12 of a block's products), the queries and the output (1/12 each) are all that is per query.
- Captions of one batch are of many lengths. Everything but attention works row by row, so the rows of the padding are
  taken out (`Packing`), and put back for the attention alone.
- Masks are never written out per head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Select = Callable[[Tensor], Tensor]
"""Takes the positions that are read, (B, R, width), out of x."""


class Packing(NamedTuple):
    """Which places (B, L) of a padded batch are used: x is then (T, width), its T used rows in order."""

    shape: tuple[int, int]
    rows: Tensor
    """(T,) places in the flattened batch, rising."""

    def pack(self, x: Tensor) -> Tensor:
        """(B, L, C) to (T, C)."""
        return x.flatten(0, 1)[self.rows]

    def spread(self, x: Tensor) -> Tensor:
        """(T, C) to (B, L, C), zero where nothing is used."""
        grid = x.new_zeros(self.shape[0] * self.shape[1], x.shape[-1])
        return grid.index_copy(0, self.rows, x).unflatten(0, self.shape)

    def find(self, columns: Tensor) -> Tensor:
        """Where in x the places `columns` (R,) or (B, R) of each line of the batch are, (B, R); all of them used."""
        first = torch.arange(self.shape[0]) * self.shape[1]
        return torch.searchsorted(self.rows, first[:, None] + columns)


def packing_of(used: Tensor) -> Packing | None:
    """The packing of a batch with places `used` (B, L); None where it would not pay.

    On a GPU it would not: counting the rows would wait for the device. An exported or compiled graph has fixed steps.
    """
    if torch.compiler.is_compiling() or used.device.type != "cpu" or bool(used.all()):
        return None
    return Packing((used.shape[0], used.shape[1]), used.flatten().nonzero().squeeze(1))


def first_places(count: int, packing: Packing | None = None) -> Select:
    """Reads the first places of each line, where class tokens stand."""
    if packing is None:
        return lambda x: x[:, :count]
    rows = packing.find(torch.arange(count))
    return lambda x: x[rows]


def one_place(columns: Tensor, packing: Packing | None = None) -> Select:
    """Reads one place of each line, as `columns` (B,) tell."""
    if packing is None:
        lines = torch.arange(len(columns), device=columns.device)
        return lambda x: x[lines, columns][:, None]
    rows = packing.find(columns[:, None])
    return lambda x: x[rows]


class _Parts(NamedTuple):
    """A pre-norm block: x + branch_1(out(attention(norm_1(x)))), then x + branch_2(mlp(norm_2(x)))."""

    norm_1: nn.Module
    weight: Tensor
    bias: Tensor | None
    heads: int
    out: Select
    norm_2: nn.Module
    mlp: Select


def _parts_of(block: Any) -> _Parts:
    attn = block.attn
    if isinstance(block, ResidualAttentionBlock):
        return _Parts(
            block.ln_1, attn.in_proj_weight, attn.in_proj_bias, attn.num_heads,
            lambda x: block.ls_1(attn.out_proj(x)), block.ln_2, lambda x: block.ls_2(block.mlp(x)),
        )  # fmt: skip
    return _Parts(
        block.norm1, attn.qkv.weight, attn.qkv.bias, attn.num_heads,
        lambda x: block.drop_path1(block.ls1(attn.proj_drop(attn.proj(x)))),
        block.norm2, lambda x: block.drop_path2(block.ls2(block.mlp(x))),
    )  # fmt: skip


def is_plain(block: Any) -> bool:
    """Whether `run_blocks` can run a block: open_clip's, or a block of timm that is attention and MLP and no more."""
    if type(block) is ResidualAttentionBlock:
        return True
    from timm.layers import Attention
    from timm.models.vision_transformer import Block

    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    attn = block.attn
    # Later versions of timm have a norm behind the attention, and a gate.
    norms = (attn.q_norm, attn.k_norm, getattr(attn, "norm", nn.Identity()))
    plain = all(isinstance(norm, nn.Identity) for norm in norms) and getattr(attn, "gate", None) is None
    return plain and attn.attn_drop.p == 0


def run_blocks(
    blocks: Iterable[nn.Module],
    x: Tensor,
    read: Select,
    *,
    key_mask: Tensor | None = None,
    read_mask: Tensor | None = None,
    causal: bool = False,
    packing: Packing | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """Run blocks, all of them `is_plain`, on x (B, L, width) or packed (T, width); gives what is read, (B, R, width).

    Args:
        key_mask: (B, L), True where a key may be attended to, or what is added to its logits; none where `causal`.
        read_mask: the same for the queries that are read, in the last block; `key_mask` where it is None.
        causal: each position attends up to itself; `read_mask` has to say as much for the one that is read.
        checkpointing: forget what is inside a block and compute it again in the backward pass.
    """
    *earlier, last = map(_parts_of, blocks)
    run = _checkpointed if checkpointing and torch.is_grad_enabled() else _plain
    for parts in earlier:
        x = run(_run, parts, x, key_mask, causal, packing)
    return run(_read, last, x, read, key_mask if read_mask is None else read_mask, packing)


def attentions(blocks: Iterable[nn.Module], x: Tensor, key_mask: Tensor | None = None) -> Iterator[Tensor]:
    """Who looks at whom: of each block in turn, all of them `is_plain`, the shares (B, heads, L, L); rows sum to 1.

    Args:
        x: (B, L, width), without padding.
        key_mask: (B, L), what is added to the logits of the keys; None for nothing.
    """
    for parts in map(_parts_of, blocks):
        q, k, v = _heads(F.linear(parts.norm_1(x), parts.weight, parts.bias), 3, parts.heads)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        shares = (scores if key_mask is None else scores + key_mask[:, None, None, :]).softmax(-1)
        yield shares
        x = x + parts.out((shares @ v).transpose(1, 2).flatten(-2))
        x = x + parts.mlp(parts.norm_2(x))


def _plain(function: Callable[..., Tensor], *args: Any) -> Tensor:
    return function(*args)


def _checkpointed(function: Callable[..., Tensor], *args: Any) -> Tensor:
    return checkpoint(function, *args, use_reentrant=False)  # type: ignore[no-any-return]


def _run(parts: _Parts, x: Tensor, mask: Tensor | None, causal: bool, packing: Packing | None) -> Tensor:
    qkv = F.linear(parts.norm_1(x), parts.weight, parts.bias)
    q, k, v = _heads(packing.spread(qkv) if packing else qkv, 3, parts.heads)
    mixed = attend(q, k, v, mask, causal)
    x = x + parts.out(packing.pack(mixed) if packing else mixed)
    return x + parts.mlp(parts.norm_2(x))


def _read(parts: _Parts, x: Tensor, read: Select, mask: Tensor | None, packing: Packing | None) -> Tensor:
    width = x.shape[-1]
    normed = parts.norm_1(x)
    bias = parts.bias
    kv = F.linear(normed, parts.weight[width:], None if bias is None else bias[width:])
    q = F.linear(read(normed), parts.weight[:width], None if bias is None else bias[:width])
    k, v = _heads(packing.spread(kv) if packing else kv, 2, parts.heads)
    (q,) = _heads(q, 1, parts.heads)
    x = read(x) + parts.out(attend(q, k, v, mask))
    return x + parts.mlp(parts.norm_2(x))


def _heads(x: Tensor, count: int, heads: int) -> Tensor:
    """(B, L, count * width) to (count, B, heads, L, width / heads)."""
    return x.unflatten(-1, (count, heads, -1)).permute(2, 0, 3, 1, 4)


def attend(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Scaled dot-product attention of (B, heads, L, d), heads side by side again in (B, L, heads * d).

    Args:
        key_mask: (B, L), True where a key may be attended to, or what is added to its logits; none where `causal`.
    """
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # torch's fused kernel for CPUs takes six times as long backward in bfloat16 as these two products, which in
        # turn keep (B, heads, L, L) scores for it. Without a backward pass too, so that micro-batches, which run
        # forward once without a graph, see the same numbers both times.
        mixed = _attend_by_products(q, k, v, mask, causal)
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return mixed.transpose(1, 2).flatten(-2)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v
