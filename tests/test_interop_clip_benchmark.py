"""CLIP_benchmark's own metrics on our models: equal figures where definitions agree, both figures where they do not."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import relative_error
from PIL import Image
from torch import Tensor

from oblique_clip import create_model, load, model_config
from oblique_clip.data.captioned import CaptionedPictures
from oblique_clip.data.emoji import SIDE, EmojiSet, load_emoji
from oblique_clip.data.folders import ClassPictures
from oblique_clip.errors import UserError
from oblique_clip.evaluate.encode import encode_images, encode_texts
from oblique_clip.evaluate.run import EvaluateConfig, evaluate
from oblique_clip.evaluate.tasks import concept_labels
from oblique_clip.evaluate.zeroshot import build_classifier, classification
from oblique_clip.interop import clip_benchmark
from oblique_clip.report import print_evaluation

pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")

EQUAL = 1e-6
"""For shares of the same pictures, which CLIP_benchmark sums in float32."""
ORDER = 1e-5
"""Relative difference allowed between texts encoded together and one by one, in float32."""
TEMPLATES = ("{}", "a picture of {c}", "the {} of my little sister")
OURS = {"acc1": "top1", "acc5": "top5", "mean_per_class_recall": "mean_per_class"}
WAYS = {"text_retrieval_recall": "image_to_text_r", "image_retrieval_recall": "text_to_image_r"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 shipped pictures of one artist, no name twice, as a folder per class and as a table."""
    root = tmp_path_factory.mktemp("emoji")
    emoji = some()
    rows = ["image\tcaption"]
    for number, (square, record) in enumerate(zip(emoji.images(), emoji.records, strict=True)):
        path = root / "classes" / record.concept / f"{number}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(square.permute(1, 2, 0).numpy()).save(path)
        rows.append(f"{path.relative_to(root)}\t{record.caption}")
    (root / "pairs.tsv").write_text("\n".join(rows), encoding="utf-8")
    return root


def some() -> EmojiSet:
    whole = load_emoji()
    first: dict[str, int] = {}
    for row, record in enumerate(whole.records):
        if record.source == "fluent-flat" and record.concept.replace(" ", "").isalpha():
            first.setdefault(record.concept, row)
    keep = np.zeros(len(whole), bool)
    keep[list(first.values())[:130]] = True
    return whole.select(keep)


def run(model: str, data: Path, **changes: Any) -> dict[str, Any]:
    config = EvaluateConfig(Path(model), str(data), device="cpu", engine="clip_benchmark", **changes)
    return evaluate(config)["evaluation"]


@pytest.mark.parametrize(("model", "templates"), [("tiny-sphere", TEMPLATES), ("tiny-oblique", ("a {}",))])
def test_accuracies_are_theirs_where_both_average_prompts_the_same_way(
    model: str, templates: tuple[str, ...], folder: Path
) -> None:
    found = run(model, folder / "classes", templates=templates)["classification"]
    assert 0.1 < found["top1"] < found["top5"] < 1
    for theirs, ours in OURS.items():
        assert found["clip_benchmark"][theirs] == pytest.approx(found[ours], abs=EQUAL)


def test_recalls_are_theirs_where_no_caption_occurs_twice(folder: Path) -> None:
    for model in ("tiny-sphere", "tiny-oblique"):
        found = run(model, folder / "pairs.tsv")["retrieval"]
        assert found["captions"] == found["pairs"] == 130 and 0.1 < found["image_to_text_r@1"] < 1
        for theirs, ours in WAYS.items():
            for k in (1, 5, 10):
                assert found["clip_benchmark"][f"{theirs}@{k}"] == pytest.approx(found[f"{ours}@{k}"], abs=EQUAL)


def test_several_captions_an_image_count_alike_and_a_shared_one_does_not(folder: Path) -> None:
    rows = (folder / "pairs.tsv").read_text(encoding="utf-8").splitlines()
    pictures, captions = zip(*(row.split("\t") for row in rows[1:]), strict=True)
    more = [f"{picture}\ta small {caption}" for picture, caption in zip(pictures[:40], captions[:40], strict=True)]
    (folder / "more.tsv").write_text("\n".join([*rows, *more]), encoding="utf-8")
    found = run("tiny-oblique", folder / "more.tsv")["retrieval"]
    assert found["captions"] == 170
    for theirs, ours in WAYS.items():
        assert found["clip_benchmark"][f"{theirs}@1"] == pytest.approx(found[f"{ours}@1"], abs=EQUAL)
    # The same picture twice under one caption: theirs finds each text at one of two equal images.
    twice = Path(folder / "copy.png")
    twice.write_bytes((folder / pictures[0]).read_bytes())
    (folder / "shared.tsv").write_text(f"image\tcaption\n{pictures[0]}\tx\ncopy.png\tx\n")
    found = run("tiny-oblique", folder / "shared.tsv")["retrieval"]
    assert found["captions"] == 1 and set(found["clip_benchmark"]) == {f"{theirs}@1" for theirs in WAYS}
    assert (found["text_to_image_r@1"], found["clip_benchmark"]["image_retrieval_recall@1"]) == (1, 0.5)


def test_the_mean_off_the_manifold_is_reported_beside_ours(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Theirs is the flat mean as one unit vector, checked by hand; the report and the table show both."""
    found = run("tiny-oblique", folder / "classes", templates=TEMPLATES, out=folder / "out")
    figures = found["classification"]
    model, preprocess, tokenizer = load("tiny-oblique")
    names, labels = concept_labels(some())
    points = encode_images(model, [some().images()], preprocess)
    ours = build_classifier(model, tokenizer, names, TEMPLATES)
    assert figures["top1"] == pytest.approx(classification(points, labels, ours, model.topology)["top1"], abs=2 / 130)
    prompts = [[name, f"a picture of {name}", f"the {name} of my little sister"] for name in names]
    flat = torch.stack([model.topology.flat(encode_texts(model, tokenizer, texts)).mean(0) for texts in prompts])
    flat = flat / flat.norm(dim=1, keepdim=True)
    first = (model.topology.flat(points).double() @ flat.double().T).argmax(1)
    expected = (first == labels).double().mean().item()
    # Written as PNG and read at the model's side, a picture near the border may change sides.
    assert figures["clip_benchmark"]["acc1"] == pytest.approx(expected, abs=2 / 130)
    assert relative_error(flat, model.topology.flat(ours)) > 100 * ORDER
    assert json.loads((folder / "out" / "result.json").read_text())["evaluation"] == found
    print_evaluation(found)
    printed = capsys.readouterr().out
    assert "Accuracies of CLIP_benchmark" in printed
    for value in (figures["top1"], figures["clip_benchmark"]["acc1"], figures["ece"]):
        assert f"{100 * value:.2f}" in printed


def test_their_classifier_is_ours_on_a_sphere() -> None:
    from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

    model, _, tokenizer = load("tiny-sphere")
    names = ["cat face", "red apple", "rocket"]
    texts = [template.replace("{}", "{c}") for template in TEMPLATES]
    theirs: Tensor = zero_shot_classifier(clip_benchmark.FlatEncoder(model), tokenizer, names, texts, "cpu", amp=False)
    assert relative_error(build_classifier(model, tokenizer, names, TEMPLATES).flatten(1), theirs.T) <= ORDER


def test_a_registered_model_is_loaded_by_their_loader() -> None:
    from clip_benchmark.models import MODEL_TYPES, load_clip

    for _ in range(2):
        clip_benchmark.register()
    assert MODEL_TYPES.count("oblique_clip") == 1
    model, transform, tokenizer = load_clip("oblique_clip", "tiny-oblique", "laion400m_e32", "", "cpu")
    ours, preprocess, _ = load("tiny-oblique")
    image = Image.fromarray(some().images()[0].permute(1, 2, 0).numpy())
    pixels, ids = transform(image)[None], tokenizer(["a cat"])
    assert torch.equal(pixels[0], preprocess(image)) and not model.training
    for found, points in (
        (model.encode_image(pixels), ours.encode_image(pixels)), (model.encode_text(ids), ours.encode_text(ids))
    ):  # fmt: skip
        assert relative_error(found, points.flatten(1) / 8**0.5) <= EQUAL
    with pytest.raises(UserError, match="no such checkpoint"):
        load_clip("oblique_clip", "nowhere", "", "", "cpu")
    with pytest.raises(UserError, match="no such checkpoint or run folder: runs/mispelt"):
        load_clip("oblique_clip", "tiny-oblique", "runs/mispelt", "", "cpu")
    other, *_ = load_clip("oblique_clip", "nowhere", "tiny-sphere", "", "cpu")
    assert other.model.topology.spec == "sphere(128)"


def test_their_command_line_gives_our_figures(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set in CLIP_benchmark's own layout, its own reader and loop, from its flags to its JSON."""
    layout = tmp_path / "set"
    save_layout(folder / "classes", layout)
    cli = their_command_line(monkeypatch)
    out = tmp_path / "theirs.json"
    flags = ["--model_type", "oblique_clip", "--model", "tiny-sphere", "--pretrained", "", "--output", str(out)]
    data = ["--dataset", "wds/emoji", "--dataset_root", str(layout), "--task", "zeroshot_classification"]
    monkeypatch.setattr(
        "sys.argv", ["clip_benchmark", "eval", *flags, *data, "--no_amp", "--num_workers", "0", "--quiet"]
    )
    cli.main()
    theirs = json.loads(out.read_text())["metrics"]
    ours = evaluate(EvaluateConfig(Path("tiny-sphere"), str(layout), device="cpu"))["evaluation"]["classification"]
    assert 0.1 < ours["top1"] < 1
    for name, figure in OURS.items():
        assert theirs[name] == pytest.approx(ours[figure], abs=EQUAL)


def save_layout(classes: Path, layout: Path) -> None:
    """A folder per class as CLIP_benchmark's WebDataset."""
    (layout / "test").mkdir(parents=True)
    names = sorted(path.name for path in classes.iterdir())
    (layout / "classnames.txt").write_text("\n".join(names))
    (layout / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES).replace("{}", "{c}"))
    (layout / "test" / "nshards.txt").write_text("1")
    with tarfile.open(layout / "test" / "0.tar", "w") as shard:
        for label, name in enumerate(names):
            for number, picture in enumerate(sorted((classes / name).iterdir())):
                shard.add(picture, f"s{label:04}-{number}.png")
                info = tarfile.TarInfo(f"s{label:04}-{number}.cls")
                info.size = len(str(label))
                shard.addfile(info, io.BytesIO(str(label).encode()))


def their_command_line(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Their module, with our model type; it imports metrics of captions, which are no part of it, from a package."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        for part, name in CAPTION_METRICS.items():
            parts = f"pycocoevalcap.{part}".split(".")
            for depth in range(1, len(parts) + 1):
                path = ".".join(parts[:depth])
                monkeypatch.setitem(sys.modules, path, sys.modules.get(path) or ModuleType(path))
            setattr(sys.modules[".".join(parts)], name, object)
    clip_benchmark.register()
    return importlib.import_module("clip_benchmark.cli")


CAPTION_METRICS = {
    "tokenizer.ptbtokenizer": "PTBTokenizer",
    "bleu.bleu": "Bleu",
    "meteor.meteor": "Meteor",
    "rouge.rouge": "Rouge",
    "cider.cider": "Cider",
    "spice.spice": "Spice",
}


def test_a_topology_without_flat_vectors_is_refused_before_anything_is_read() -> None:
    model = create_model(model_config("tiny", "oblique", topology="oblique(16,8)/geodesic"))
    loaded = load("tiny-oblique")._replace(model=model)

    def nothing() -> Any:
        raise AssertionError("read")
        yield

    with pytest.raises(UserError, match="has no flat form"):
        clip_benchmark.zero_shot(loaded, ClassPictures(["a"], nothing()), SIDE, ("{}",))
    with pytest.raises(UserError, match="has no flat form"):
        clip_benchmark.retrieval(loaded, CaptionedPictures(nothing(), dict))  # type: ignore[arg-type]


def test_their_accuracy_is_theirs_and_a_count() -> None:
    """Mended where NumPy refuses one call of it."""
    metrics = clip_benchmark._mended_metrics()
    assert metrics.accuracy.__code__.co_filename == metrics.__file__
    logits, target = torch.randn(40, 9), torch.randint(0, 9, (40,))
    order = logits.argsort(1, descending=True)
    for k in (1, 5):
        hits = sum(int(right) in row[:k].tolist() for row, right in zip(order, target, strict=True))
        assert metrics.accuracy(logits, target, (1, 5))[(1, 5).index(k)] == pytest.approx(hits / 40, abs=EQUAL)
