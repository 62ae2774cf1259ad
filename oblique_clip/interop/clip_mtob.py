"""Checkpoints of the official repository of arXiv 2209.02127, github.com/minogame/clip-mtob, as a `DualEncoder`.

Its two model files (read at commit 15fa1ec) say:

- image: CLIP's ViT with m class tokens in front, each with its own position; GELU, not QuickGELU; width // 64 heads;
  the last norm and one projection for all class tokens. This is `ImageTower` with a shared projection.
- text: BERT's word pieces, [CLS] tiled m times and told apart by position alone; a norm on the sum of embeddings,
  torch's post-norm layers that look both ways past the padding, a last norm and one projection for the class tokens.
- similarity: the sum over tokens of cosines. `logit_scale` is stored and trained, but the released forward does not
  apply it: its output is `model.topology.similarity`, and `model.get_logits` is that times the scale.
- pictures (its `run_example.py`): the shorter side resized by a bicubic filter, then the middle square.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..checkpoint import Loaded
from ..config import Architecture
from ..data.images import Preprocess, Side
from ..errors import UserError
from ..model import DualEncoder, preprocess_of
from ..temperature import LearnedTemperature
from ..tokenizer import PAD_ID, Tokenizer
from ..topology import parse_topology
from ..towers import CLIP_MEAN, CLIP_STD, ImageTower, Part, TokenProjection, Tower, grouped, is_text
from ..weights_file import read_state_dict
from .open_clip import Cut

HEAD_WIDTH = 64
OFFICIAL_CUT = Cut("bicubic", "shortest", 0)
HOME = "github.com/minogame/clip-mtob"
VOCABULARY = f"ERNIE-BASE-EN-2.0/vocab.txt of {HOME}"
# Ours, then the official name: the start of a weight's name, and what follows within a block of the image tower.
_STARTS = {
    "visual.trunk.blocks.": "visual.transformer.resblocks.",
    "visual.trunk.patch_embed.proj.": "visual.conv1.",
    "visual.trunk.reg_token": "visual.class_embedding",
    "visual.trunk.pos_embed": "visual.positional_embedding",
    "visual.trunk.norm_pre.": "visual.ln_pre.",
    "visual.trunk.norm.": "visual.ln_post.",
    "visual.projection.weight": "visual.proj",
    "text.layers.": "transformer.encoder.layers.",
    "text.projection.weight": "text_projection",
    "text.": "",
    "temperature.log_scale": "logit_scale",
}
_WITHIN = {
    ".norm1.": ".ln_1.",
    ".attn.qkv.": ".attn.in_proj_",
    ".attn.proj.": ".attn.out_proj.",
    ".norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}


def load_address(address: str) -> Loaded:
    """`load_clip_mtob` of a text "PATH" or "PATH,VOCABULARY"."""
    path, comma, vocabulary = address.rpartition(",")
    return load_clip_mtob(Path(path), Path(vocabulary)) if comma else load_clip_mtob(Path(address), None)


def load_clip_mtob(path: Path, vocabulary: Path | None) -> Loaded:
    """An official checkpoint in evaluation mode on the CPU, its preprocessing and its tokenizer.

    Sizes come from the shapes: m class tokens of n numbers live on `oblique(n,m)`, a single one on `sphere(n)`.

    Args:
        path: a file of a state dict, see `read_state_dict`: no code in it runs.
        vocabulary: the BERT vocabulary that it was trained with, a word piece a line. Without one, images can be
            encoded and texts cannot.

    Raises:
        UserError: for a file that cannot be read, of another architecture, with weights missing, unknown or of sizes
            that do not fit each other, or for a vocabulary of another size.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from oblique_clip.interop.clip_mtob import load_clip_mtob
        >>> path = Path(tempfile.mkdtemp()) / "official.pt"
        >>> torch.save({"visual.class_embedding": torch.zeros(16, 768)}, path)
        >>> load_clip_mtob(path, vocabulary=None)  # one weight of some hundred
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: ...official.pt is no clip-mtob checkpoint, or not a whole one: it has no
        visual.positional_embedding; give a whole state dict of a model of github.com/minogame/clip-mtob
    """
    weights = read_state_dict(path)
    sizes = _sizes(weights, path)
    # The file decides before anything large is built.
    tokenizer = _tokenizer(vocabulary, sizes, path)
    topology = parse_topology(f"oblique({sizes.n},{sizes.m})" if sizes.m > 1 else f"sphere({sizes.n})")
    towers = ImageTower(sizes.arch, sizes.n, sizes.m, "shared"), PostNormTextTower(*sizes)
    # The official code has no clamp.
    model = DualEncoder(*towers, topology, LearnedTemperature(1.0, math.inf))
    model.load_state_dict(_renamed(weights, model.state_dict(), path))
    model.eval()
    model.visual.preprocess = Preprocess(Side(sizes.arch.image_size, OFFICIAL_CUT), CLIP_MEAN, CLIP_STD, "bicubic")
    return Loaded(model, preprocess_of(model), tokenizer)


class PostNormTextTower(Tower):
    """The official text tower: ids (B, L) of BERT's word pieces to features (B, m, n).

    Padding is masked, so a caption's features do not depend on the length its batch is cut to.

    Args:
        arch: sizes; `arch.context_length` counts ids, the m - 1 copies of the first one come on top.

    Examples:
        >>> import torch
        >>> from oblique_clip.config import Architecture
        >>> from oblique_clip.interop.clip_mtob import PostNormTextTower
        >>> tower = PostNormTextTower(Architecture(), vocab_size=100, n=16, m=8).eval()
        >>> tower(torch.tensor([[2, 40, 41, 3, 0, 0]])).shape
        torch.Size([1, 8, 16])
    """

    def __init__(self, arch: Architecture, vocab_size: int, n: int, m: int) -> None:
        super().__init__()
        width = arch.text_width
        self.num_tokens = m
        self.context_length, self.vocab_size = arch.context_length, vocab_size
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(m - 1 + arch.context_length, width) * 0.01)
        self.ln_embedding = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, arch.text_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True
            )
            for _ in range(arch.text_layers)
        )
        self.ln_final = nn.LayerNorm(width)
        self.projection = TokenProjection("shared", width, n, m)
        self._checkpointing = False

    def forward(self, ids: Tensor) -> Tensor:
        tiled = torch.cat([ids[:, :1].expand(-1, self.num_tokens - 1), ids], 1)
        x = self.ln_embedding(self.token_embedding(tiled) + self.positional_embedding[: tiled.shape[1]])
        # A row of padding alone keeps its class tokens: attention over nothing would be NaN.
        padding = ~F.pad(is_text(ids)[:, 1:], (self.num_tokens, 0), value=True)
        for layer in self.layers:
            if self._checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, src_key_padding_mask=padding, use_reentrant=False)
            else:
                x = layer(x, src_key_padding_mask=padding)
        return self.projection(self.ln_final(x[:, : self.num_tokens]))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self._checkpointing = enable

    def groups(self) -> list[list[Part]]:
        stem: list[Part] = [self.token_embedding, self.positional_embedding, self.ln_embedding]
        return grouped(stem, self.layers, self.ln_final, self.projection)


class BertTokenizer:
    """BERT's word pieces in lower case, without accents: [CLS] first, [SEP] last, padded with 0.

    As in the official code, a word "[SEP]" in a text is the token. Unlike it, code points that Unicode has not assigned
    are not dropped, and a capital sigma has one lower case at any place of a word.

    Args:
        vocabulary: a word piece a line, in the order of their ids; [PAD] is the first.

    Raises:
        UserError: for a file that is no such vocabulary.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip.interop.clip_mtob import BertTokenizer
        >>> path = Path(tempfile.mkdtemp()) / "vocab.txt"
        >>> with path.open("w") as vocabulary:
        ...     print("[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "apple", "##s", sep=chr(10), file=vocabulary)
        >>> BertTokenizer(path, context_length=7)(["Red apples"]).tolist()
        [[2, 4, 5, 6, 3, 0, 0]]
    """

    def __init__(self, vocabulary: Path, context_length: int) -> None:
        from tokenizers import Tokenizer as Backend
        from tokenizers import models, normalizers, pre_tokenizers

        lines = _lines(vocabulary)
        pieces = {piece: number for number, piece in enumerate(lines)}
        missing = [piece for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if piece not in pieces]
        if missing or pieces["[PAD]"] != PAD_ID:
            wrong = f"has no {missing[0]}" if missing else "does not start with [PAD]"
            raise UserError(f"{vocabulary} is no BERT vocabulary: it {wrong}; the official one is {VOCABULARY}")
        self._backend = Backend(models.WordPiece(pieces, unk_token="[UNK]"))
        self._backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._backend.add_special_tokens(
            [piece for piece in pieces if re.fullmatch(r"\[(PAD|UNK|CLS|SEP|MASK)\]", piece)]
        )
        self._first, self._last = pieces["[CLS]"], pieces["[SEP]"]
        self.context_length, self.vocab_size = context_length, len(lines)

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        length = context_length or self.context_length
        batch = [texts] if isinstance(texts, str) else list(texts)
        ids = torch.full((len(batch), length), PAD_ID, dtype=torch.long)
        for row, encoding in enumerate(self._backend.encode_batch(batch, add_special_tokens=False)):
            tokens = [self._first, *encoding.ids[: length - 2], self._last]
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids


class NoVocabulary:
    """Stands where a checkpoint's tokenizer would, and says what is missing when a text comes."""

    def __init__(self, path: Path, context_length: int, vocab_size: int) -> None:
        self._path = path
        self.context_length, self.vocab_size = context_length, vocab_size

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        raise UserError(
            f"{self._path} comes without its vocabulary, so no text can be read: "
            f"name a vocab.txt behind a comma, clip-mtob:{self._path},vocab.txt (the official one is {VOCABULARY})"
        )


class _Sizes(NamedTuple):
    arch: Architecture
    vocab_size: int
    n: int
    m: int


def _sizes(weights: dict[str, Tensor], path: Path) -> _Sizes:
    """Every size of a checkpoint, by its shapes; heads have 64 channels, as in CLIP."""
    m, vision_width = _shape(weights, "visual.class_embedding", 2, path)
    places, _ = _shape(weights, "visual.positional_embedding", 2, path)
    _, _, patch_size, _ = _shape(weights, "visual.conv1.weight", 4, path)
    _, n = _shape(weights, "visual.proj", 2, path)
    _shape(weights, "ln_embedding.weight", 1, path)
    vocab_size, text_width = _shape(weights, "token_embedding.weight", 2, path)
    text_places, _ = _shape(weights, "positional_embedding", 2, path)
    patches, context_length = places - m, text_places - (m - 1)
    side = math.isqrt(max(0, patches))
    if side == 0 or side * side != patches or context_length < 2:
        wrong = f"{context_length} text positions" if context_length < 2 else f"{patches} patches, no square"
        raise UserError(
            f"{path}: {m} class tokens (visual.class_embedding) leave {wrong}: the class tokens and the positional "
            "embeddings must come from one checkpoint"
        )
    arch = Architecture(
        image_size=side * patch_size, patch_size=patch_size,
        vision_width=vision_width, vision_layers=_depth(weights, "visual.transformer.resblocks.", path),
        vision_heads=_heads(vision_width, "image", path),
        text_width=text_width, text_layers=_depth(weights, "transformer.encoder.layers.", path),
        text_heads=_heads(text_width, "text", path), context_length=context_length,
    )  # fmt: skip
    return _Sizes(arch, vocab_size, n, m)


def _shape(weights: dict[str, Tensor], name: str, axes: int, path: Path) -> tuple[int, ...]:
    if name not in weights:
        raise UserError(f"{path} is no clip-mtob checkpoint, or not a whole one: it has no {name}; {_advice(weights)}")
    if weights[name].ndim != axes:
        found = tuple(weights[name].shape)
        raise UserError(
            f"{path}: {name} has shape {found}, which clip-mtob's has not ({axes} axes); {_advice(weights)}"
        )
    return tuple(weights[name].shape)


def _advice(weights: dict[str, Tensor]) -> str:
    if any(name.startswith("transformer.resblocks.") for name in weights):
        return "it looks like a model of OpenAI or open_clip: load it as open_clip:NAME/FILE"
    return f"give a whole state dict of a model of {HOME}"


def _depth(weights: dict[str, Tensor], start: str, path: Path) -> int:
    numbers = {name.removeprefix(start).split(".")[0] for name in weights if name.startswith(start)}
    if not numbers:
        raise UserError(f"{path} is no clip-mtob checkpoint: it has no {start}0; {_advice(weights)}")
    return len(numbers)


def _heads(width: int, tower: str, path: Path) -> int:
    heads = width // HEAD_WIDTH
    if heads == 0 or width % heads:
        raise UserError(
            f"{path}: the {tower} tower is {width} wide, which width // {HEAD_WIDTH} heads (the official count) "
            f"do not divide: give a model whose widths are multiples of {HEAD_WIDTH}"
        )
    return heads


def _official(name: str) -> str:
    """The name in an official checkpoint of a weight of the `DualEncoder`."""
    for ours, theirs in _STARTS.items():
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    if name.startswith("visual."):
        for ours, theirs in _WITHIN.items():
            name = name.replace(ours, theirs)
    return name


def _renamed(weights: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """An official checkpoint's weights under the names and in the shapes of `wanted`, in float32."""
    names = {ours: _official(ours) for ours in wanted}
    missing = [name for name in names.values() if name not in weights]
    unknown = sorted(set(weights) - set(names.values()))
    if missing or unknown:
        kind, odd = ("lacks", missing) if missing else ("has unknown", unknown)
        raise UserError(f"{path} {kind} {len(odd)} weights, {odd[0]} for one; {_advice(weights)}")
    for ours, name in names.items():
        # timm's positions and our projections have an axis of length one in front.
        found, right = tuple(weights[name].shape), tuple(wanted[ours].shape)
        if right not in (found, (1, *found)):
            raise UserError(f"{path}: {name} has shape {found}, the other weights ask for {right}; {_advice(weights)}")
    return {ours: weights[name].float().reshape(wanted[ours].shape) for ours, name in names.items()}


def _tokenizer(vocabulary: Path | None, sizes: _Sizes, path: Path) -> Tokenizer:
    if vocabulary is None:
        return NoVocabulary(path, sizes.arch.context_length, sizes.vocab_size)
    tokenizer = BertTokenizer(vocabulary, sizes.arch.context_length)
    if tokenizer.vocab_size != sizes.vocab_size:
        raise UserError(
            f"{vocabulary} has {tokenizer.vocab_size} word pieces, {path} was trained with {sizes.vocab_size}: "
            f"name its own vocabulary (the official one is {VOCABULARY})"
        )
    return tokenizer


def _lines(vocabulary: Path) -> list[str]:
    try:
        text = vocabulary.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the vocabulary {vocabulary}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{vocabulary} is no vocabulary in UTF-8; the official one is {VOCABULARY}") from error
    # Not splitlines: rare separators are word pieces.
    return [line.strip() for line in text.removesuffix("\n").split("\n")]
