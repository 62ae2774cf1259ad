"""Files of weights at every entrance: no code in them runs, and what is wrong with one is said in one line."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from conftest import TINY
from safetensors.torch import save_file

from oblique_clip import create_model, load, model_config
from oblique_clip.checkpoint import save_model
from oblique_clip.cli import main
from oblique_clip.config import Architecture, to_json
from oblique_clip.errors import UserError
from oblique_clip.interop.clip_mtob import load_clip_mtob
from oblique_clip.interop.hub import from_pretrained
from oblique_clip.towers import ImageTower
from oblique_clip.weights_file import read_state_dict

WEIGHTS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(400)}
CONFIG = model_config("tiny", "sphere", arch=TINY)
OPEN_CLIP = "tiny-weights-file"


class Bomb:
    """What a pickle can do to who reads it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.target)!r}, 'w')",)


def enter_hub(path: Path) -> object:
    path.rename(path.with_name("pytorch_model.bin"))
    path.with_name("config.json").write_text(json.dumps(to_json(CONFIG)))
    return from_pretrained(path.parent)


def enter_timm(path: Path) -> object:
    arch = Architecture(
        timm_name="vit_tiny_patch16_224", patch_size=16, vision_width=192, vision_heads=3, pretrained=str(path)
    )
    return ImageTower(arch, 16, 8)


def enter_open_clip(path: Path) -> object:
    vision = {"layers": 1, "width": 64, "image_size": 32, "patch_size": 16}
    sizes = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": {"layers": 1, "width": 32, "heads": 2}}
    path.with_name(f"{OPEN_CLIP}.json").write_text(json.dumps(sizes))
    open_clip.add_model_config(path.with_name(f"{OPEN_CLIP}.json"))
    return load(f"open_clip:{OPEN_CLIP}/{path}")


ENTRANCES: dict[str, Callable[[Path], object]] = {
    "hub": enter_hub,
    "timm": enter_timm,
    "open_clip": enter_open_clip,
    "clip-mtob": lambda path: load_clip_mtob(path, None),
}
entrances = pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES.keys())


def refused(enter: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(UserError) as caught:
        enter(path)
    told = str(caught.value)
    assert "\n" not in told and "weights_only" not in told and path.parent.name in told
    return told


def saved(path: Path, zipped: bool = True) -> bytes:
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=zipped)
    return path.read_bytes()


@entrances
@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_code_in_a_pickle_does_not_run(form: str, enter: Callable[[Path], object], tmp_path: Path) -> None:
    path, target = tmp_path / "x.pt", tmp_path / "ran"
    content = {**WEIGHTS, "a": Bomb(target)}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    assert "could run code, so it was not unpickled: save its weights alone" in refused(enter, path)
    assert not target.exists()
    path.write_bytes(whole)
    pickle.loads(whole) if form == "plain pickle" else torch.load(path, weights_only=False)
    assert target.exists(), "the test's own pickle does nothing"


DAMAGED = "or not a whole one: copy or download it again"
BROKEN: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda path: b"", DAMAGED),
    "half a zip": (lambda path: saved(path)[: len(saved(path)) // 2], DAMAGED),
    "half a legacy file": (lambda path: saved(path, False)[: len(saved(path, False)) // 2], DAMAGED),
    "its first bytes": (lambda path: saved(path)[:100], DAMAGED),
    "LFS pointer": (lambda path: b"version https://git-lfs.github.com/spec/v1\noid sha256:cf17\n", "git lfs pull"),
    "HTML": (lambda path: b"<html>not found</html>", DAMAGED),
    "noise": (lambda path: bytes(range(256)), DAMAGED),
}


@entrances
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_file_is_told(broken: str, enter: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    make, words = BROKEN[broken]
    path.write_bytes(make(path))
    assert words in refused(enter, path)


@entrances
@pytest.mark.parametrize("content", [[torch.zeros(2)], {}, {"weight": "text"}], ids=["list", "nothing", "text"])
def test_what_is_no_state_dict_is_told(content: object, enter: Callable[[Path], object], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    assert "holds no state dict" in refused(enter, tmp_path / "x.pt")


@entrances
def test_weights_of_another_model_are_told(enter: Callable[[Path], object], tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "x.pt")
    told = refused(enter, tmp_path / "x.pt")
    if enter is enter_open_clip:
        lacking = len(open_clip.create_model(OPEN_CLIP).state_dict())
        assert f"x.pt is not a {OPEN_CLIP} (lacks {lacking} keys, first `positional_embedding`)" in told
        assert told.endswith("name the architecture it was trained as")


def test_open_clips_weights_of_other_shapes_or_with_more_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        enter_open_clip(tmp_path / "missing.pt")
    weights = open_clip.create_model(OPEN_CLIP).state_dict()
    for change, words in (
        ({"logit_gain": torch.zeros(())}, "has 1 keys too many, first `logit_gain`"),
        ({"ln_final.weight": torch.zeros(5)}, "has other shapes of 1 keys, first `ln_final.weight`"),
    ):
        torch.save({**weights, **change}, tmp_path / "x.pt")
        assert words in refused(enter_open_clip, tmp_path / "x.pt")
    save_file(weights, tmp_path / "x.pt")
    assert "rename it" in refused(enter_open_clip, tmp_path / "x.pt")
    torch.save({"state_dict": weights, "extra": Bomb(tmp_path / "ran")}, tmp_path / "open_clip_pytorch_model.bin")
    settings = {"model_cfg": open_clip.get_model_config(OPEN_CLIP)}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    assert "could run code" in refused(lambda path: load(f"open_clip:local-dir:{path.parent}"), tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"epoch": 3, "state_dict": weights, "args": argparse.Namespace(lr=0.1)},
        lambda weights: {"model": {name: -value for name, value in weights.items()}, "model_ema": weights},
        lambda weights: {"model": {f"module._orig_mod.{name}": value for name, value in weights.items()}},
        lambda weights: {f"_orig_mod.module.{name}": value for name, value in weights.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappings_come_off(wrap: Callable[[Any], Any], zipped: bool, tmp_path: Path) -> None:
    torch.save(wrap(WEIGHTS), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["x.safetensors", "model.bin"])
def test_safetensors_is_told_by_its_content(name: str, tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / name)
    assert_weights(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-8])
    with pytest.raises(UserError, match=DAMAGED):
        read_state_dict(tmp_path / name)


def assert_weights(path: Path) -> None:
    found = read_state_dict(path)
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    for absent in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(UserError, match=f"^cannot read {absent}"):
            read_state_dict(absent)


FOREIGN = "is no checkpoint of oblique_clip: load it as open_clip:NAME/{path}, clip-mtob:{path},VOCABULARY, or"


def write_half(path: Path) -> None:
    save_model(create_model(CONFIG), CONFIG, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "write, words",
    [
        (lambda path: save_file(WEIGHTS, path, {"format": "pt"}), FOREIGN),
        (lambda path: save_file(WEIGHTS, path), FOREIGN),
        (lambda path: save_file(WEIGHTS, path, {"config": "a text"}), FOREIGN),
        (lambda path: torch.save(WEIGHTS, path), FOREIGN),
        (lambda path: torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False), FOREIGN),
        (write_half, DAMAGED),
        (lambda path: path.write_bytes(b""), DAMAGED),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    ],
)
def test_a_checkpoint_that_is_not_ours_is_told(
    write: Callable[[Path], object], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.safetensors"
    write(path)
    for verb in (["evaluate", str(path)], ["train", "--start-from", str(path)], ["export", str(path)]):
        assert main(verb) == 2
        told = capsys.readouterr().err
        assert words.format(path=path) in told and len(told.splitlines()) == 1
