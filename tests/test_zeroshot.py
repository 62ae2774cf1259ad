"""Zero-shot classification: known answers on hand-made points, ties against us, and names right on a saved model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from oblique_clip.bench.classifier import Builder, builders_of
from oblique_clip.checkpoint import Loaded, load, save_model
from oblique_clip.config import Architecture, ModelConfig, model_config
from oblique_clip.data.images import decode_square
from oblique_clip.errors import UserError
from oblique_clip.evaluate.encode import encode_images, encode_texts, evaluating
from oblique_clip.evaluate.zeroshot import build_classifier, calibrate, classification, classify, rank_figures
from oblique_clip.interop.hub import save_pretrained
from oblique_clip.model import DualEncoder, create_model, preprocess_of
from oblique_clip.tokenizer import TinyTokenizer, get_tokenizer
from oblique_clip.topology import parse_topology

ORDER = 1e-5
"""Relative difference allowed between texts encoded together and one by one, in float32."""
EXACT = 1e-12
"""For the same sum of a few float64 numbers taken in another order."""
SUM = 1e-6
"""Largest distance of a float32 sum of probabilities from 1."""

SMALL = Architecture(
    patch_size=16, vision_width=32, vision_layers=1, vision_heads=2, text_width=32, text_layers=2, text_heads=2,
    context_length=32,
)  # fmt: skip
NAMES = ["cat", "a very small red apple on a green table", "dog", "flag: Côte d’Ivoire", "x"]
TEMPLATES = ["{}", "a picture of a {}", "the {} of my little sister, drawn with {} in mind"]
TOPOLOGIES = ["sphere(32)", "oblique(8,4)", "oblique(8,4)/geodesic", "oblique(8,4)/chordal", "euclidean(32)"]
TOPOLOGIES += ["euclidean(32)/squared", "lorentz(32)"]


def config_of(topology: str) -> ModelConfig:
    form = "oblique" if topology.startswith("oblique") else "sphere"
    return model_config("tiny", form, topology=topology, embed_dim=32, arch=SMALL)  # type: ignore[arg-type]


@pytest.fixture(params=TOPOLOGIES)
def model(request: pytest.FixtureRequest) -> DualEncoder:
    torch.manual_seed(0)
    return create_model(config_of(request.param))


TOKENIZER = get_tokenizer("tiny", SMALL.context_length)


def axes(*rows: int) -> Tensor:
    """Points of oblique(4,2): the rows name the axis of both spheres, a negative one its opposite."""
    eye = torch.eye(4)
    return torch.stack([(1 if row >= 0 else -1) * eye[abs(row)].expand(2, -1) for row in rows])


PLAIN = parse_topology("oblique(4,2)")


def test_pictures_on_their_own_class_are_right_and_opposite_ones_wrong() -> None:
    classifier = axes(0, 1, 2, 3)
    right = classification(axes(2, 0, 3, 1), torch.tensor([2, 0, 3, 1]), classifier, PLAIN)
    assert right == {"top1": 1.0, "top5": 1.0, "mean_per_class": 1.0, "chance": 0.25}
    wrong = classification(axes(-1, -2), torch.tensor([1, 2]), classifier, PLAIN)
    assert wrong["top1"] == 0.0


def test_a_class_exactly_as_similar_as_the_right_one_counts_before_it() -> None:
    """A model that has collapsed to one point knows nothing, whatever order argmax would break the tie in."""
    same = axes(0, 0, 0, 0, 0, 0)
    figures = classification(same[:4], torch.tensor([0, 1, 2, 5]), same, PLAIN)
    assert figures["top1"] == figures["top5"] == figures["mean_per_class"] == 0.0
    four_others = classification(axes(0), torch.tensor([0]), axes(0, 0, 0, 0, 0, 1), PLAIN)
    assert (four_others["top1"], four_others["top5"]) == (0.0, 1.0)


def test_a_model_that_has_diverged_scores_nothing() -> None:
    points = axes(0, 1).fill_(torch.nan)
    figures = classification(points, torch.tensor([0, 1]), axes(*[0] * 7), PLAIN)
    assert figures["top1"] == figures["top5"] == 0.0
    broken = classification(axes(0, 1), torch.tensor([0, 1]), axes(*[0] * 7).fill_(torch.nan), PLAIN)
    assert broken["top1"] == broken["top5"] == 0.0


@settings(max_examples=60, deadline=None, database=None)
@given(data=st.data(), images=st.integers(1, 12), classes=st.integers(1, 8), chunk=st.integers(1, 13))
def test_figures_are_those_of_a_plain_loop_whatever_the_chunk(
    data: st.DataObject, images: int, classes: int, chunk: int
) -> None:
    """Points of small integers, so that similarities are exact and often equal."""
    coordinate = st.integers(-1, 1)
    pictures, classifier = (
        torch.tensor(data.draw(st.lists(coordinate, min_size=4 * count, max_size=4 * count))).view(count, 1, 4).float()
        for count in (images, classes)
    )
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=images, max_size=images))
    found = classification(pictures, torch.tensor(labels), classifier, parse_topology("euclidean(4)/squared"), chunk)

    ranks = []
    for picture, label in zip(pictures, labels, strict=True):
        gaps = [int((picture - other).square().sum()) for other in classifier]
        ranks.append(sum(gap <= gaps[label] for k, gap in enumerate(gaps) if k != label))
    per_class = [
        [rank == 0 for rank, label in zip(ranks, labels, strict=True) if label == k] for k in sorted(set(labels))
    ]
    expected = {
        "top1": sum(rank == 0 for rank in ranks) / images,
        "top5": sum(rank < 5 for rank in ranks) / images,
        "mean_per_class": sum(sum(hits) / len(hits) for hits in per_class) / len(per_class),
        "chance": 1 / classes,
    }
    assert found == pytest.approx(expected, abs=EXACT)


def test_each_class_that_occurs_counts_alike_in_the_mean_per_class() -> None:
    # Three of four pictures of class 0 right, none of one of class 2, class 1 absent.
    figures = rank_figures(torch.tensor([0, 0, 0, 1, 3]), torch.tensor([0, 0, 0, 0, 2]), 3)
    assert figures["top1"] == pytest.approx(3 / 5) and figures["top5"] == 1.0
    assert figures["mean_per_class"] == pytest.approx((3 / 4 + 0) / 2)


def test_texts_encoded_together_are_those_encoded_one_by_one(model: DualEncoder) -> None:
    texts = [*NAMES, "", "a " * 40, *NAMES[::-1]]
    one_by_one = torch.cat([encode_texts(model, TOKENIZER, [text]) for text in texts])
    for size in (1, 3, 512):
        assert relative_error(encode_texts(model, TOKENIZER, texts, size), one_by_one) <= ORDER


def counted(model: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The batches of ids that the model is given from now on."""
    batches: list[Tensor] = []
    encode = model.encode_text

    def encode_text(ids: Tensor) -> Tensor:
        batches.append(ids)
        return encode(ids)

    monkeypatch.setattr(model, "encode_text", encode_text)
    return batches


@pytest.mark.parametrize("positions", [1, 20, 100])
def test_batches_keep_to_their_positions_and_hold_little_padding(
    positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model(config_of("sphere(32)"))
    batches = counted(model, monkeypatch)
    texts = [" ".join("abcdefgh"[i % 7] for i in range(1 + count % 9)) + f" {count}" for count in range(300)]
    encode_texts(model, TOKENIZER, texts, positions)
    assert all(len(ids) == 1 or ids.numel() <= positions for ids in batches)
    tokens = int((TOKENIZER(texts) != 0).sum())
    assert sum(ids.numel() for ids in batches) <= 1.1 * tokens


def test_equal_texts_are_encoded_once_and_get_equal_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they tie exactly, wherever they stand."""
    model = create_model(config_of("oblique(8,4)"))
    batches = counted(model, monkeypatch)
    found = encode_texts(model, TOKENIZER, ["dog", "cat", "a cat on a very long mat", "cat", "dog", "cat"], 12)
    assert sum(map(len, batches)) == 3
    assert torch.equal(found[1], found[3]) and torch.equal(found[1], found[5]) and torch.equal(found[0], found[4])
    assert relative_error(found[0], found[1]) > ORDER


def test_no_texts_give_no_points() -> None:
    assert encode_texts(create_model(config_of("oblique(8,4)")), TOKENIZER, []).shape == (0, 4, 8)


@pytest.fixture(scope="module")
def builders() -> dict[str, Builder]:
    return builders_of(torch.device("cpu"))


@pytest.mark.parametrize("peer", ["open_clip", "CLIP_benchmark"])
def test_weights_on_a_sphere_are_those_of_the_peers(peer: str, builders: dict[str, Builder]) -> None:
    if peer not in builders:
        pytest.skip(f"{peer} is not installed")
    names = ["tench", "Cardigan Welsh Corgi"]
    assert relative_error(builders["ours"](names), builders[peer](names)) <= ORDER


def test_a_template_may_be_a_function_of_the_name() -> None:
    model = create_model(config_of("oblique(8,4)"))
    found = build_classifier(
        model, TOKENIZER, NAMES, [lambda name: f"a {name}.", "the {}", lambda name: f"{len(name)} letters"]
    )
    points = [encode_texts(model, TOKENIZER, [f"a {name}.", f"the {name}", f"{len(name)} letters"]) for name in NAMES]
    assert relative_error(found, torch.stack([model.topology.mean(each) for each in points])) <= ORDER


def test_a_classifier_does_not_depend_on_the_number_of_prompts_held_at_once(
    model: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = build_classifier(model, TOKENIZER, NAMES, TEMPLATES)
    for prompts in (1, 7):
        monkeypatch.setattr("oblique_clip.evaluate.zeroshot.PROMPTS", prompts)
        batches = counted(model, monkeypatch)
        assert relative_error(build_classifier(model, TOKENIZER, NAMES, TEMPLATES), at_once) <= ORDER
        assert all(len(ids) <= max(prompts, len(TEMPLATES)) for ids in batches)


def test_a_classifier_does_not_depend_on_the_order_of_names_or_templates(model: DualEncoder) -> None:
    classifier = build_classifier(model, TOKENIZER, NAMES, TEMPLATES)
    turned = build_classifier(model, TOKENIZER, NAMES[::-1], TEMPLATES[::-1]).flip(0)
    alone = torch.cat([build_classifier(model, TOKENIZER, [name], TEMPLATES) for name in NAMES])
    assert relative_error(turned, classifier) <= ORDER
    assert relative_error(alone, classifier) <= ORDER


def test_several_templates_are_averaged_on_the_manifold(model: DualEncoder) -> None:
    classifier = build_classifier(model, TOKENIZER, NAMES, TEMPLATES)
    prompts = [
        encode_texts(model, TOKENIZER, [name, f"a picture of a {name}", text])
        for name, text in ((n, f"the {n} of my little sister, drawn with {n} in mind") for n in NAMES)
    ]
    by_hand = torch.stack([model.topology.mean(points).detach() for points in prompts])
    assert relative_error(classifier, by_hand) <= ORDER
    assert not classifier.requires_grad
    assert model.topology.manifold.check_point_on_manifold(classifier, atol=ORDER)


def test_one_template_is_the_encoded_prompt_itself(model: DualEncoder) -> None:
    plain = encode_texts(model, TOKENIZER, NAMES)
    assert relative_error(build_classifier(model, TOKENIZER, NAMES), plain) <= ORDER


def test_braces_in_a_name_are_letters() -> None:
    model = create_model(config_of("sphere(32)"))
    found = build_classifier(model, TOKENIZER, ["{x}", "100%"], ["a {} here"])
    assert relative_error(found, encode_texts(model, TOKENIZER, ["a {x} here", "a 100% here"])) <= ORDER


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (["cat"], ["a photo"], "'a photo' has no {}"),
        (["cat"], ["{}", "of {name}"], "'of {name}' has no {}"),
        ([], ["{}"], "at least one class name"),
        (["cat"], [], "at least one class name and one template"),
    ],
)
def test_what_names_no_class_is_the_users_to_mend(names: list[str], templates: list[str], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        build_classifier(create_model(config_of("sphere(32)")), TOKENIZER, names, templates)
    assert message in str(refusal.value)


def test_evaluation_leaves_the_mode_of_the_model_as_it_was_even_after_an_error() -> None:
    model = create_model(config_of("sphere(32)"))
    for mode in (True, False):
        model.train(mode)
        points = encode_texts(model, TOKENIZER, ["cat"])
        assert model.training is mode and not points.requires_grad and not points.is_inference()
        with pytest.raises(ZeroDivisionError), evaluating(model):
            assert not model.training
            raise ZeroDivisionError
        assert model.training is mode


COLOURS = {"red": "red", "green": "lime", "blue": "blue", "white": "white", "night": "black"}
COLOUR_NAMES = list(COLOURS)


def plain_pictures() -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), colour) for colour in COLOURS.values()]


def taught(topology: str) -> DualEncoder:
    """A model that has seen five colours and their names for a moment: enough to tell them apart."""
    torch.manual_seed(0)
    model = create_model(config_of(topology))
    squares = torch.stack([decode_square(image, 32) for image in plain_pictures()])
    pixels, ids, targets = preprocess_of(model).batch(squares), TOKENIZER(COLOUR_NAMES), torch.arange(len(COLOURS))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        logits, transposed = model.get_logits(pixels, ids)
        loss = torch.nn.functional.cross_entropy(logits, targets)
        (loss + torch.nn.functional.cross_entropy(transposed, targets)).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("topology", ["sphere(32)", "oblique(8,4)"])
def test_a_saved_model_names_pictures_by_path_text_or_object(topology: str, tmp_path: Path) -> None:
    save_model(taught(topology), config_of(topology), tmp_path / "model.safetensors")
    names, images = COLOUR_NAMES, plain_pictures()
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    order = [3, 0, 4, 1, 2, 2]
    given = [tmp_path / "3.png", str(tmp_path / "0.png"), images[4], images[1], images[2], tmp_path / "2.png"]
    probabilities, found = classify(tmp_path / "model.safetensors", given, names)
    assert found == [names[i] for i in order]
    assert probabilities.shape == (6, 5)
    assert (probabilities.sum(1) - 1).abs().max() <= SUM
    assert (probabilities.argmax(1) == torch.tensor(order)).all()
    loaded = load(str(tmp_path / "model.safetensors"))
    assert torch.equal(classify(loaded, given, names)[0], probabilities)
    shuffled, _ = classify(loaded, given, names[::-1])
    assert relative_error(shuffled.flip(1), probabilities) <= ORDER


def test_probabilities_are_the_softmax_of_scaled_similarities() -> None:
    model = create_model(config_of("oblique(8,4)"))
    loaded = (model.eval(), preprocess_of(model), TOKENIZER)
    found, _ = classify(loaded, plain_pictures(), NAMES, TEMPLATES)
    squares = torch.stack([decode_square(image, 32) for image in plain_pictures()])
    points = encode_images(model, [squares], preprocess_of(model)).double()
    classifier = build_classifier(model, TOKENIZER, NAMES, TEMPLATES).double()
    logits = model.temperature.scale.item() * torch.einsum("imn,kmn->ik", points, classifier)
    by_hand = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    assert relative_error(found, torch.from_numpy(by_hand)) <= ORDER


def test_pictures_that_cannot_be_read_are_the_users_to_mend(tmp_path: Path) -> None:
    model = create_model(config_of("sphere(32)"))
    loaded = (model, preprocess_of(model), TOKENIZER)
    (tmp_path / "text.png").write_text("no picture")
    for image in (tmp_path / "none.png", str(tmp_path / "text.png"), tmp_path):
        with pytest.raises(UserError, match="cannot read image"):
            classify(loaded, [Image.new("RGB", (4, 4)), image], NAMES)
    with pytest.raises(UserError, match="at least one image"):
        classify(loaded, [], NAMES)
    with pytest.raises(UserError, match="no such checkpoint"):
        classify(tmp_path / "nowhere", [tmp_path / "none.png"], NAMES)


def test_batches_of_pictures_are_those_encoded_at_once() -> None:
    model = create_model(config_of("oblique(8,4)"))
    squares = torch.randint(0, 256, (7, 3, 40, 40), dtype=torch.uint8)
    at_once = encode_images(model, [squares], preprocess_of(model))
    assert relative_error(encode_images(model, squares.split(3), preprocess_of(model)), at_once) <= ORDER


def test_a_longer_context_changes_no_point() -> None:
    """Texts are cut to the longest of their batch, so padding is never seen."""
    model = create_model(config_of("sphere(32)"))
    found, expected = (encode_texts(model, TinyTokenizer(length), ["cat", "dog"]) for length in (16, 32))
    assert relative_error(found, expected) <= ORDER


def test_probabilities_are_those_of_the_calibrated_scale_wherever_the_model_goes(tmp_path: Path) -> None:
    model = taught("oblique(8,4)")
    loaded = Loaded(model.eval(), preprocess_of(model), TOKENIZER)
    # Two pictures are told wrong: no scale that is sure of them is likely.
    images, labels = [*plain_pictures(), *plain_pictures()[:2]], [0, 1, 2, 3, 4, 1, 0]
    before, found = classify(loaded, images, COLOUR_NAMES)
    scale = calibrate(loaded, images, labels, COLOUR_NAMES)
    after, found_then = classify(loaded, images, COLOUR_NAMES)
    assert found == found_then
    logits = before.double().log() * scale / model.temperature.scale.item()
    assert relative_error(after, logits.softmax(-1)) <= ORDER
    truth = torch.tensor(labels)
    likelihood = [torch.nn.functional.nll_loss(p.double().log(), truth).item() for p in (before, after)]
    assert likelihood[1] < likelihood[0]

    save_model(model, config_of("oblique(8,4)"), tmp_path / "model.safetensors")
    again, _ = classify(tmp_path / "model.safetensors", images, COLOUR_NAMES)
    assert relative_error(again, after) <= ORDER
    save_pretrained(tmp_path / "model.safetensors", tmp_path / "folder")
    again, _ = classify(tmp_path / "folder", images, COLOUR_NAMES)
    assert relative_error(again, after) <= ORDER


def test_labels_that_fit_nothing_are_told() -> None:
    model = create_model(config_of("sphere(32)"))
    loaded = Loaded(model.eval(), preprocess_of(model), TOKENIZER)
    with pytest.raises(UserError, match="5 images, 1 labels"):
        calibrate(loaded, plain_pictures(), [0], COLOUR_NAMES)
    with pytest.raises(UserError, match="label 5 is no place in the list of 5 names"):
        calibrate(loaded, plain_pictures(), [0, 1, 2, 3, 5], COLOUR_NAMES)
    assert model.temperature.calibrated is None
