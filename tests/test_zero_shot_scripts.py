"""The scripts of experiments/zero_shot, on a cut of the shipped set laid out as the real sets are."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.zero_shot import folders, layouts, retrieval, suite, table
from oblique_clip.data.emoji import EmojiSet, load_emoji
from oblique_clip.errors import UserError
from oblique_clip.evaluate.run import EvaluateConfig, evaluate
from oblique_clip.evaluate.tasks import concept_labels

ROOT = Path(__file__).parents[1]
MODELS = ("tiny-sphere",)
NAMES = ["cat face", "dog face", "pizza", "red apple", "rocket", "umbrella"]


@pytest.fixture(scope="module")
def emoji() -> EmojiSet:
    whole = load_emoji()
    return whole.select(np.array([record.concept in NAMES for record in whole.records]))


@pytest.fixture(scope="module")
def root(emoji: EmojiSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three layouts."""
    root = tmp_path_factory.mktemp("layouts")
    layouts.write_folders(root / "imagenet", emoji)
    layouts.write_classification(root / "suite" / "wds_classes", emoji)
    layouts.write_retrieval(root / "suite" / "wds_captions", emoji)
    layouts.write_coco(root / "coco", emoji)
    return root


def command_of(script: Any, root: Path, out: Path, models: tuple[str, ...] = MODELS) -> Any:
    commands = {
        folders: lambda: folders.Folders(
            root / "imagenet" / "val", models, str(root / "imagenet" / "names.txt"), ("{}",), out, "cpu"
        ),
        suite: lambda: suite.Suite(root / "suite", models, engine="oblique_clip", out=out, device="cpu"),
        retrieval: lambda: retrieval.Retrieval(
            root / "coco" / "captions_val.json", root / "coco" / "val", models, out, "cpu"
        ),
    }
    return commands[script]()


def test_the_layouts_hold_the_same_pictures_of_the_same_classes(root: Path, emoji: EmojiSet) -> None:
    def judged(data: Path, **settings: Any) -> dict[str, float]:
        return evaluate(EvaluateConfig(Path(*MODELS), str(data), device="cpu", **settings))["evaluation"]

    plain = {"templates": ("{}",)}
    classes = judged(root / "imagenet" / "val", classes=str(root / "imagenet" / "names.txt"), **plain)["classification"]
    assert (classes["images"], classes["classes"]) == (len(emoji), len(concept_labels(emoji)[0]))
    other = judged(root / "suite" / "wds_classes", **plain)["classification"]
    assert (other["top1"], other["images"]) == (classes["top1"], classes["images"]) and 0.2 < other["top1"] < 1
    captions = judged(root / "suite" / "wds_captions")["retrieval"]
    assert captions == judged(root / "coco" / "captions_val.json", data_root=root / "coco" / "val")["retrieval"]
    assert captions["images"] == len(emoji) and captions["pairs"] > len(emoji)


@pytest.mark.parametrize("script", [folders, suite, retrieval], ids=lambda script: script.__name__.split(".")[-1])
def test_a_second_call_evaluates_nothing_and_other_settings_are_refused(
    script: Any, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(command_of(script, root, tmp_path))
    first, shown = (tmp_path / "results.json").read_text(), capsys.readouterr().out
    reports = json.loads(first)
    assert len(reports) == (2 if script is suite else 1)
    for name, report in reports.items():
        assert name.startswith("tiny-sphere") and f"{name}: " in shown
        (column,) = [column for column in script.COLUMNS if column.heading in ("top-1 %", "text to image R@5 %")][:1]
        assert report["settings"]["out"] is None and len(report["fingerprint"]) == 16
        assert column.text(report["evaluation"]) in shown

    # Were one of them judged again, it would fail.
    monkeypatch.setattr(table, "evaluate", None)
    script.main(command_of(script, root, tmp_path))
    assert (tmp_path / "results.json").read_text() == first

    for field, other in (("settings", {}), ("fingerprint", "0123456789abcdef")):
        path = next(tmp_path.glob("*/result.json"))
        report = json.loads(path.read_text())
        path.write_text(json.dumps({**report, field: other}))
        with pytest.raises(UserError, match="holds the figures of other settings or another model: name another --out"):
            script.main(command_of(script, root, tmp_path))
        path.write_text(json.dumps(report))


def test_folders_by_wordnet_codes_take_imagenets_names_and_by_a_few_numbers_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, code in enumerate(("n01440764", "n01443537")):
        for name in (tmp_path / "codes" / code, tmp_path / "numbers" / str(number)):
            name.mkdir(parents=True)
            Image.new("RGB", (40, 40), ("red", "blue")[number]).save(name / "0.png")
    for kind, said in (("codes", "class names: imagenet"), ("numbers", "class names: those of the folders")):
        command = folders.Folders(tmp_path / kind, MODELS, templates=("{}",), out=tmp_path / "out" / kind, device="cpu")
        folders.main(command)
        assert said in capsys.readouterr().out
    settings = {
        kind: json.loads((tmp_path / "out" / kind / "results.json").read_text())[MODELS[0]]["settings"]["classes"]
        for kind in ("codes", "numbers")
    }
    assert settings == {"codes": "imagenet", "numbers": None}


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        ("folders", ["nowhere"], "no such folder: nowhere"),
        ("folders", [".", "--models", "nowhere"], "no sub-folders"),
        ("suite", ["nowhere"], "no such folder: nowhere"),
        ("suite", ["."], "has no folder in CLIP_benchmark's layout"),
        ("suite", [".", "--datasets", "wds_food101"], "has no data set 'wds_food101'; it has none"),
        ("retrieval", ["nowhere.json"], "no such file or folder: nowhere.json"),
        ("retrieval", ["x.json", "--imagse", "x"], "perhaps you meant --images"),
        ("layouts", [str(ROOT / "experiments")], "is not empty: name another folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    script: str, args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As `python -m` runs it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *args])
    monkeypatch.delitem(sys.modules, f"experiments.zero_shot.{script}")
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(f"experiments.zero_shot.{script}", run_name="__main__", alter_sys=True)
    line = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and line.startswith("oblique-clip: ") and message in line and "\n" not in line
