"""`evaluate`: what it counts as an image, a caption and a pair, and what it writes where."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oblique_clip import create_model, load, model_config
from oblique_clip.checkpoint import save_model
from oblique_clip.config import Architecture, DataConfig
from oblique_clip.data.images import decode_square
from oblique_clip.errors import UserError
from oblique_clip.evaluate.encode import encode_images, encode_texts
from oblique_clip.evaluate.run import EvaluateConfig, evaluate
from oblique_clip.evaluate.tasks import HeldOut, evaluate_emoji
from oblique_clip.evaluate.templates import PLAIN

SMALL = Architecture(patch_size=16, vision_width=32, vision_layers=1, text_width=32, text_layers=1)
# A family of few pictures is judged; the concepts are not, which keeps it fast.
FEW = DataConfig(test_families=("emoji-fxemoji",), val_families=(), held_out_concepts=())
KS = (1, 5, 10)
SAME_SUM = 1e-12

# Image 0 has five captions, "shared" belongs to images 1 and 2: no groups of images express that with "own".
PAIRS = [
    *[(0, f"caption {word} of the first") for word in ("one", "two", "three", "four", "five")],
    (1, "shared"),
    (2, "shared"),
    (2, "own"),
    *[(number, f"picture {number}") for number in range(3, 9)],
]
CAPTIONS = list(dict.fromkeys(caption for _, caption in PAIRS))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = model_config("tiny", "oblique", arch=SMALL)
    save_model(create_model(config), config, tmp_path / "model.safetensors", data=FEW)
    return tmp_path / "model.safetensors"


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Nine noisy pictures, larger than the model's input."""
    random = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    paths = [tmp_path / "pictures" / f"{number}.png" for number in range(9)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(path)
    return paths


def write_table(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    return path


def write_shard(path: Path, samples: list[tuple[bytes, str]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for number, (picture, caption) in enumerate(samples):
            for extension, content in (("png", picture), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number:03d}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def run(model: Path, data: Path | str, **changes: Any) -> dict[str, Any]:
    return evaluate(EvaluateConfig(model, str(data), device="cpu", **changes))["evaluation"]


def recall_by_hand(scores: np.ndarray, related: np.ndarray, k: int) -> float:
    hits = 0
    for row, right in zip(scores, related, strict=True):
        hits += (row[~right] >= row[right].max()).sum() < k
    return hits / len(scores)


def test_a_table_is_judged_by_its_distinct_images_captions_and_pairs(model: Path, pictures: list[Path]) -> None:
    """A row said twice, in another case, and by another way to the same file, adds nothing."""
    rows = [(f"pictures/{image}.png", caption) for image, caption in PAIRS]
    rows += [rows[0], ("pictures/../pictures/1.png", "SHARED")]
    found = run(model, write_table(model.parent / "pairs.csv", rows))
    sizes = {"images": 9, "captions": 13, "pairs": len(PAIRS)}
    assert {name: found["retrieval"][name] for name in sizes} == sizes and found["skipped"] == {}

    encoder, preprocess, tokenizer = load(model)
    squares = torch.stack([decode_square(path, preprocess.image_size) for path in pictures])
    points = encode_images(encoder, [squares], preprocess)
    scores = encoder.topology.similarity(points, encode_texts(encoder, tokenizer, CAPTIONS)).numpy()
    related = np.array([[(image, caption) in PAIRS for caption in CAPTIONS] for image in range(len(pictures))])
    for k in KS:
        assert found["retrieval"][f"image_to_text_r@{k}"] == recall_by_hand(scores, related, k)
        assert found["retrieval"][f"text_to_image_r@{k}"] == recall_by_hand(scores.T, related.T, k)
    to_text, to_image = (5 + 1 + 2 + 6) / 13 / 9, (12 + 2) / 9 / 13
    assert found["retrieval"]["image_to_text_chance_r@1"] == pytest.approx(to_text, abs=SAME_SUM)
    assert found["retrieval"]["text_to_image_chance_r@1"] == pytest.approx(to_image, abs=SAME_SUM)


def test_an_image_that_cannot_be_read_drops_out_with_the_captions_that_it_alone_has(
    model: Path, pictures: list[Path]
) -> None:
    pictures[0].write_bytes(b"no picture")
    pictures[2].unlink()
    rows = [(f"pictures/{image}.png", caption) for image, caption in PAIRS]
    found = run(model, write_table(model.parent / "pairs.csv", rows))
    sizes = {"images": 7, "captions": 7, "pairs": 7}
    assert {name: found["retrieval"][name] for name in sizes} == sizes
    assert found["skipped"] == {"unreadable image": 1, "missing image": 1}
    for path in pictures:
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="no picture could be read"):
        run(model, model.parent / "pairs.csv")


def test_shards_give_the_figures_of_a_table_of_the_same_pairs(model: Path, pictures: list[Path]) -> None:
    """One caption an image, as a sample has; two of the captions are the same."""
    pairs = [(path, CAPTIONS[max(number, 1)]) for number, path in enumerate(pictures)]
    for part, chosen in enumerate((pairs[:5], pairs[5:])):
        write_shard(model.parent / f"pairs-{part}.tar", [(path.read_bytes(), caption) for path, caption in chosen])
    rows = [(f"pictures/{path.name}", caption) for path, caption in pairs]
    table = run(model, write_table(model.parent / "pairs.csv", rows))
    assert run(model, model.parent / "pairs-{0..1}.tar") == table
    assert (table["retrieval"]["captions"], table["retrieval"]["pairs"]) == (8, 9)


def test_a_damaged_picture_of_a_shard_is_counted(model: Path, pictures: list[Path]) -> None:
    samples = [(pictures[0].read_bytes(), "a dog"), (b"no picture", "a cat"), (pictures[1].read_bytes(), " ")]
    found = run(model, write_shard(model.parent / "pairs.tar", samples))
    assert found["retrieval"]["images"] == found["retrieval"]["captions"] == 1
    assert found["skipped"] == {"unreadable image": 1, "empty caption": 1}
    with pytest.raises(UserError, match="no picture could be read"):
        run(model, write_shard(model.parent / "none.tar", samples[1:]))


def test_templates_change_the_classifier_of_the_shipped_set_and_nothing_else(model: Path) -> None:
    plain = run(model, "emoji")
    (model.parent / "templates.txt").write_text("a drawing of {}, seen from afar\n\nno {} at all\n")
    prompted = run(model, "emoji", templates=(str(model.parent / "templates.txt"),))
    assert prompted["retrieval"] == plain["retrieval"]
    assert prompted["family"]["pixel_floor"] == plain["family"]["pixel_floor"]
    assert prompted["family"] != plain["family"]
    templates = ("a drawing of {}, seen from afar", "no {} at all")
    assert evaluate_emoji(load(model), HeldOut(FEW), templates) == prompted
    assert evaluate_emoji(load(model), HeldOut(FEW), PLAIN) == plain


def test_the_folder_of_a_run_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "result.json").write_text("of the run")
    with pytest.raises(UserError, match="is a run folder"):
        evaluate(EvaluateConfig(tmp_path / "no model", "no data", out=tmp_path))
    assert (tmp_path / "result.json").read_text() == "of the run"


def test_a_report_may_be_written_again(model: Path, pictures: list[Path]) -> None:
    table = write_table(model.parent / "pairs.csv", [("pictures/0.png", "a dog"), ("pictures/1.png", "a cat")])
    for _ in range(2):
        found = run(model, table, out=model.parent / "out")
        assert json.loads((model.parent / "out" / "result.json").read_text())["evaluation"] == found
