"""Benchmarks as others lay them out: one set of pictures, in every layout, gets the figures of a folder per class."""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import relative_error
from PIL import Image

from oblique_clip import load
from oblique_clip.data.benchmarks import TEST_SPLITS, open_torchvision, open_webdataset, webdataset_shards
from oblique_clip.data.emoji import EmojiSet, load_emoji
from oblique_clip.errors import UserError
from oblique_clip.evaluate.calibration import FITTED, OWN, STORED, fit_temperature
from oblique_clip.evaluate.encode import encode_images, encode_texts
from oblique_clip.evaluate.names import imagenet_names, read_class_names
from oblique_clip.evaluate.pictures import open_pictures
from oblique_clip.evaluate.run import EvaluateConfig, evaluate
from oblique_clip.evaluate.templates import prompts_of, read_descriptions, read_templates
from oblique_clip.evaluate.zeroshot import build_classifier
from oblique_clip.report import print_evaluation

MODEL = "tiny-oblique"
ORDER = 1e-5
"""Relative difference allowed between texts encoded together and one by one, in float32."""
NAMES = ["cat face", "dog face", "pizza", "red apple", "rocket", "umbrella"]
TEMPLATES = ["a picture of a {c}", "{c}, drawn"]


@pytest.fixture(scope="module")
def emoji() -> EmojiSet:
    """The shipped pictures of six names, from several artists."""
    whole = load_emoji()
    return whole.select(np.array([record.concept in NAMES for record in whole.records]))


def pngs(emoji: EmojiSet) -> list[bytes]:
    found = []
    for square in emoji.images():
        buffer = io.BytesIO()
        Image.fromarray(square.permute(1, 2, 0).numpy()).save(buffer, "png")
        found.append(buffer.getvalue())
    return found


def labels_of(emoji: EmojiSet) -> list[int]:
    return [NAMES.index(record.concept) for record in emoji.records]


def write_tar(path: Path, samples: list[dict[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, sample in enumerate(samples):
            for extension, content in sample.items():
                member = tarfile.TarInfo(f"s{number:07d}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_webdataset(root: Path, samples: list[dict[str, bytes]], shards: int = 11) -> Path:
    """CLIP_benchmark's layout, in so many shards that their order by name is not that by number."""
    for number in range(shards):
        write_tar(root / "test" / f"{number}.tar", samples[number::shards])
    (root / "test" / "nshards.txt").write_text(f"{shards}\n")
    (root / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    return root


@pytest.fixture
def folder(emoji: EmojiSet, tmp_path: Path) -> Path:
    """One folder a class."""
    for number, (content, label) in enumerate(zip(pngs(emoji), labels_of(emoji), strict=True)):
        path = tmp_path / "folder" / NAMES[label].replace(" ", "_") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "folder"


@pytest.fixture
def webdataset(emoji: EmojiSet, tmp_path: Path) -> Path:
    samples = [
        {"png": content, "cls": str(label).encode()}
        for content, label in zip(pngs(emoji), labels_of(emoji), strict=True)
    ]
    return write_webdataset(tmp_path / "wds", samples)


def run(data: Path | str, **changes: Any) -> dict[str, Any]:
    return evaluate(EvaluateConfig(Path(MODEL), str(data), device="cpu", **changes))["evaluation"]


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """All accuracies equal; calibration to the order of the pictures in the batches of the towers."""
    kinds = ("top1", "top5", "mean_per_class", "chance", "images", "classes")
    ours, theirs = found["classification"], expected["classification"]
    return all(ours[kind] == theirs[kind] for kind in kinds) and ours["ece"] == pytest.approx(theirs["ece"], abs=1e-4)


def test_the_webdataset_layout_gives_the_figures_of_a_class_folder(folder: Path, webdataset: Path) -> None:
    """With the templates that came with it where none are given, and with those that are."""
    expected = run(folder, templates=tuple(TEMPLATES))
    assert expected["classification"]["images"] > 40 and 0.2 < expected["classification"]["top1"] < 1
    assert same(run(webdataset), expected)
    plain = run(folder)
    assert same(run(webdataset, templates=("{}",)), plain) and not same(plain, expected)


def test_clip_benchmark_reads_the_same_pictures_and_classes(webdataset: Path) -> None:
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    theirs = builder.build_wds_dataset("wds", transform=np.asarray, split="test", data_dir=str(webdataset))
    ours = open_webdataset(webdataset)
    squares = torch.cat(list(ours.squares(64))).permute(0, 2, 3, 1).numpy()
    pictures, labels = zip(*theirs, strict=True)
    assert np.array_equal(squares, np.stack(pictures)) and ours.labels == list(labels)
    assert ours.names == theirs.classes and list(ours.templates or ()) == theirs.templates


def test_class_names_of_ones_own_replace_those_of_the_data(folder: Path, webdataset: Path, tmp_path: Path) -> None:
    others = ["kitten", "hound", "pie", "fruit", "ship", "rain"]
    (tmp_path / "names.txt").write_text("\n".join(others))
    for name, other in zip(NAMES, others, strict=True):
        (folder / name.replace(" ", "_")).rename(folder / other)
    assert same(run(webdataset, classes=str(tmp_path / "names.txt"), templates=("{}",)), run(folder))
    (tmp_path / "names.txt").write_text("kitten\nhound")
    fix = r"give one a line, in this order: cat face, dog face, pizza, red apple, rocket, umbrella"
    with pytest.raises(UserError, match=rf"names.txt has 2 names, the data 6 classes: {fix}"):
        run(webdataset, classes=str(tmp_path / "names.txt"))
    # The data's own names, however they are spelt, stand at their own places or they mislabel every picture.
    (tmp_path / "names.txt").write_text("\n".join(name.title() for name in NAMES))
    run(webdataset, classes=str(tmp_path / "names.txt"))
    (tmp_path / "names.txt").write_text("\n".join(name.replace(" ", "_") for name in NAMES[::-1]))
    with pytest.raises(UserError, match=f"has the names of the data in another order: {fix}"):
        run(webdataset, classes=str(tmp_path / "names.txt"))
    (tmp_path / "names.txt").write_text("kitten\n\nhound")
    with pytest.raises(UserError, match=r"line 2 of .*names.txt is empty"):
        run(webdataset, classes=str(tmp_path / "names.txt"))


def test_imagenets_names_follow_the_codes_of_the_folders_and_their_numbers_only_where_all_are_there() -> None:
    from open_clip import IMAGENET_CLASSNAMES as OPEN_CLIP

    everything = [str(i) for i in range(1000)]
    assert imagenet_names(sorted(everything)) == [OPEN_CLIP[int(number)] for number in sorted(everything)]
    assert imagenet_names(everything[:10]) is None and imagenet_names([]) is None
    assert imagenet_names(["n07747607", "n01440764"]) == [OPEN_CLIP[950], OPEN_CLIP[0]] == ["orange", "tench"]
    assert imagenet_names(["n07747607", "cat"]) is None


def test_class_names_by_a_word(folder: Path, webdataset: Path) -> None:
    for name, code in zip(NAMES, ("n02123045", "n02099601", "n07873807", "n07742313", "n04266014", "n04507155"),
                          strict=True):  # fmt: skip
        with pytest.raises(UserError, match=r"needs folders named by WordNet codes .* not .*umbrella"):
            run(folder, classes="imagenet")
        (folder / name.replace(" ", "_")).rename(folder / code)
    config = EvaluateConfig(Path(MODEL), str(folder), classes="imagenet")
    found = open_pictures(config, 32).names
    assert found == ["Golden Retriever", "tabby cat", "space shuttle", "umbrella", "Granny Smith apple", "pizza"]
    with pytest.raises(UserError, match="imagenet has 1000 names, the data 6 classes"):
        run(webdataset, classes="imagenet")
    with pytest.raises(UserError, match="'imgnet' is no file, and neither imagenet nor clip_benchmark:NAME"):
        run(webdataset, classes="imgnet")
    pytest.importorskip("clip_benchmark")
    assert read_class_names("clip_benchmark:pcam") == ["lymph node", "lymph node containing metastatic tumor tissue"]
    with pytest.raises(UserError, match=r"no class names for 'food'; there is .*gtsrb"):
        read_class_names("clip_benchmark:food")


@pytest.mark.parametrize("engine", ["oblique_clip", "clip_benchmark"])
def test_classes_of_one_name_are_one_class(engine: str, emoji: EmojiSet, webdataset: Path, tmp_path: Path) -> None:
    """Six folders, two of them pizza: what is said of five classes, with the pictures of both in one."""
    if engine == "clip_benchmark":
        pytest.importorskip("clip_benchmark")
    (tmp_path / "six.txt").write_text("\n".join(["cat face", "dog face", "pizza", "pizza", "rocket", "umbrella"]))
    found = run(webdataset, classes=str(tmp_path / "six.txt"), engine=engine)["classification"]
    (webdataset / "classnames.txt").write_text("\n".join(["cat face", "dog face", "pizza", "rocket", "umbrella"]))
    samples = [
        {"png": content, "cls": str(label if label < 3 else label - 1).encode()}
        for content, label in zip(pngs(emoji), labels_of(emoji), strict=True)
    ]
    for number in range(11):
        write_tar(webdataset / "test" / f"{number}.tar", samples[number::11])
    expected = run(webdataset, engine=engine)["classification"]
    assert found.pop("same_names") == 1 and "same_names" not in expected
    assert found == expected and found["classes"] == 5 and found["top1"] > 0.2


IGNORED = {
    "a table's templates": ("pairs.csv", {"templates": ("a {}",)}, "--templates does nothing for a .csv"),
    "a table's names": ("pairs.csv", {"classes": "imagenet"}, "--classes does nothing for a .csv"),
    "a table's download": ("pairs.csv", {"download": True}, "--download does nothing for a .csv"),
    "shards' descriptions": ("x.tar", {"descriptions": Path("d.json")}, "--descriptions does nothing for .tar"),
    "the shipped set's names": ("emoji", {"classes": "imagenet"}, "--classes does nothing for 'emoji'"),
    "the shipped set's root": ("emoji", {"data_root": Path("x")}, "--data-root does nothing for 'emoji'"),
    "the shipped set's scale": ("emoji", {"calibrate_on": "x.tar"}, "--calibrate-on does nothing for 'emoji'"),
    "a folder's root": (".", {"data_root": Path("x")}, "--data-root does nothing for a folder a class"),
    "a folder's columns": (".", {"image_column": "x"}, "--image-column does nothing for a folder a class"),
    "a scale from pairs": (".", {"calibrate_on": "x.tar"}, "--calibrate-on needs pictures by class, not .tar"),
    "a scale from the test": (".", {"calibrate_on": "."}, "is what the model is judged on"),
}


@pytest.mark.parametrize("case", IGNORED)
def test_a_flag_that_the_data_does_not_read_is_refused_before_the_model_is_loaded(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, settings, message = IGNORED[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        evaluate(EvaluateConfig(Path("nowhere"), data, **settings))


def test_prompts_are_read_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'opnai' has no \{\}"):
        evaluate(EvaluateConfig(Path("nowhere"), str(tmp_path), templates=("opnai",)))


def test_a_file_is_no_folder_for_a_report(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something")
    with pytest.raises(UserError, match="file is a file: name a folder"):
        evaluate(EvaluateConfig(Path("nowhere"), out=tmp_path / "file"))


def test_a_scale_is_fitted_on_pictures_of_ones_own_or_shown_as_stored(
    folder: Path, webdataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fitted on the very pictures that it is judged on, in another layout, no scale is more likely."""
    found = run(webdataset, templates=("{}",), calibrate_on=str(folder))["classification"]
    loaded = load(MODEL)
    classifier = build_classifier(loaded.model, loaded.tokenizer, NAMES)
    pictures = open_webdataset(webdataset)
    points = encode_images(loaded.model, pictures.squares(32), loaded.preprocess)
    fitted = fit_temperature(loaded.model.topology.similarity(points, classifier), torch.tensor(pictures.labels))
    assert found["reliability"][FITTED]["scale"] == pytest.approx(fitted, rel=1e-4) and STORED not in found
    print_evaluation({"classification": found})
    assert "fitted scale" in (shown := capsys.readouterr().out) and "stored scale" not in shown

    stored = run(webdataset, templates=("{}",))["classification"]
    assert stored["reliability"][STORED]["scale"] == loaded.model.temperature.calibrated and FITTED not in stored
    assert stored[OWN] == pytest.approx(found[OWN], abs=1e-6)
    print_evaluation({"classification": stored})
    assert "stored scale" in (shown := capsys.readouterr().out) and "fitted scale" not in shown


def test_what_is_wrong_in_a_webdataset_is_named_or_counted(webdataset: Path, emoji: EmojiSet) -> None:
    picture = pngs(emoji)[0]
    odd = [{"png": picture}, {"png": picture, "cls": b"cat"}, {"cls": b"0"}, {"png": b"no picture", "cls": b"1"}]
    before = run(webdataset)["classification"]["images"]
    write_tar(webdataset / "test" / "11.tar", odd)
    with pytest.raises(UserError, match=r"nshards.txt says 11, but .* has 12 .tar files"):
        run(webdataset)
    (webdataset / "test" / "nshards.txt").write_text("12")
    found = run(webdataset)
    assert found["skipped"] == {"no class": 2, "no image": 1, "unreadable image": 1}
    assert found["classification"]["images"] == before
    write_tar(webdataset / "test" / "11.tar", [{"png": picture, "cls": b"6"}])
    with pytest.raises(UserError, match="sample s0000000 has class 6, the class names are 0 to 5"):
        run(webdataset)
    (webdataset / "dataset_type.txt").write_text("multilabel")
    with pytest.raises(UserError, match="'multilabel'; expected classification or retrieval"):
        run(webdataset)
    for shard in webdataset_shards(webdataset):
        Path(shard).unlink()
    (webdataset / "dataset_type.txt").unlink()
    with pytest.raises(UserError, match=r"no test/\*.tar"):
        run(webdataset)


def write_fashion_mnist(root: Path, pictures: np.ndarray, labels: list[int]) -> None:
    """The four files that torchvision looks for, in Yann LeCun's format."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        header = np.array([0x803, *pictures.shape], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pictures.tobytes())
        header = np.array([0x801, len(labels)], ">i4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + bytes(labels))


@pytest.mark.parametrize("name", ["FashionMNIST", "torchvision:FashionMNIST"])
def test_a_data_set_of_torchvision_gives_the_figures_of_a_class_folder(name: str, tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    labels = [i % 10 for i in range(30)]
    write_fashion_mnist(tmp_path / "root", pictures, labels)
    names = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        path = tmp_path / "folder" / names[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    (tmp_path / "names.txt").write_text("\n".join(names))
    found = run(name, data_root=tmp_path / "root", classes=str(tmp_path / "names.txt"))
    assert same(found, run(tmp_path / "folder")) and found["classification"]["classes"] == 10
    assert open_torchvision(name, tmp_path / "root").names == ["T-shirt/top", *names[1:]]


def test_a_data_set_without_class_names_asks_for_them(tmp_path: Path) -> None:
    pictures = tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    pictures.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (20, 20), ("red", "blue")[number]).save(pictures / f"{number}.ppm")
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("Filename;ClassId\n0.ppm;1\n1.ppm;0\n")
    with pytest.raises(UserError, match="GTSRB has no class names: give --classes FILE"):
        run("GTSRB", data_root=tmp_path)
    found = open_torchvision("GTSRB", tmp_path, ["blue sign", "red sign"])
    squares = torch.cat(list(found.squares(8)))
    assert (squares[0, 0] == 255).all() and found.labels == [1, 0] and found.names == ["blue sign", "red sign"]
    with pytest.raises(UserError, match="picture 0 of GTSRB has class 1, the class names are 0 to 0"):
        list(open_torchvision("GTSRB", tmp_path, ["blue sign"]).squares(8))


@pytest.mark.parametrize("name", sorted(TEST_SPLITS))
def test_every_data_set_whose_files_are_missing_says_where_they_belong(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"files of {name} are not complete under .*--data-root|{name} needs"):
        open_torchvision(name, tmp_path)


def test_unknown_data_sets_are_named_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"torchvision:CIFAR11: no such classification set; there is Caltech101.*CIFAR10"
    ):
        run("torchvision:CIFAR11")
    with pytest.raises(UserError, match="ImageNet cannot be downloaded by torchvision"):
        run("ImageNet", download=True, data_root=tmp_path)


def test_missing_files_say_what_torchvision_says_and_offer_only_what_works(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"CIFAR10 .* \(Dataset not found or corrupted.*--data-root, or give --download"
    ):
        open_torchvision("CIFAR10", tmp_path)
    with pytest.raises(UserError, match=r"files of ImageNet .* \(The archive .*\): name .*--data-root$") as refusal:
        open_torchvision("ImageNet", tmp_path)
    assert "\n" not in str(refusal.value)


CAPTIONS = {"a.png": ["a red cat", "one cat"], "b.png": ["a dog"], "c.png": ["a dog", "two dogs"], "d.png": ["a boat"]}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    (tmp_path / "val").mkdir()
    for name in (*CAPTIONS, "e.png"):
        Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "val" / name)
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        rows = [(f"val/{name}", caption) for name, captions in CAPTIONS.items() for caption in captions]
        csv.writer(file).writerows([("image", "caption"), *rows])
    return tmp_path


def coco() -> dict[str, Any]:
    images = [{"id": 7 * i, "file_name": name} for i, name in enumerate(CAPTIONS)]
    annotations = [
        {"image_id": image["id"], "caption": caption} for image in images for caption in CAPTIONS[image["file_name"]]
    ]
    return {"info": {}, "images": [*images, {"id": 99, "file_name": "e.png"}], "annotations": annotations[::-1]}


def karpathy() -> dict[str, Any]:
    images = [
        {"filename": name, "split": "test", "sentences": [{"raw": caption} for caption in captions]}
        for name, captions in CAPTIONS.items()
    ]
    return {"images": [*images, {"filename": "e.png", "split": "train", "sentences": [{"raw": "not this"}]}]}


@pytest.mark.parametrize("content", [coco(), karpathy()], ids=["coco", "karpathy"])
def test_caption_json_gives_the_figures_of_a_table(content: dict[str, Any], pictures: Path) -> None:
    expected = run(pictures / "pairs.csv")
    assert (expected["retrieval"]["captions"], expected["retrieval"]["pairs"]) == (5, 6)
    (pictures / "captions.json").write_text(json.dumps(content))
    assert run(pictures / "captions.json", data_root=pictures / "val") == expected
    (pictures / "val" / "captions.json").write_text(json.dumps(content))
    assert run(pictures / "val" / "captions.json") == expected


def test_retrieval_shards_in_clip_benchmarks_layout_have_a_caption_a_line(pictures: Path) -> None:
    samples = [
        {"png": (pictures / "val" / name).read_bytes(), "txt": "\n".join(captions).encode()}
        for name, captions in CAPTIONS.items()
    ]
    write_tar(pictures / "wds" / "test" / "0.tar", samples)
    (pictures / "wds" / "dataset_type.txt").write_text("retrieval\n")
    assert run(pictures / "wds") == run(pictures / "pairs.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "is no caption JSON"),
        ("[1, 2]", "is no caption JSON"),
        (
            '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 2, "caption": "x"}]}',
            "KeyError: 2",
        ),
        ('{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "bbox": []}]}', "'caption'"),
        ('{"images": [{"filename": "a.png", "split": "train", "sentences": []}]}', "no captions for the split 'test'"),
        ('{"images": [{"filename": "zz.png", "sentences": [{"raw": "x"}]}]}', "none of its images exists.*--data-root"),
    ],
)
def test_a_json_of_something_else_is_refused_in_one_line(text: str, message: str, pictures: Path) -> None:
    (pictures / "val" / "captions.json").write_text(text)
    with pytest.raises(UserError, match=message) as refusal:
        run(pictures / "val" / "captions.json")
    assert "\n" not in str(refusal.value)


def test_lists_of_templates_by_name_are_their_makers() -> None:
    import open_clip

    for word, functions in (
        ("openai", open_clip.OPENAI_IMAGENET_TEMPLATES), ("simple", open_clip.SIMPLE_IMAGENET_TEMPLATES)
    ):  # fmt: skip
        assert prompts_of(["cat"], read_templates((word,))) == [[function("cat") for function in functions]]
    pytest.importorskip("clip_benchmark")
    found = prompts_of(["soup"], read_templates(("clip_benchmark:food101",)))
    assert found == [["a photo of soup, a type of food."]]
    with pytest.raises(UserError, match=r"no templates for 'food'; there is .*food101"):
        read_templates(("clip_benchmark:food",))
    with pytest.raises(UserError, match=r"'opnai' has no {} .* none of openai, simple"):
        read_templates(("opnai",))


def test_a_template_file_may_hold_either_place_for_the_name_and_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a {c} here\n\nno {}\n")
    assert prompts_of(["x{c}{}", "dog"], read_templates((str(tmp_path / "t.txt"),))) == [
        ["a x{c}{} here", "no x{c}{}"], ["a dog here", "no dog"],
    ]  # fmt: skip


DESCRIPTIONS = {
    "dog face": ["a dog", "a hound's head", "it barks"],
    "pizza": ["food"],
    "rocket": ["it flies", "a ship"],
}


def test_a_class_is_the_mean_of_its_descriptions_however_many_there_are() -> None:
    model, _, tokenizer = load(MODEL)
    found = build_classifier(model, tokenizer, list(DESCRIPTIONS)[::-1], DESCRIPTIONS)
    means = [model.topology.mean(encode_texts(model, tokenizer, texts)) for texts in DESCRIPTIONS.values()]
    assert relative_error(found, torch.stack(means[::-1])) <= ORDER
    assert model.topology.manifold.check_point_on_manifold(found, atol=ORDER)


def test_description_files_stand_for_templates(webdataset: Path, tmp_path: Path) -> None:
    """Those that say what two templates do give their figures; CLIP_benchmark's have one more level."""
    table = {name: [template.replace("{c}", name) for template in TEMPLATES] for name in NAMES}
    path = tmp_path / "cupl.json"
    for content in (table, {"wds": table}):
        path.write_text(json.dumps(content))
        assert same(run(webdataset, descriptions=path), run(webdataset))
    with pytest.raises(UserError, match="exclude each other"):
        run(webdataset, descriptions=path, templates=("{}",))
    path.write_text(json.dumps({name: table[name] for name in NAMES[2:]}))
    with pytest.raises(UserError, match="no descriptions for 2 of 6 classes, such as 'cat face'"):
        run(webdataset, descriptions=path)
    path.write_text(json.dumps({name.replace(" ", "_"): sentences for name, sentences in table.items()}))
    assert same(run(webdataset, descriptions=path), run(webdataset))
    path.write_text(json.dumps({name.title(): sentences for name, sentences in table.items()}))
    with pytest.raises(UserError, match="6 of 6 classes, such as 'cat face'; the nearest that there are is 'Cat Face'"):
        run(webdataset, descriptions=path)
    for text, message in (("{", "is no JSON"), ('{"a": "b", "c": []}', "must hold {class name"), ("[]", "must hold")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_descriptions(path)
    with pytest.raises(UserError, match=r"cannot read .*none.json"):
        read_descriptions(tmp_path / "none.json")
