"""The two towers. Each turns its input into features (B, m, n): one row of n numbers from each of m class tokens.

`ImageTower` is any timm ViT, `TextTower` open_clip's transformer blocks; both carry m class tokens in front, each with
its own position embedding, as in the official code of arXiv 2209.02127 (minogame/clip-mtob). `OpenClipImageTower` and
`OpenClipTextTower` are open_clip's own, for the exact baseline. Convnets are in convnet.py.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

import geoopt
import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm, Transformer
from open_clip.transformer import TextTransformer as OpenClipText
from open_clip.transformer import VisionTransformer as OpenClipVision
from timm.layers import PatchDropout
from torch import Tensor, nn

from .blocks import first_places, is_plain, one_place, packing_of, run_blocks
from .config import Architecture
from .data.images import Preprocess
from .errors import UserError
from .manifold import Oblique
from .pretrained import OwnLayout, timm_model
from .tokenizer import PAD_ID

if TYPE_CHECKING:
    from .convnet import ConvTower

Part = nn.Module | nn.Parameter
T = TypeVar("T", bound="Tower")
Projection = Literal["per_token", "shared", "reshaped"]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# The weights of a block: query, key and value; the attention's output; the first and the second layer of the MLP.
OPEN_CLIP_WEIGHTS = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
TIMM_WEIGHTS = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
# What `registers`, `start` and `positions` of class tokens are where nothing else is said.
PLAIN_TOKENS: dict[str, Any] = {"registers": 0, "start": "apart", "positions": True}


def make_class_tokens(
    count: int,
    width: int,
    kind: Literal["free", "oblique"],
    registers: int = 0,
    start: Literal["apart", "together"] = "apart",
) -> nn.Parameter:
    """m class tokens and registers behind them, (m + registers, width): free with norm about 1, or of unit norm.

    Args:
        start: whether the m are drawn apart, or all equal to the first.

    Examples:
        >>> from oblique_clip.towers import make_class_tokens
        >>> tokens = make_class_tokens(8, 128, "oblique")
        >>> tokens.shape, tokens.manifold.name
        (torch.Size([8, 128]), 'Oblique')
    """
    tokens = torch.randn(count + registers, width) / math.sqrt(width)
    if start == "together":
        tokens[:count] = tokens[0]
    if kind == "free":
        return nn.Parameter(tokens)
    manifold = Oblique()
    return geoopt.ManifoldParameter(manifold.projx(tokens), manifold=manifold)


class TokenProjection(nn.Module):
    """Class tokens (B, tokens, width) to features (B, m, n), without bias.

    `per_token` has a matrix for each token, `shared` one for all (the official code), `reshaped` cuts the m*n outputs
    of a single token into m rows.

    Examples:
        >>> import torch
        >>> from oblique_clip.towers import TokenProjection
        >>> for kind, tokens in (("per_token", 8), ("shared", 8), ("reshaped", 1)):
        ...     projection = TokenProjection(kind, width=128, n=16, m=8)
        ...     print(kind, tuple(projection.weight.shape), tuple(projection(torch.ones(2, tokens, 128)).shape))
        per_token (8, 128, 16) (2, 8, 16)
        shared (1, 128, 16) (2, 8, 16)
        reshaped (1, 128, 128) (2, 8, 16)
    """

    def __init__(self, kind: Projection, width: int, n: int, m: int) -> None:
        super().__init__()
        self.kind, self.n, self.m = kind, n, m
        shape = {"per_token": (m, width, n), "shared": (1, width, n), "reshaped": (1, width, m * n)}[kind]
        self.weight = nn.Parameter(torch.randn(shape) / math.sqrt(width))

    def forward(self, tokens: Tensor) -> Tensor:
        if self.kind == "per_token":
            return torch.bmm(tokens.transpose(0, 1), self.weight).transpose(0, 1)
        return (tokens @ self.weight[0]).unflatten(-1, (-1, self.n)).flatten(1, 2)


class Tower(nn.Module, ABC):
    """What towers share: freezing by groups, from the input up.

    Examples:
        >>> from oblique_clip.config import Architecture
        >>> from oblique_clip.towers import TextTower
        >>> tower = TextTower(Architecture(), vocab_size=4096, n=16, m=8)
        >>> tower.lock(unlocked_groups=1)
        >>> [name for name, parameter in tower.named_parameters() if parameter.requires_grad]
        ['projection.weight']
    """

    @abstractmethod
    def groups(self) -> list[list[Part]]:
        """Parts that freeze together, input first: embeddings, each block, the last with its norm, projection."""

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freeze all but the last `unlocked_groups` groups, as open_clip does (from Zhai et al. 2022).

        Args:
            freeze_bn_stats: whether batch norms of frozen groups keep to the statistics that they have.
        """
        groups = self.groups()
        for part in (part for group in groups[: max(0, len(groups) - unlocked_groups)] for part in group):
            for parameter in part.parameters() if isinstance(part, nn.Module) else [part]:
                parameter.requires_grad_(False)
            if freeze_bn_stats and isinstance(part, nn.Module):
                norms = [module for module in part.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
                self._still = (*self._still, *norms)
        self.train(self.training)

    # Batch norms that stay in evaluation mode. In a tuple, where they are no second time part of this module.
    _still: tuple[nn.Module, ...] = ()

    def train(self: T, mode: bool = True) -> T:
        super().train(mode)
        for norm in self._still:
            norm.eval()
        return self


def grouped(stem: list[Part], blocks: Iterable[Part], norm: Part, projection: Part) -> list[list[Part]]:
    """open_clip's groups (`VisionTransformer.lock`, `lock_text_tower`)."""
    *earlier, last = blocks
    return [stem, *([block] for block in earlier), [last, norm], [projection]]


class ImageTower(Tower):
    """A timm ViT read at its first m prefix tokens: images (B, 3, H, W), normalised, to features (B, m, n).

    Args:
        arch: sizes; `arch.timm_name` names the ViT that they are put into, `arch.pretrained` its weights.
        n: features a token.
        m: tokens, and spheres; with `projection="reshaped"` one token is read whatever m is.
        weights: False builds what `arch.pretrained` asks for and reads no weights, as before loading a checkpoint.
        registers: tokens behind these that nobody reads (Darcet et al. 2024, arXiv 2309.16588).
        start: see `make_class_tokens`.
        positions: whether tokens have positions of their own.

    Raises:
        UserError: for a model or sizes that timm lacks, or weights that do not fit.

    Examples:
        >>> import torch
        >>> from oblique_clip.config import Architecture
        >>> from oblique_clip.towers import ImageTower
        >>> tower, images = ImageTower(Architecture(), n=16, m=8), torch.zeros(2, 3, 32, 32)
        >>> tower.tokens(images).shape, tower(images).shape  # eight class tokens, eight rows of features
        (torch.Size([2, 8, 128]), torch.Size([2, 8, 16]))
        >>> tower.grid, tower.prefix
        ((4, 4), 8)
    """

    def __init__(
        self,
        arch: Architecture,
        n: int,
        m: int,
        projection: Projection = "per_token",
        class_tokens: Literal["free", "oblique"] = "free",
        weights: bool = True,
        registers: int = 0,
        start: Literal["apart", "together"] = "apart",
        positions: bool = True,
    ) -> None:
        super().__init__()
        own = None if arch.pretrained is None else OwnLayout(arch)
        if own is not None and class_tokens == "oblique" and (own.has_class_token or own.registers):
            raise UserError("pretrained class tokens have a length of their own: take --class-tokens free")
        self.image_size = (arch.image_size, arch.image_size)
        self.image_mean, self.image_std = (own.image_mean, own.image_std) if own else (CLIP_MEAN, CLIP_STD)
        self.num_tokens = 1 if projection == "reshaped" else m
        self.shared_attention = arch.shared_attention
        registers += own.registers if own else 0
        self.trunk = _timm_vit(arch, self.num_tokens + registers, positions)
        # timm's fixed deviation of 0.02 starts narrow towers slowly: both towers start by CLIP's rule instead.
        init_blocks(self.trunk.blocks, arch.vision_width, TIMM_WEIGHTS)
        if self.trunk.pos_embed is not None:
            nn.init.normal_(self.trunk.pos_embed, std=arch.vision_width**-0.5)
        # timm's own is (1, prefix, width); one of another shape is read alike, by expand over the batch.
        self.trunk.reg_token = make_class_tokens(self.num_tokens, arch.vision_width, class_tokens, registers, start)
        self.projection = TokenProjection(projection, arch.vision_width, n, m)
        if arch.shared_attention and not self.is_plain:
            raise UserError(f"timm model {arch.timm_name!r} has no plain blocks, as shared attention wants them")
        if own is not None and weights:
            own.load_into(self.trunk, self.num_tokens)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(self.tokens(images))

    def tokens(self, images: Tensor) -> Tensor:
        """The class tokens after the last norm, before projection, (B, tokens, width)."""
        trunk = self.trunk
        if not self.is_plain:
            return trunk.forward_features(images)[:, : self.num_tokens]
        read = first_places(self.num_tokens)
        x = self.embed(images)
        mask = self.key_mask(x)
        return trunk.norm(run_blocks(self.blocks, x, read, key_mask=mask, checkpointing=trunk.grad_checkpointing))

    def key_mask(self, x: Tensor) -> Tensor | None:
        """What plain blocks add to the logits of the keys, (B, prefix + patches); None for nothing."""
        used = x.new_ones(x.shape[:2], dtype=torch.bool)
        return one_share(used, self.num_tokens, x.dtype) if self.shared_attention else None

    def embed(self, images: Tensor) -> Tensor:
        """What the first of plain blocks takes: prefix tokens and patches, (B, prefix + patches, width)."""
        trunk = self.trunk
        return trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(images))))

    @property
    def is_plain(self) -> bool:
        """Whether `run_blocks` can run the blocks."""
        return all(map(is_plain, self.blocks))

    @property
    def blocks(self) -> nn.ModuleList:
        return self.trunk.blocks

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches: class tokens, and registers of pretrained models."""
        return int(self.trunk.num_prefix_tokens)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.trunk.patch_embed.grid_size

    @property
    def places(self) -> int:
        """Positions of the picture beside the tokens."""
        return math.prod(self.grid)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.trunk.set_grad_checkpointing(enable)

    def groups(self) -> list[list[Part]]:
        trunk = self.trunk
        stem = [trunk.patch_embed, trunk.norm_pre, trunk.pos_embed, trunk.reg_token, getattr(trunk, "rope", None)]
        return grouped([part for part in stem if part is not None], trunk.blocks, trunk.norm, self.projection)


def make_image_tower(
    arch: Architecture,
    n: int,
    m: int,
    projection: Projection = "per_token",
    class_tokens: Literal["free", "oblique"] = "free",
    weights: bool = True,
    **tokens: Any,
) -> ImageTower | ConvTower:
    """The tower for `arch.timm_name`: `ImageTower` for a ViT of timm, `ConvTower` for what gives a feature map.

    Args:
        tokens: `registers`, `start` and `positions`, for a ViT alone; see `ImageTower`.

    Raises:
        UserError: for a name that timm lacks, or a model that is neither; see `ImageTower` and `ConvTower`.

    Examples:
        >>> import torch
        >>> from oblique_clip.config import Architecture
        >>> from oblique_clip.towers import make_image_tower
        >>> for name in ("vit_base_patch16_clip_224", "test_resnet"):
        ...     tower = make_image_tower(Architecture(timm_name=name, image_size=64), n=16, m=8)
        ...     print(type(tower).__name__, tower(torch.zeros(2, 3, 64, 64)).shape)
        ImageTower torch.Size([2, 8, 16])
        ConvTower torch.Size([2, 8, 16])
    """
    from .convnet import ConvTower

    if _built_by(arch.timm_name) is not None:
        return ImageTower(arch, n, m, projection, class_tokens, weights, **tokens)
    if any(value != PLAIN_TOKENS[name] for name, value in tokens.items()):
        raise UserError(
            f"timm model {arch.timm_name!r} pools a feature map: it has no registers, starts or positions of tokens"
        )
    return ConvTower(arch, n, m, projection, class_tokens, weights)


def _built_by(name: str) -> type[Any] | None:
    """timm's VisionTransformer or Eva, the classes that take any number of prefix tokens, where it builds the model.

    Raises:
        UserError: for a name that timm lacks.
    """
    import timm
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}; timm.list_models('vit*') lists the ViTs")
    built = get_type_hints(timm.model_entrypoint(name)).get("return")
    return built if isinstance(built, type) and issubclass(built, VisionTransformer | Eva) else None


def _timm_vit(arch: Architecture, prefix: int, positions: bool = True) -> Any:
    from timm.models.eva import Eva

    built = _built_by(arch.timm_name)
    if built is None:
        raise UserError(f"timm model {arch.timm_name!r} is no plain ViT and has no class tokens to read")
    # Registers are the only prefix tokens of which timm takes any number; a norm behind the pooling, which is never
    # called, would replace the last norm.
    names = ("num_reg_tokens", "use_fc_norm") if issubclass(built, Eva) else ("reg_tokens", "fc_norm")
    return timm_model(
        arch.timm_name, img_size=arch.image_size, patch_size=arch.patch_size, embed_dim=arch.vision_width,
        depth=arch.vision_layers, num_heads=arch.vision_heads, class_token=False, no_embed_class=not positions,
        global_pool="avg", patch_drop_rate=arch.patch_dropout, **dict(zip(names, (prefix, False), strict=True)),
    )  # fmt: skip


class TextTower(Tower):
    """open_clip's transformer blocks, bidirectional, behind m class tokens: ids (B, L) to features (B, m, n).

    Padding is masked, so a caption's features do not depend on the length its batch is cut to.

    Examples:
        >>> import torch
        >>> from oblique_clip.config import Architecture
        >>> from oblique_clip.towers import TextTower
        >>> tower = TextTower(Architecture(), vocab_size=4096, n=16, m=8).eval()
        >>> ids = torch.tensor([[5, 9, 4095, 0, 0, 0]])
        >>> tower(ids).shape
        torch.Size([1, 8, 16])
        >>> torch.allclose(tower(ids), tower(ids[:, :3]), atol=1e-5)  # padding changes nothing
        True
    """

    def __init__(
        self,
        arch: Architecture,
        vocab_size: int,
        n: int,
        m: int,
        projection: Projection = "per_token",
        class_tokens: Literal["free", "oblique"] = "free",
        registers: int = 0,
        start: Literal["apart", "together"] = "apart",
        positions: bool = True,
    ) -> None:
        super().__init__()
        width = arch.text_width
        self.num_tokens = 1 if projection == "reshaped" else m
        self.shared_attention = arch.shared_attention
        self.context_length, self.vocab_size = arch.context_length, vocab_size
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.class_tokens = make_class_tokens(self.num_tokens, width, class_tokens, registers, start)
        self.token_positions = positions
        places = self.prefix * positions + arch.context_length
        self.positional_embedding = nn.Parameter(torch.randn(places, width) * 0.01)
        self.transformer = Transformer(width, arch.text_layers, arch.text_heads)
        self.ln_final = LayerNorm(width)
        self.projection = TokenProjection(projection, width, n, m)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        init_blocks(self.transformer.resblocks, width, OPEN_CLIP_WEIGHTS)

    def forward(self, ids: Tensor) -> Tensor:
        tokens, words = self.class_tokens.expand(len(ids), -1, -1), self.token_embedding(ids)
        if self.token_positions:
            x = torch.cat([tokens, words], 1)
            x = x + self.positional_embedding[: x.shape[1]]
        else:
            x = torch.cat([tokens, words + self.positional_embedding[: words.shape[1]]], 1)
        mask = F.pad(is_text(ids), (self.prefix, 0), value=True)
        packing = packing_of(mask)
        x = run_blocks(
            self.transformer.resblocks, packing.pack(x) if packing else x,
            first_places(self.num_tokens, packing),
            key_mask=one_share(mask, self.num_tokens, x.dtype) if self.shared_attention else mask, packing=packing,
            checkpointing=self.transformer.grad_checkpointing,
        )  # fmt: skip
        return self.projection(self.ln_final(x))

    @property
    def prefix(self) -> int:
        """Tokens in front of the caption: class tokens and registers."""
        return len(self.class_tokens)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.transformer.grad_checkpointing = enable

    def groups(self) -> list[list[Part]]:
        stem: list[Part] = [self.token_embedding, self.class_tokens, self.positional_embedding]
        return grouped(stem, self.transformer.resblocks, self.ln_final, self.projection)


def one_share(mask: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """What to add to the logits of keys (B, L) where `mask` is true, so that the first `count` weigh as much as one."""
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)
    added[:, :count] -= math.log(count)
    return added


def is_text(ids: Tensor) -> Tensor:
    """True (B, L) up to the last token that is not padding: within a caption, id 0 is a token ("!" in CLIP's)."""
    return (ids != PAD_ID).flip(-1).cumsum(-1).flip(-1) > 0


def init_blocks(blocks: nn.ModuleList, width: int, weights: tuple[str, str, str, str]) -> None:
    """CLIP's initialisation of text blocks, by width and depth (open_clip, `TextTransformer.init_parameters`).

    Args:
        weights: their names within a block, as in `OPEN_CLIP_WEIGHTS`.
    """
    inner = width**-0.5 * (2 * len(blocks)) ** -0.5
    deviations = (width**-0.5, inner, (2 * width) ** -0.5, inner)
    within = [dict(block.named_parameters()) for block in blocks]
    # Name by name, then block by block: the order of the draws decides what a seed starts with.
    for name, std in zip(weights, deviations, strict=True):
        for parameters in within:
            # Some ViTs of timm have other parts (gated or parallel), which keep timm's start.
            if name in parameters:
                nn.init.normal_(parameters[name], std=std)


class OpenClipImageTower(Tower):
    """open_clip's own `VisionTransformer`, its blocks run by `run_blocks`; features (B, 1, embed_dim).

    Args:
        trunk: read at its class token.
        preprocess: what its pictures go through, where it was trained elsewhere; None for the transform of CLIP.
        patch_dropout: see `Architecture`; open_clip's own is not run.
        tokens: prefix tokens of the trunk, all of them read.

    Examples:
        >>> import torch
        >>> from oblique_clip.config import Architecture
        >>> from oblique_clip.towers import OpenClipImageTower
        >>> OpenClipImageTower.fresh(Architecture(), embed_dim=128)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 1, 128])
    """

    def __init__(
        self, trunk: OpenClipVision, preprocess: Preprocess | None = None, patch_dropout: float = 0.0, tokens: int = 1
    ) -> None:
        super().__init__()
        self.trunk, self.preprocess = trunk, preprocess
        self.image_size = (int(trunk.image_size[0]), int(trunk.image_size[1]))
        self.image_mean, self.image_std = (preprocess.mean, preprocess.std) if preprocess else (CLIP_MEAN, CLIP_STD)
        self.num_tokens = self.prefix = tokens
        # timm's, as in the other forms: open_clip's would wait for a GPU at every step.
        self.patch_drop = PatchDropout(patch_dropout, num_prefix_tokens=tokens) if patch_dropout else nn.Identity()

    @classmethod
    def fresh(cls, arch: Architecture, embed_dim: int) -> OpenClipImageTower:
        """A tower of these sizes with open_clip's start.

        Raises:
            UserError: where `arch` asks for weights of timm.
        """
        if arch.pretrained is not None:
            raise UserError("form 'clip' is open_clip's own model: --pretrained is for the timm towers of other forms")
        trunk = OpenClipVision(
            image_size=arch.image_size, patch_size=arch.patch_size, width=arch.vision_width, layers=arch.vision_layers,
            heads=arch.vision_heads, mlp_ratio=4.0, output_dim=embed_dim, norm_layer=LayerNorm,
        )  # fmt: skip
        return cls(trunk, patch_dropout=arch.patch_dropout)

    def forward(self, images: Tensor) -> Tensor:
        trunk = self.trunk
        x = run_blocks(
            self.blocks, self.embed(images), first_places(1),
            checkpointing=trunk.transformer.grad_checkpointing,
        )  # fmt: skip
        return trunk.ln_post(x) @ trunk.proj

    def embed(self, images: Tensor) -> Tensor:
        """What the first block takes: the class token and patches, (B, 1 + patches, width)."""
        trunk = self.trunk
        x = trunk.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([trunk.class_embedding.expand(len(x), 1, -1), x], 1) + trunk.positional_embedding
        return trunk.ln_pre(self.patch_drop(x))

    is_plain = True

    def key_mask(self, x: Tensor) -> Tensor | None:
        """See `ImageTower`: its class token is one."""
        return None

    @property
    def blocks(self) -> nn.ModuleList:
        return self.trunk.transformer.resblocks

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.trunk.grid_size

    @property
    def places(self) -> int:
        """Positions of the picture beside the tokens."""
        return math.prod(self.grid)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.trunk.set_grad_checkpointing(enable)

    def groups(self) -> list[list[Part]]:
        trunk = self.trunk
        stem = [trunk.conv1, trunk.class_embedding, trunk.positional_embedding, trunk.ln_pre]
        return grouped(stem, trunk.transformer.resblocks, trunk.ln_post, trunk.proj)


class OpenClipTextTower(Tower):
    """open_clip's own causal `TextTransformer`, read at the end token, on batches of any length up to its context.

    Attention is causal and the end token stands last, so cutting the padding behind it changes nothing.

    Examples:
        >>> import torch
        >>> from oblique_clip.config import Architecture
        >>> from oblique_clip.towers import OpenClipTextTower
        >>> tower = OpenClipTextTower.fresh(Architecture(), vocab_size=4096, embed_dim=128).eval()
        >>> ids = torch.tensor([[5, 9, 4095, 0, 0, 0]])
        >>> tower(ids).shape, torch.allclose(tower(ids), tower(ids[:, :3]), atol=1e-5)
        (torch.Size([1, 1, 128]), True)
    """

    def __init__(self, trunk: OpenClipText) -> None:
        super().__init__()
        self.context_length, self.vocab_size = int(trunk.context_length), int(trunk.vocab_size)
        self.num_tokens = 1
        self.trunk = trunk

    @classmethod
    def fresh(cls, arch: Architecture, vocab_size: int, embed_dim: int) -> OpenClipTextTower:
        """A tower of these sizes with open_clip's start."""
        trunk = OpenClipText(
            context_length=arch.context_length, vocab_size=vocab_size, width=arch.text_width, heads=arch.text_heads,
            layers=arch.text_layers, output_dim=embed_dim, norm_layer=LayerNorm,
        )  # fmt: skip
        return cls(trunk)

    def forward(self, ids: Tensor) -> Tensor:
        trunk = self.trunk
        x = trunk.token_embedding(ids) + trunk.positional_embedding[: ids.shape[1]]
        end = ids.argmax(-1)
        used = torch.arange(ids.shape[1], device=ids.device) <= end[:, None]
        packing = packing_of(used)
        x = run_blocks(
            trunk.transformer.resblocks, packing.pack(x) if packing else x,
            one_place(end, packing), read_mask=used, causal=True, packing=packing,
            checkpointing=trunk.transformer.grad_checkpointing,
        )  # fmt: skip
        return trunk.ln_final(x) @ trunk.text_projection

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.trunk.set_grad_checkpointing(enable)

    def groups(self) -> list[list[Part]]:
        trunk = self.trunk
        stem = [trunk.token_embedding, trunk.positional_embedding]
        return grouped(stem, trunk.transformer.resblocks, trunk.ln_final, trunk.text_projection)
