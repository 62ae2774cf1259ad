"""Exported towers give the model's points: ONNX files in onnxruntime, torch.export files, for any batch and caption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, relative_error
from PIL import Image
from torch import Tensor
from torch.export import ExportedProgram

from oblique_clip import create_model, load, model_config
from oblique_clip.checkpoint import save_model
from oblique_clip.data.images import Side
from oblique_clip.errors import UserError
from oblique_clip.export import (
    OPSET,
    TOLERANCE,
    ExportConfig,
    describe_use,
    export,
    export_image,
    export_text,
    save_onnx,
    save_torch,
)
from oblique_clip.interop.open_clip import Cut
from oblique_clip.interop.surgery import to_oblique
from oblique_clip.model import DualEncoder

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
FORMS = ("clip", "sphere", "oblique")
SOURCES = (*FORMS, "surgery", "clip surgery", "convnet")
# Blocks before the last run as those of the text tower do: one block of the image tower is enough.
ARCH = replace(TINY, vision_layers=1)
BATCHES = (1, 3, 5)
"""None of them the size that was exported."""


def model_of(source: str) -> DualEncoder:
    if source in FORMS:
        return create_model(model_config("tiny", source, arch=ARCH))  # type: ignore[arg-type]
    if source == "convnet":
        return create_model(model_config("tiny", "oblique", arch=replace(ARCH, timm_name="test_resnet", image_size=64)))
    return to_oblique(model_of("clip" if source == "clip surgery" else "sphere"), 16, 8)


@pytest.fixture(scope="module", params=SOURCES)
def exported(request: pytest.FixtureRequest) -> tuple[DualEncoder, ExportedProgram, ExportedProgram]:
    torch.manual_seed(0)
    model = model_of(request.param).eval()
    return model, export_image(model), export_text(model)


def image_batches(model: DualEncoder) -> Iterator[Tensor]:
    for size in BATCHES:
        yield torch.randn(size, 3, *model.visual.image_size)


def caption_batches(model: DualEncoder) -> Iterator[Tensor]:
    """Captions of several lengths in one batch, in batches cut to several lengths, some of them without padding."""
    end = model.text.vocab_size - 1
    for size in BATCHES:
        for length in (2, 7, model.context_length):
            ids = torch.randint(1, end, (size, length))
            for row, place in enumerate(torch.randint(1, length, (size,)).tolist()):
                ids[row, place], ids[row, place + 1 :] = end, 0
            ids[0, -1], ids[0, :-1] = end, ids[0, :-1].clamp(1, end - 1)
            yield ids


@torch.no_grad()
def check(run: object, model: DualEncoder, tower: str) -> None:
    batches = image_batches(model) if tower == "image" else caption_batches(model)
    encode = model.encode_image if tower == "image" else model.encode_text
    for batch in batches:
        expected = encode(batch)
        found = run(batch)  # type: ignore[operator]
        assert found.shape == expected.shape and found.dtype == torch.float32
        assert relative_error(found, expected) < TOLERANCE
        if len(batch) > 1:
            assert relative_error(found.roll(1, 0), expected) > 10 * TOLERANCE


@pytest.mark.parametrize("tower", ["image", "text"])
def test_onnxruntime_gives_the_points_of_the_model(
    exported: tuple[DualEncoder, ExportedProgram, ExportedProgram], tower: str, tmp_path: Path
) -> None:
    model, *programs = exported
    path = tmp_path / f"{tower}.onnx"
    run = save_onnx(programs[tower == "text"], path, {"scale": 2.5})
    check(run, model, tower)
    written = onnx.load(path)
    onnx.checker.check_model(written)
    assert [opset.version for opset in written.opset_import if opset.domain == ""] == [OPSET]
    assert json.loads({entry.key: entry.value for entry in written.metadata_props}["oblique_clip"])["scale"] == 2.5
    other = model.text if tower == "image" else model.visual
    own = sum(value.numel() for value in model.state_dict().values()) - sum(v.numel() for v in other.parameters())
    # The weights of one tower, not of both.
    assert sum(int(torch.tensor(tensor.dims).prod()) for tensor in written.graph.initializer) < 1.2 * own


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_torch_program_gives_the_points_of_the_model(
    exported: tuple[DualEncoder, ExportedProgram, ExportedProgram], tower: str, tmp_path: Path
) -> None:
    model, *programs = exported
    check(save_torch(programs[tower == "text"], tmp_path / f"{tower}.pt2", {}), model, tower)


def test_a_folder_has_all_that_is_needed_without_the_library(tmp_path: Path) -> None:
    """Pixels, tokens and logits made from the files alone are those of the model."""
    from tokenizers import Tokenizer

    config = model_config("tiny", "oblique", arch=replace(ARCH, text_layers=1), topology="oblique(16,8)/chordal")
    model = create_model(config)
    model.temperature.calibrated = 0.5
    save_model(model, config, tmp_path / "model.safetensors")
    out = tmp_path / "export"
    assert export(ExportConfig(str(tmp_path / "model.safetensors"), out, "torch")) == {
        "image.pt2": pytest.approx(0, abs=TOLERANCE),
        "text.pt2": pytest.approx(0, abs=TOLERANCE),
    }
    extra = {"oblique_clip": ""}
    program = torch.export.load(out / "text.pt2", extra_files=extra)
    facts, loaded = json.loads(extra["oblique_clip"]), load(tmp_path / "model.safetensors")
    caption = "a red apple, seen from above, on a table beside a very small house by the sea"
    pieces = Tokenizer.from_file(str(out / "tokenizer.json")).encode(caption).ids[: facts["context_length"] - 1]
    ids = torch.tensor([[*pieces, facts["end_id"]]])
    with torch.no_grad():
        expected = loaded.model.encode_text(loaded.tokenizer([caption]))
        assert relative_error(program.module()(ids), expected) < TOLERANCE
    assert facts == describe_use(loaded, config) and facts["topology"] == "oblique(16,8)/chordal"
    pixels = torch.full((3, 40, 40), 200, dtype=torch.uint8)
    by_hand = (200 / 255 - torch.tensor(facts["mean"])) / torch.tensor(facts["std"])
    assert relative_error(loaded.preprocess.batch(pixels[None])[0, :, 0, 0], by_hand) < 1e-5
    assert facts["scale"] == loaded.model.temperature.scale.item() and facts["calibrated_scale"] == 0.5
    assert {path.name for path in out.iterdir()} == {"config.json", "image.pt2", "text.pt2", "tokenizer.json"}


@pytest.mark.parametrize("mode", ["middle_square", "squash"])
def test_a_picture_becomes_a_square_by_the_facts_alone(mode: str) -> None:
    """Ours, and one of open_clip's that keeps no shape."""
    config = model_config("tiny", "clip", arch=ARCH)
    loaded = load("tiny-sphere")
    if mode == "squash":
        side = Side(32, Cut("bicubic", "squash", 0))
        loaded = loaded._replace(preprocess=replace(loaded.preprocess, image_size=side, interpolation="bicubic"))
    facts = describe_use(loaded, config)
    pixels = torch.randint(0, 256, (60, 90, 3), dtype=torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    whole = facts["resize_mode"] == "squash"
    small = picture.resize((32, 32) if whole else (48, 32), filters[facts["interpolation"]])
    square = torch.from_numpy(np.array(small if whole else small.crop((8, 0, 40, 32)))).permute(2, 0, 1)
    normal = (square / 255 - torch.tensor(facts["mean"])[:, None, None]) / torch.tensor(facts["std"])[:, None, None]
    assert facts["image_size"] == 32 and facts["resize_mode"] == ("squash" if mode == "squash" else "shortest")
    assert facts["square_interpolation"] == loaded.preprocess.interpolation
    assert relative_error(loaded.preprocess(picture), normal) < 1e-5


def test_a_run_folder_and_a_missing_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="is a run folder"):
        export(ExportConfig("tiny-oblique", tmp_path))
    with pytest.raises(UserError, match="no such checkpoint"):
        export(ExportConfig("nowhere", tmp_path / "export"))
    assert not (tmp_path / "export").exists()
