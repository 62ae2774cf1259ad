"""Going on from a trained model: the first step starts where it stood, or where `to_oblique` puts it."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import relative_error
from PIL import Image
from torch import Tensor

from oblique_clip import load
from oblique_clip.checkpoint import data_of
from oblique_clip.cli import main
from oblique_clip.interop.hub import from_pretrained, save_pretrained
from oblique_clip.interop.surgery import to_oblique
from oblique_clip.model import DualEncoder

SAME = 1e-5
# A rate at which no float32 moves, so that the model of the run is the one that it started from.
STILL = ["--steps", "1", "--batch-size", "16", "--lr", "1e-30", "--point-lr", "1e-30", "--weight-decay", "0"]
EMOJI = ["--test-families", "emoji-fluent", "--val-families", "emoji-fxemoji"]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small architecture in open_clip's registry, with a checkpoint of its own trainer."""
    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"layers": 1, "width": 64, "image_size": 32, "patch_size": 16}
    settings = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": {"layers": 1, "width": 32, "heads": 2}}
    (folder / "tiny-start-clip.json").write_text(json.dumps(settings))
    open_clip.add_model_config(folder / "tiny-start-clip.json")
    torch.manual_seed(5)
    state = open_clip.create_model("tiny-start-clip").state_dict()
    torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {}}, folder / "epoch_3.pt")
    return f"open_clip:tiny-start-clip/{folder}/epoch_3.pt"


def started(out: Path, source: str, *flags: str) -> DualEncoder:
    arguments = [
        "train",
        "--start-from",
        source,
        *STILL,
        *EMOJI,
        "--out",
        str(out),
        "--device",
        "cpu",
        "--threads",
        "1",
    ]
    assert main([*arguments, *flags]) == 0
    return load(out).model


@torch.no_grad()
def points(model: DualEncoder) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = model.visual.image_size[0]
    ids = torch.tensor([[40, 41, 60, 0], [49406, 320, 2368, 49407]]).clamp(max=model.text.vocab_size - 1)
    return model.encode_image(torch.randn(4, 3, size, size, generator=generator)), model.encode_text(ids)


def assert_same(found: DualEncoder, expected: DualEncoder) -> None:
    for ours, theirs in zip(points(found), points(expected), strict=True):
        assert relative_error(ours, theirs) < SAME
    assert found.temperature.scale.item() == pytest.approx(expected.temperature.scale.item(), rel=SAME)


@pytest.mark.parametrize("topology", ["sphere(32)", "oblique(8,4)", "oblique(8,4)/geodesic"])
def test_open_clips_models_go_on_and_come_back_without_their_file(local: str, topology: str, tmp_path: Path) -> None:
    model = started(tmp_path / "run", local, "--topology", topology)
    source = load(local).model
    expected = source if topology == "sphere(32)" else to_oblique(source, 8, 4)
    assert model.topology.spec.startswith(topology)
    if topology.endswith("geodesic"):
        expected.temperature.log_scale.data += torch.tensor(
            model.topology.max_scale / expected.topology.max_scale
        ).log()
    assert_same(model, expected)
    loaded = load(tmp_path / "run")
    assert torch.equal(loaded.tokenizer(["a red apple"]), open_clip.get_tokenizer("ViT-B-32")(["a red apple"]))
    save_pretrained(tmp_path / "run", tmp_path / "folder")
    assert_same(from_pretrained(tmp_path / "folder").model, model)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["evaluation"]["family"]["top1"] >= 0 and data_of(tmp_path / "run").data == "emoji"


@pytest.mark.parametrize(("source", "topology"), [("tiny-sphere", "oblique(16,8)"), ("tiny-oblique", "oblique(16,8)")])
def test_a_checkpoint_of_ours_goes_on(source: str, topology: str, tmp_path: Path) -> None:
    model, before = started(tmp_path / "run", source, "--topology", topology), load(source).model
    assert_same(model, to_oblique(before, 16, 8) if source == "tiny-sphere" else before)


def test_a_start_needs_no_more_what_its_model_began_with(tmp_path: Path) -> None:
    """The weights of timm that a run began with are in the run."""
    import timm

    for colour in ("red", "blue"):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{colour}.png")
    (tmp_path / "pairs.csv").write_text("image,caption\nred.png,red\nblue.png,blue\n")
    path, name = tmp_path / "own.pt", "vit_tiny_patch16_224"
    torch.save(timm.create_model(name, depth=1, img_size=32, patch_size=8).state_dict(), path)
    sizes = ["--timm-name", name, "--vision-width", "192", "--vision-heads", "3", "--vision-layers", "1"]
    flags = [*STILL, "--batch-size", "2", "--data", str(tmp_path / "pairs.csv"), "--device", "cpu", "--threads", "1"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["train", "--pretrained", str(path), *sizes, *flags, "--out", str(first)]) == 0
    path.unlink()
    assert main(["train", "--start-from", str(first), *flags, "--out", str(second)]) == 0
    assert_same(load(second).model, load(first).model)


def test_what_the_flags_say_of_temperature_and_loss_holds(tmp_path: Path) -> None:
    model = started(tmp_path / "run", "tiny-oblique", "--init-scale", "1.5", "--loss", "sigmoid")
    assert model.temperature.scale.item() == pytest.approx(1.5)
    assert model.logit_bias is not None and model.logit_bias.item() == pytest.approx(model.topology.initial_bias())
    constant = started(tmp_path / "constant", "tiny-oblique", "--temperature", "constant")
    assert constant.temperature.scale.item() == pytest.approx(constant.topology.initial_scale("info_nce"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--size", "small"], "leave out --size and --form"),
        (["--class-tokens", "oblique"], "--class-tokens is a property of the model"),
        (["--image-size", "64"], "--image-size is a property of the model"),
        (["--topology", "oblique(16,4)"], "oblique(16,4) has 64 numbers"),
        (["--val-families", "emoji-noto"], "trained on emoji-noto"),
    ],
)
def test_what_a_start_cannot_follow_is_told(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(["train", "--start-from", "tiny-sphere", *STILL, *out, *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
