"""DualEncoder through its interface: what each call returns, and what it refuses."""

import copy
import dataclasses

import open_clip
import pytest
import torch
from conftest import TINY, relative_error

from oblique_clip.config import ModelConfig, TemperatureConfig
from oblique_clip.errors import UserError
from oblique_clip.model import DualEncoder, create_model, preprocess_of
from oblique_clip.topology import parse_topology

SPECS = ["oblique(8,4)", "oblique(8,4)/geodesic", "sphere(32)", "euclidean(32)", "lorentz(32)"]
SAME = 1e-6
"""Two ways to the same float32 number."""

PICTURES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([[5, 6, 4095, 0], [7, 4095, 0, 0], [8, 9, 10, 4095]])


def config(topology: str = "oblique(8,4)", **changes: object) -> ModelConfig:
    form = "oblique" if topology.startswith("oblique") else "sphere"
    base = ModelConfig(form=form, topology=topology, embed_dim=32, arch=TINY)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def build(topology: str = "oblique(8,4)", **changes: object) -> DualEncoder:
    torch.manual_seed(0)
    return create_model(config(topology, **changes)).eval()


@pytest.mark.parametrize("spec", SPECS)
def test_encoding_gives_points_features_or_flat_vectors(spec: str) -> None:
    model = build(spec)
    for encode, batch in ((model.encode_image, PICTURES), (model.encode_text, IDS)):
        features, points = encode(batch, normalize=False), encode(batch)
        assert features.shape == (len(batch), model.topology.m, model.topology.n)
        assert torch.equal(points, model.topology.project(features))
        if model.topology.flat_is_exact:
            for normalize in (True, False):
                assert torch.equal(encode(batch, normalize=normalize, flat=True), model.topology.flat(points))
        else:
            with pytest.raises(UserError, match="flat"):
                encode(batch, flat=True)


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("spec", SPECS)
def test_logits_are_scale_times_similarity_plus_bias(spec: str, loss: str) -> None:
    model = create_model(config(spec), loss)
    images, texts = model.encode_image(PICTURES), model.encode_text(IDS)
    expected = model.logit_scale.exp() * model.topology.similarity(images, texts)
    assert (model.logit_bias is None) == (loss == "info_nce")
    if model.logit_bias is not None:
        expected = expected + model.logit_bias
    per_image, per_text = model.get_logits(PICTURES, IDS)
    assert relative_error(per_image, expected) < SAME
    assert torch.equal(per_text, per_image.T)


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
def test_forward_speaks_open_clips_conventions(loss: str) -> None:
    model = create_model(config(), loss)
    expected = {"image_features": model.encode_image(PICTURES), "text_features": model.encode_text(IDS)}
    expected["logit_scale"] = model.logit_scale.exp()
    if model.logit_bias is not None:
        expected["logit_bias"] = model.logit_bias
    for value, wanted in zip(model(PICTURES, IDS), expected.values(), strict=True):
        assert torch.equal(value, wanted)
    assert model(PICTURES)[1] is None
    assert model(text=IDS)[0] is None
    model.output_dict = True
    named = model(PICTURES, IDS)
    assert named.keys() == expected.keys()
    assert all(torch.equal(named[key], expected[key]) for key in expected)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 31, 32), (2, 3, 224, 224)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"\(B, 3, 32, 32\)"):
        build().encode_image(torch.zeros(shape))


def test_text_beyond_the_context_is_refused() -> None:
    model = build()
    assert model.context_length == TINY.context_length
    model.encode_text(torch.ones(1, TINY.context_length, dtype=torch.long))
    for wrong in (torch.ones(1, TINY.context_length + 1, dtype=torch.long), torch.ones(5, dtype=torch.long)):
        with pytest.raises(UserError, match=f"up to {TINY.context_length}"):
            model.encode_text(wrong)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_locking_a_tower_leaves_the_other_and_open_clips_signature(tower: str) -> None:
    model = build()
    lock, locked, other = {
        "image": (model.lock_image_tower, model.visual, model.text),
        "text": (model.lock_text_tower, model.text, model.visual),
    }[tower]
    lock(1, True)
    assert {p.requires_grad for p in locked.parameters()} == {True, False}
    assert all(p.requires_grad for p in other.parameters())
    lock()
    assert not any(p.requires_grad for p in locked.parameters())


@pytest.mark.parametrize("unlocked", range(6))
def test_locking_is_open_clips(unlocked: int) -> None:
    """Form `clip` with two blocks, so four groups, and an open_clip model of the same sizes."""
    theirs = open_clip_model({"layers": 2}, {"layers": 2})
    ours = build("sphere(32)", form="clip")
    for model in (ours, theirs):
        model.lock_image_tower(unlocked)
        model.lock_text_tower(unlocked)
    trained = {
        name.replace("visual.trunk.", "visual.").removeprefix("text.trunk.")
        for name, parameter in ours.named_parameters()
        if parameter.requires_grad and ".trunk." in name
    }
    assert trained == {n for n, p in theirs.named_parameters() if p.requires_grad and not n.startswith("logit_")}


def test_checkpointing_reaches_both_towers_and_can_be_undone() -> None:
    model = build()
    model.set_grad_checkpointing()
    assert model.visual.trunk.grad_checkpointing and model.text.transformer.grad_checkpointing
    model.set_grad_checkpointing(False)
    assert not model.visual.trunk.grad_checkpointing and not model.text.transformer.grad_checkpointing


def test_a_seed_fixes_the_weights_and_a_copy_is_the_same_model() -> None:
    one, other = build(class_tokens="oblique"), build(class_tokens="oblique")
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    twin = copy.deepcopy(one)
    assert [type(p) for p in twin.parameters()] == [type(p) for p in one.parameters()]
    assert torch.equal(twin.encode_text(IDS), one.encode_text(IDS))


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("spec", SPECS)
def test_scale_and_bias_start_where_the_topology_and_the_loss_say(spec: str, loss: str) -> None:
    topology = parse_topology(spec)
    model = create_model(config(spec), loss)
    assert model.logit_scale.exp().item() == pytest.approx(topology.initial_scale(loss))  # type: ignore[arg-type]
    if loss == "sigmoid":
        assert model.logit_bias is not None
        assert model.logit_bias.item() == pytest.approx(topology.initial_bias())
    chosen = create_model(config(spec, temperature=TemperatureConfig("constant", init_scale=1.0), logit_bias=True))
    assert chosen.logit_scale.item() == 0
    assert chosen.logit_bias is not None


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"topology": "oblique(8,8)"}, r"oblique\(4,8\).*--embed-dim 64"),
        ({"topology": "sphere(16)", "form": "sphere"}, r"take sphere\(32\), or set --embed-dim 16"),
        ({"topology": "lorentz(31)", "form": "sphere"}, r"take lorentz\(32\)"),
        ({"form": "clip"}, "form 'oblique'"),
        ({"form": "sphere"}, "form 'oblique'"),
        ({"topology": "obliqe(8,4)"}, "unknown topology"),
        ({"arch": dataclasses.replace(TINY, patch_size=5)}, "patch size 5"),
        ({"arch": dataclasses.replace(TINY, vision_heads=5)}, "5 vision heads"),
        ({"arch": dataclasses.replace(TINY, text_heads=3)}, "3 text heads"),
        ({"arch": dataclasses.replace(TINY, timm_name="vit_unheard_of")}, "vit_unheard_of"),
        ({"temperature": TemperatureConfig("cosine")}, "--final-scale"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_what_would(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        create_model(config(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["clip", "sphere", "oblique"])
def test_every_form_is_normalised_by_the_same_statistics(form: str) -> None:
    topology = "oblique(8,4)" if form == "oblique" else "sphere(32)"
    preprocess = preprocess_of(build(topology, form=form))
    assert preprocess.image_size == 32
    grey = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    expected = (128 / 255 - torch.tensor(open_clip.OPENAI_DATASET_MEAN)) / torch.tensor(open_clip.OPENAI_DATASET_STD)
    assert relative_error(preprocess.batch(grey)[0, :, 0, 0], expected) < SAME


def open_clip_model(
    vision: dict[str, object] | None = None, text: dict[str, object] | None = None, **options: object
) -> open_clip.CLIP:
    vision = {"layers": 1, "width": 64, "image_size": 32, "patch_size": 16} | (vision or {})
    text = {"layers": 1, "width": 32, "heads": 2, "context_length": 16, "vocab_size": 100} | (text or {})
    return open_clip.CLIP(32, vision, text, **options)
