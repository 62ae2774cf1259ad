"""One command for a model from any home gives the same report: a run, files, a folder, the hub, other libraries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import TINY
from PIL import Image
from test_interop_clip_mtob import PIECES, Official

from oblique_clip import create_model, model_config
from oblique_clip.checkpoint import BEST, save_model
from oblique_clip.cli import main
from oblique_clip.interop.hub import save_pretrained

CONFIG = model_config("tiny", "oblique", arch=TINY)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def checkpoint(root: Path) -> Path:
    """The one model of ours that each home of ours holds."""
    torch.manual_seed(0)
    save_model(create_model(CONFIG), CONFIG, root / "model.safetensors")
    return root / "model.safetensors"


def in_a_file(root: Path, patch: pytest.MonkeyPatch) -> str:
    return str(checkpoint(root))


def in_a_run(root: Path, patch: pytest.MonkeyPatch) -> str:
    (root / "run" / "checkpoints").mkdir(parents=True)
    checkpoint(root).rename(root / "run" / "checkpoints" / BEST)
    return str(root / "run")


def in_a_folder(root: Path, patch: pytest.MonkeyPatch) -> str:
    return str(save_pretrained(checkpoint(root), root / "folder"))


def on_the_hub(root: Path, patch: pytest.MonkeyPatch) -> str:
    """As the hub's client keeps it once downloaded, with no hub in reach."""
    hub = pytest.importorskip("huggingface_hub")
    patch.setattr(hub.constants, "HF_HUB_CACHE", str(root))
    patch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    repository = root / "models--someone--apples"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    save_pretrained(checkpoint(root), repository / "snapshots" / COMMIT)
    return "hf:someone/apples"


def of_open_clip(root: Path, patch: pytest.MonkeyPatch) -> str:
    settings = {
        "embed_dim": 32,
        "vision_cfg": {"layers": 1, "width": 64, "image_size": 32, "patch_size": 16},
        "text_cfg": {"layers": 1, "width": 32, "heads": 2, "context_length": 24, "vocab_size": 49408},
    }
    (root / "sources-test-clip.json").write_text(json.dumps(settings))
    open_clip.add_model_config(root / "sources-test-clip.json")
    torch.save({"state_dict": open_clip.create_model("sources-test-clip").state_dict()}, root / "epoch_1.pt")
    return f"open_clip:sources-test-clip/{root / 'epoch_1.pt'}"


def of_clip_mtob(root: Path, patch: pytest.MonkeyPatch) -> str:
    (root / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    torch.save(Official(8, 4, (64, 1), (64, 1)).state_dict(), root / "official.pt")
    return f"clip-mtob:{root / 'official.pt'},{root / 'vocab.txt'}"


OURS: tuple[Callable[[Path, pytest.MonkeyPatch], str], ...] = (in_a_file, in_a_run, in_a_folder, on_the_hub)


@pytest.mark.parametrize("home", [*OURS, of_open_clip, of_clip_mtob], ids=lambda home: home.__name__)
def test_evaluate_takes_a_model_from(
    home: Callable[[Path, pytest.MonkeyPatch], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, colour in (("red_apple", "red"), ("cafe", "blue")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40 + i, 40), colour).save(tmp_path / "photos" / name / f"{i}.png")

    def report_of(source: str) -> dict[str, dict[str, dict[str, float]]]:
        args = ["evaluate", source, "--data", str(tmp_path / "photos"), "--device", "cpu"]
        assert main([*args, "--out", str(tmp_path / "out")]) == 0
        return json.loads((tmp_path / "out" / "result.json").read_text())

    report = report_of(home(tmp_path, monkeypatch))
    said = capsys.readouterr().out
    (tmp_path / "ours").mkdir()
    expected = report_of(str(checkpoint(tmp_path / "ours")))
    assert report.keys() == expected.keys() and capsys.readouterr().out.splitlines()[0] == said.splitlines()[0]
    found, ours = report["evaluation"], expected["evaluation"]
    assert found["classification"].keys() == ours["classification"].keys()
    assert (found["classification"]["images"], found["classification"]["chance"]) == (6, 0.5)
    if home in OURS:
        assert found == ours and report["fingerprint"] == expected["fingerprint"]
