"""The console script, as a user runs it: right commands work, mistakes end in one line and exit status 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oblique_clip.cli import VERBS

SCRIPT = Path(sys.executable).with_name("oblique-clip")
SMALL = ["--vision-width", "32", "--vision-layers", "1", "--text-width", "32", "--text-layers", "1", "--threads", "1"]


def run(*args: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **variables}
    command = [str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=300)


def picture(path: Path, colour: tuple[int, int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 48, 3), colour, np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of eight one-coloured pictures and one that is no picture."""
    folder = tmp_path_factory.mktemp("pairs")
    colours = np.random.default_rng(0).integers(0, 256, (8, 3))
    rows = [f"{picture(folder / f'{i}.png', tuple(c)).name},colour {i}" for i, c in enumerate(colours.tolist())]
    (folder / "broken.png").write_bytes(b"not a picture")
    path = folder / "pairs.csv"
    path.write_text("\n".join(["image,caption", *rows, "broken.png,nothing"]) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of three steps on the table."""
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = ("--batch-size", 4, "--steps", 3, "--max-bad-fraction", 0.2, "--device", "cpu")
    done = run("train", "--data", table, "--out", out, *settings, *SMALL)
    assert done.returncode == 0, done.stderr
    return out


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no verb": ([], "a verb is missing"),
    "unknown verb": (["trian"], "unknown verb 'trian'; there is train"),
    "unknown flag": (["train", "--topologyy", "sphere(128)"], "perhaps you meant --topology"),
    "no number": (["train", "--epochs", "ten"], "--epochs"),
    "unknown topology": (["train", "--topology", "obliqe(16,8)"], "there is sphere(d)"),
    "unknown distance": (["train", "--topology", "oblique(16,8)/manhattan"], "there is inner, geodesic, chordal"),
    "off the budget": (["train", "--topology", "oblique(16,4)"], "64 numbers, size 'tiny' compares at 128"),
    "two spheres on one token": (["train", "--form", "sphere", "--topology", "oblique(16,8)"], "wants form 'oblique'"),
    "unknown size": (["train", "--size", "huge"], "there is tiny, small"),
    "unknown form": (["train", "--form", "cone"], "there is clip, sphere, oblique"),
    "missing table": (["train", "--data", "nowhere.csv"], "no such file: nowhere.csv"),
    "missing shards": (["train", "--data", "x-{000..002}.tar", "--steps", "1"], "3 of 3 shards are missing"),
    "unknown data": (["train", "--data", "mscoco"], "cannot tell what --data 'mscoco' is"),
    "batch above the data": (["train", "--batch-size", "20000"], "larger than the data"),
    "batch of one": (["train", "--batch-size", "1"], "--batch-size must lie in [2, inf)"),
    "unknown family": (["train", "--test-families", "emoji-apple"], "there is emoji-emojione"),
    "noise above one": (["train", "--caption-noise", "1.5"], "--caption-noise must lie in [0, 1], not be 1.5"),
    "negative seed": (["train", "--seed", "-1"], "--seed must lie in [0, inf)"),
    "reversed gradients": (["train", "--clip-grad", "-1"], "--clip-grad must lie in [0, inf)"),
    "no number at all": (["train", "--lr", "nan"], "--lr must lie in (0, inf), not be nan"),
    "no patch": (["train", "--patch-size", "0"], "--patch-size must lie in [1, inf)"),
    "points in open_clip": (["train", "--form", "clip", "--class-tokens", "oblique"], "cannot be points"),
    "no form": (["ablate", "--forms"], "there is clip, sphere, oblique"),
    "no steps": (["train", "--epochs", "0"], "--epochs must lie in (0, inf)"),
    "negative scale": (["train", "--init-scale", "-1"], "--init-scale must lie in (0, inf)"),
    "unknown device": (["train", "--device", "tpu"], "there is auto, cpu, cuda"),
    "missing model": (["evaluate", "nowhere"], "no such checkpoint or run folder: nowhere"),
    "no finished run": (["report", "nowhere"], "nowhere is no finished run"),
    "one run twice": (["report", "nowhere", "./nowhere"], "nowhere is named twice"),
    "report into a file": (["report", "nowhere", "--out", "/dev/null"], "--out /dev/null is a file: name a folder"),
    "all patches dropped": (["train", "--patch-dropout", "1"], "--patch-dropout must lie in [0, 1)"),
    "unknown suite": (["bench", "--only", "steps"], "unknown suite 'steps'; there is step, flags, profile, loss"),
    "nothing to embed": (
        ["embed", "nowhere"],
        "cannot tell what --data 'nowhere' is (no such file or folder: nowhere)",
    ),
    "no model to embed with": (["embed", "emoji", "--model", "nowhere"], "no such checkpoint or run folder: nowhere"),
    "points into a folder": (["embed", "emoji", "--out", "."], "--out . is a folder: name a file in it"),
    "nothing to search": (["search", "nowhere.parquet", "a dog"], "no such file: nowhere.parquet"),
    "no hits": (["search", "nowhere.parquet", "a dog", "--top", "0"], "--top must lie in [1, inf), not be 0"),
    "an answer into a folder": (["search", "x.parquet", "a dog", "--out", "."], "--out . is a folder"),
    "no model to export": (["export", "nowhere"], "no such checkpoint or run folder: nowhere"),
    "unknown format": (["export", "tiny-oblique", "--format", "tflite"], "--format"),
    "export of another library's": (["export", "open_clip:RN50"], "open_clip:RN50"),
    "no rounds": (["bench", "--rounds", "0"], "--rounds must lie in [1, inf)"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(case: str, tmp_path: Path) -> None:
    args, expected = MISTAKES[case]
    done = run(*args, cwd=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len(lines)) == (2, 1), done.stderr
    assert lines[0].startswith("oblique-clip: ") and expected in lines[0]
    assert not any(tmp_path.rglob("result.json"))


def test_a_mistake_is_one_line_on_a_terminal_of_plain_letters() -> None:
    done = run("train", "--bach-size", "4", PYTHONIOENCODING="ascii")
    assert done.stderr.startswith("oblique-clip: Unrecognized options: --bach-size, 4; perhaps you meant --batch-size")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_cuda_without_a_gpu_is_one_line(tmp_path: Path) -> None:
    done = run("train", "--device", "cuda", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "oblique-clip: --device cuda: torch finds 0 CUDA GPUs on this machine; use --device cpu\n"


def test_help_lists_every_verb_and_loads_nothing_heavy() -> None:
    done = run("--help")
    assert done.returncode == 0 and all(verb in done.stdout for verb in VERBS)
    code = "import sys, oblique_clip.cli as c; c.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_its_options(verb: str) -> None:
    done = run(verb, "--help")
    written = "--json" if verb == "bench" else "--out"
    assert done.returncode == 0 and written in done.stdout and not done.stderr


def test_a_run_folder_says_what_was_run(trained: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((trained / "config.json").read_text())
    assert result["steps"] == 3 and config["optim"]["batch_size"] == 4 and config["format_version"] == 1
    assert {"loss", "scale", "positive", "negative", "margin"} <= set(lines[0]) and lines[-1]["step"] == 3
    assert result["skipped"].get("unreadable image", 0) >= 1
    assert {p.name for p in (trained / "checkpoints").iterdir()} == {"best.safetensors", "last.safetensors"}
    assert list((trained / "tensorboard").iterdir())


def test_a_finished_run_is_not_overwritten(trained: Path, table: Path) -> None:
    done = run("train", "--data", table, "--batch-size", 4, "--steps", 3, "--out", trained, *SMALL)
    assert done.returncode == 2 and "holds a finished run" in done.stderr


def test_evaluate_a_class_folder_and_a_table(trained: Path, table: Path, tmp_path: Path) -> None:
    for name, colour in (("deep_red", (200, 0, 0)), ("blue", (0, 0, 200))):
        picture(tmp_path / "classes" / name / "a.png", colour)
        picture(tmp_path / "classes" / name / "b.png", colour)
    (tmp_path / "classes" / "blue" / "c.jpg").write_bytes(b"not a picture")
    done = run(
        "evaluate", trained, "--data", tmp_path / "classes", "--templates", "a {} thing", "{}", "--out", tmp_path
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "result.json").read_text())["evaluation"]
    assert report["classification"]["images"] == 4 and report["classification"]["chance"] == 0.5
    assert report["skipped"] == {"unreadable image": 1}
    done = run("evaluate", trained, "--data", table, "--out", tmp_path / "table")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "table" / "result.json").read_text())["evaluation"]
    assert (report["retrieval"]["images"], report["skipped"]) == (8, {"unreadable image": 1})


def test_evaluate_names_what_is_wrong(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong" / "cat").mkdir(parents=True)
    (tmp_path / "wrong" / "cat" / "a.png").write_bytes(b"not a picture")
    for args, expected in (
        ((tmp_path / "damaged.safetensors",), "is no .pt or .safetensors file, or not a whole one"),
        ((tmp_path / "empty",), "has no checkpoints/best.safetensors"),
        ((trained, "--data", tmp_path / "missing"), "no such file or folder"),
        ((trained, "--data", tmp_path / "empty"), "no sub-folders"),
        ((trained, "--data", tmp_path / "wrong"), "no picture could be read"),
        ((trained, "--data", tmp_path / "missing", "--out", trained), "run folder"),
        ((trained, "--data", tmp_path, "--templates", "no braces"), "has no {}"),
    ):
        done = run("evaluate", *args)
        assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_data_counts_the_shipped_set_and_shows_pairs(tmp_path: Path) -> None:
    done = run("data", "--show", 4, "--out", tmp_path)
    assert done.returncode == 0 and "16,150" in done.stdout and "9,662" in done.stdout
    with Image.open(tmp_path / "pairs.png") as strip:
        assert strip.size == (4 * 64, 64)
