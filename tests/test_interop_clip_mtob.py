"""Checkpoints of the official repository, against its layout and forward restated here in plain torch.

The restatement was written from a reading of minogame/clip-mtob's `modeling_clip_helper_mtob.py` and
`modeling_clip_helper_ref.py`: the same names of weights, the same steps.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import gradients, relative_error
from PIL import Image
from torch import Tensor, nn

from oblique_clip.checkpoint import Loaded, config_of, load
from oblique_clip.data.images import decode_square
from oblique_clip.errors import UserError
from oblique_clip.evaluate.encode import encode_texts
from oblique_clip.interop.clip_mtob import BertTokenizer, load_address, load_clip_mtob
from oblique_clip.interop.hub import save_pretrained
from oblique_clip.interop.open_clip import to_open_clip
from oblique_clip.model import preprocess_of
from oblique_clip.tokenizer import cut_to_longest

SAME = 1e-5
"""float32 here against float64 there; the promise is 1e-4."""
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "apple", "##s", "cafe", ",", "水", "##d"]
CONTEXT = 9


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": nn.GELU(), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential()
        for name, layer in layers.items():
            self.mlp.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Visual(nn.Module):
    def __init__(self, n: int, m: int, width: int, layers: int, grid: int, patch: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(m, width))
        self.positional_embedding = nn.Parameter(torch.empty(grid**2 + m, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.proj = nn.Parameter(torch.empty(width, n))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).mT
        tokens = self.class_embedding.repeat(len(images), 1, 1)
        x = self.ln_pre(torch.cat([tokens, patches], 1) + self.positional_embedding)
        x = self.transformer.resblocks(x)[:, : len(self.class_embedding)]
        return self.ln_post(x) @ self.proj


class Official(nn.Module):
    def __init__(
        self, n: int, m: int, vision: tuple[int, int], text: tuple[int, int], grid: int = 3, patch: int = 4
    ) -> None:
        super().__init__()
        self.m, width = m, text[0]
        self.visual = Visual(n, m, *vision, grid, patch)
        self.transformer = nn.Module()
        layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, "gelu")
        self.transformer.encoder = nn.TransformerEncoder(layer, text[1], enable_nested_tensor=False)
        self.token_embedding = nn.Embedding(len(PIECES), width)
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT + m - 1, width))
        self.ln_embedding, self.ln_final = nn.LayerNorm(width), nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, n))
        self.logit_scale = nn.Parameter(torch.tensor(3.3))
        for name, parameter in self.named_parameters():
            if name != "logit_scale":
                nn.init.normal_(parameter, mean=float("ln_" in name and "weight" in name), std=0.2)

    def encode_text(self, ids: Tensor, attended: Tensor) -> Tensor:
        ids = torch.cat([ids[:, [0] * (self.m - 1)], ids], 1)
        attended = torch.cat([attended[:, [0] * (self.m - 1)], attended], 1)
        x = self.ln_embedding(self.token_embedding(ids) + self.positional_embedding)
        x = self.transformer.encoder(x.transpose(0, 1), src_key_padding_mask=attended == 0).transpose(0, 1)
        return self.ln_final(x)[:, : self.m] @ self.text_projection

    def forward(self, images: Tensor, ids: Tensor, attended: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y = self.visual(images), self.encode_text(ids, attended)
        x, y = x / x.norm(dim=-1, keepdim=True), y / y.norm(dim=-1, keepdim=True)
        return x, y, torch.einsum("amn,bmn->ab", x, y)


SHAPES = {
    "16 tokens of 32": Official(32, 16, (128, 2), (64, 3)),
    "reference": Official(512, 1, (64, 2), (128, 2)),
    "odd": Official(5, 3, (192, 1), (64, 1), grid=2, patch=5),
    "two tokens, one block": Official(8, 2, (64, 1), (192, 1), grid=1, patch=8),
}
TEXTS = ["red apples, a red apple", "Café 水", "a", ""]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mtob") / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return path


def saved(official: Official, folder: Path, change: Callable[[dict[str, Tensor]], object] = lambda w: w) -> Path:
    """A checkpoint as the official code saves it, its state dict changed in place or by what `change` gives."""
    path = folder / "official.pt"
    weights = dict(official.state_dict())
    torch.save(change(weights) or weights, path)
    return path


@pytest.fixture(params=SHAPES)
def both(request: pytest.FixtureRequest, tmp_path: Path, vocabulary: Path) -> tuple[Official, Loaded]:
    official = SHAPES[request.param].eval()
    return official, load_clip_mtob(saved(official, tmp_path), vocabulary)


def inputs(loaded: Loaded) -> tuple[Tensor, Tensor, Tensor]:
    """Images, token ids and which of these the official tokenizer marks as text."""
    size = loaded.preprocess.image_size
    images = torch.randn(3, 3, size, size)
    ids = loaded.tokenizer(TEXTS)
    end = (ids == PIECES.index("[SEP]")).int().argmax(1)
    return images, ids, (torch.arange(CONTEXT) <= end[:, None]).long()


@torch.no_grad()
def test_points_and_similarities_are_the_official_ones(both: tuple[Official, Loaded]) -> None:
    official, loaded = both
    images, ids, attended = inputs(loaded)
    twin = copy.deepcopy(official).double()
    x, y, similarity = twin(images.double(), ids, attended)
    model = loaded.model
    points, text_points = model.encode_image(images), model.encode_text(ids)
    assert relative_error(points, x) < SAME
    assert relative_error(text_points, y) < SAME
    assert relative_error(model.topology.similarity(points, text_points), similarity) < SAME
    assert model.logit_scale == official.logit_scale
    m, n = x.shape[1:]
    assert model.topology.spec == (f"oblique({n},{m})" if m > 1 else f"sphere({n})")


@torch.no_grad()
def test_features_do_not_depend_on_the_padding(both: tuple[Official, Loaded]) -> None:
    """Evaluation cuts its batches; the official code always fills the context."""
    official, loaded = both
    _, ids, attended = inputs(loaded)
    reference = official.encode_text(ids, attended)
    assert cut_to_longest(ids[1:]).shape[1] < CONTEXT
    assert relative_error(loaded.model.encode_text(cut_to_longest(ids[1:]), normalize=False), reference[1:]) < SAME
    found = encode_texts(loaded.model, loaded.tokenizer, TEXTS)
    assert relative_error(found, loaded.model.topology.project(reference)) < SAME


def test_training_reaches_the_same_gradients(both: tuple[Official, Loaded]) -> None:
    """Of every weight, with and without recomputation; torch's layers take another path without gradient."""
    official, loaded = both
    images, ids, attended = inputs(loaded)
    x, y, _ = official(images, ids, attended)
    expected = gradients(x, official.visual.class_embedding, official.visual.proj)
    expected += gradients(y, official.token_embedding.weight, official.text_projection)
    model = loaded.model.train()
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        visual, text = model.visual, model.text
        found = gradients(model.encode_image(images), visual.trunk.reg_token, visual.projection.weight)
        found += gradients(model.encode_text(ids), text.token_embedding.weight, text.projection.weight)
        for ours, theirs in zip(found, expected, strict=True):
            assert relative_error(ours.view_as(theirs), theirs) < 1e-4


def test_pictures_are_cut_as_official_ones_are(tmp_path: Path) -> None:
    """Whole files and the squares that evaluation reads both go through the official transform."""
    from torchvision import transforms as T

    # A copy of the model brings the same transform.
    preprocess = preprocess_of(copy.deepcopy(load_clip_mtob(saved(SHAPES["16 tokens of 32"], tmp_path), None).model))
    size = int(preprocess.image_size)
    official = T.Compose([T.Resize(size, T.InterpolationMode.BICUBIC), T.CenterCrop(size), T.ToTensor(),
        T.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))])  # fmt: skip
    pixels = torch.randint(0, 256, (45, 61, 3), dtype=torch.uint8).numpy()
    picture = Image.fromarray(pixels)
    assert relative_error(preprocess(picture), official(picture)) < 1e-6
    square = decode_square(picture, preprocess.image_size)
    assert relative_error(preprocess.batch(square[None])[0], official(picture)) < 1e-6


def test_what_a_checkpoint_can_do_without_a_configuration_is_told(tmp_path: Path) -> None:
    """It has none, so it is not saved as ours; its model goes to open_clip."""
    path = saved(SHAPES["reference"], tmp_path)
    for use in (config_of, lambda source: save_pretrained(source, tmp_path / "folder")):
        with pytest.raises(UserError, match="evaluate, embed, search and explain take it") as caught:
            use(f"clip-mtob:{path}")
        assert "\n" not in str(caught.value)
    model = load(f"clip-mtob:{path}").model
    assert to_open_clip(model).encode_image(torch.zeros(1, 3, 12, 12)).shape == (1, 512)


def test_locking_leaves_the_last_groups(tmp_path: Path) -> None:
    model = load_clip_mtob(saved(SHAPES["16 tokens of 32"], tmp_path), None).model
    model.lock_text_tower(unlocked_layers=2)
    free = {name.split(".")[0] for name, value in model.text.named_parameters() if value.requires_grad}
    assert free == {"layers", "ln_final", "projection"}
    assert not any(value.requires_grad for value in model.text.layers[:-1].parameters())


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "state_dict": lambda w: {"epoch": 3, "state_dict": w},
    "model": lambda w: {"model": w, "optimizer": {"lr": 1.0}},
    "module": lambda w: {f"module.{name}": value for name, value in w.items()},
    "both": lambda w: {"state_dict": {f"module.{name}": value for name, value in w.items()}},
    "half": lambda w: {name: value.half() for name, value in w.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_usual_wrappings_hold_the_same_weights(tmp_path: Path, vocabulary: Path, wrapping: str) -> None:
    official = SHAPES["odd"]
    plain = load_clip_mtob(saved(official, tmp_path), None).model.state_dict()
    path = saved(official, tmp_path, WRAPPINGS[wrapping])
    wrapped = load_address(f"{path},{vocabulary}").model.state_dict()
    assert set(wrapped) == set(plain)
    # float16 keeps 11 bits.
    assert all(relative_error(wrapped[k], plain[k]) <= (5e-4 if wrapping == "half" else 0) for k in plain)
    assert all(value.dtype == torch.float32 for value in wrapped.values())


def test_word_pieces_are_berts(vocabulary: Path) -> None:
    tokenizer = BertTokenizer(vocabulary, 8)

    def pieces(text: str, length: int | None = None) -> list[str]:
        (row,) = tokenizer(text, length).tolist()
        return [PIECES[i] for i in row]

    pad = "[PAD]"
    assert pieces("Red apples,a") == ["[CLS]", "red", "apple", "##s", ",", "a", "[SEP]", pad]
    assert pieces("CAFÉ\t水水") == ["[CLS]", "cafe", "水", "水", "[SEP]", pad, pad, pad]
    assert pieces("zebra a" + "d" * 101) == ["[CLS]", "[UNK]", "[UNK]", "[SEP]", *[pad] * 4]
    assert pieces("a red apple a red apple a red apple") == ["[CLS]", *["a", "red", "apple"] * 2, "[SEP]"]
    assert pieces("a red apple", 4) == ["[CLS]", "a", "red", "[SEP]"]
    assert pieces("[SEP] ##s") == ["[CLS]", "[SEP]", "[UNK]", "[UNK]", "[UNK]", "[SEP]", pad, pad]
    assert (tokenizer.vocab_size, tokenizer.context_length) == (len(PIECES), 8)
    ids = tokenizer(["a", "red"])
    assert ids.dtype == torch.int64 and ids.shape == (2, 8)


def test_images_need_no_vocabulary_and_texts_say_what_they_need(tmp_path: Path) -> None:
    path = saved(SHAPES["odd"], tmp_path)
    model, preprocess, tokenizer = load_address(str(path))
    assert torch.isfinite(model.encode_image(torch.randn(1, 3, preprocess.image_size, preprocess.image_size))).all()
    with pytest.raises(UserError, match=r"vocab\.txt") as caught:
        encode_texts(model, tokenizer, ["a"])
    assert "\n" not in str(caught.value)


def _without(*names: str) -> Callable[[dict[str, Tensor]], object]:
    def change(weights: dict[str, Tensor]) -> None:
        for name in names:
            del weights[name]

    return change


def _with(name: str, *shape: int) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.update({name: torch.zeros(shape)})


MISTAKES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "a missing size": (_without("visual.proj"), r"has no visual\.proj; give a whole state dict"),
    "no norm on embeddings": (_without("ln_embedding.weight"), r"has no ln_embedding\.weight"),
    "a missing weight": (_without("transformer.encoder.layers.0.norm1.bias"), r"lacks 1 weights, transformer\.encoder"),
    "an unknown weight": (_with("visual.ln_extra", 4), r"has unknown 1 weights, visual\.ln_extra"),
    "m of another model": (_with("visual.class_embedding", 2, 192), r"2 class tokens .* leave 5 patches, no square"),
    "too large an m": (_with("visual.class_embedding", 7, 192), r"leave 0 patches, no square"),
    "more tokens than text positions": (_with("positional_embedding", 3, 64), r"3 class tokens .* leave 1 text pos"),
    "CLIP's one token": (_with("visual.class_embedding", 192), r"has shape \(192,\)"),
    "projections that differ": (_with("text_projection", 64, 6), r"text_projection has shape \(64, 6\)"),
    "a width without heads": (_with("visual.class_embedding", 3, 32), "32 wide"),
    "no state dict": (lambda w: [1, 2], "holds no state dict"),
    "not tensors alone": (lambda w: {**w, "epoch": 3}, "holds no state dict"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_checkpoints_are_one_line(tmp_path: Path, mistake: str) -> None:
    change, message = MISTAKES[mistake]
    path = saved(SHAPES["odd"], tmp_path, change)
    with pytest.raises(UserError, match=message) as caught:
        load_clip_mtob(path, None)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    import open_clip

    theirs = open_clip.CLIP(
        8, dict(layers=1, width=64, head_width=64, patch_size=4, image_size=8),
        dict(context_length=9, vocab_size=20, width=64, heads=1, layers=1),
    )  # fmt: skip
    torch.save(theirs.state_dict(), tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"load it as open_clip:NAME/FILE"):
        load_clip_mtob(tmp_path / "x.pt", None)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\n".join(p.encode() for p in PIECES[:-1]), "has 12 word pieces, .* was trained with 13"),
        (b"red\napple\n", r"is no BERT vocabulary: it has no \[PAD\]"),
        (b"a\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n", r"does not start with \[PAD\]"),
        (b"\xff\xfe\x00", "no vocabulary in UTF-8"),
        (None, "cannot read the vocabulary"),
    ],
)
def test_wrong_vocabularies_are_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_clip_mtob(saved(SHAPES["odd"], tmp_path), path)
    assert "\n" not in str(caught.value)
