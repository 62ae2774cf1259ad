"""Loggers: each holds the figures of metrics.jsonl, under their steps."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from oblique_clip.config import Architecture, DataConfig, OptimConfig, TrainConfig, model_config
from oblique_clip.errors import UserError
from oblique_clip.logs import LOGGERS, loggers_of
from oblique_clip.train import train

SMALL = Architecture(patch_size=16, vision_width=32, vision_layers=1, text_width=32, text_layers=1)
DATA = DataConfig(test_families=("emoji-fxemoji",), val_families=(), held_out_concepts=())
STEPS = 3
FLOAT32 = 1e-6

Curves = dict[tuple[int, str], float]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Curves]:
    """A run with every logger that is installed, and the figures of its metrics.jsonl by step and name."""
    folder = tmp_path_factory.mktemp("logs")
    names = [name for name in LOGGERS if installed(name)]
    config = TrainConfig(
        model_config("tiny", "oblique", arch=SMALL), DATA, optim=OptimConfig(steps=STEPS, batch_size=32),
        out=folder / "run", device="cpu", threads=1, log_every=1, log=",".join(names),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        train(config, quiet=True)
    lines = map(json.loads, (config.out / "metrics.jsonl").read_text().splitlines())
    curves = {(line["step"], name): value for line in lines for name, value in line.items() if name != "step"}
    assert len(curves) > STEPS
    return config, curves


def installed(name: str) -> bool:
    try:
        return bool(loggers_of(name))
    except UserError:
        return False


def assert_same(found: Curves, expected: Curves) -> None:
    assert found.keys() == expected.keys()
    assert all(math.isclose(found[key], expected[key], rel_tol=FLOAT32) for key in expected)


def test_tensorboard(run: tuple[TrainConfig, Curves]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, expected = run
    board = EventAccumulator(str(config.out / "tensorboard"))
    board.Reload()
    found = {(e.step, name): e.value for name in board.Tags()["scalars"] for e in board.Scalars(name)}
    assert_same(found, expected)


def test_wandb_offline(run: tuple[TrainConfig, Curves]) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    config, expected = run
    (file,) = (config.out / "wandb").glob("offline-run-*/*.wandb")
    store, found = DataStore(), {}
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        found |= {(int(items["_step"]), name): float(value) for name, value in items.items() if name[0] != "_"}
    assert_same(found, expected)


def test_trackio(run: tuple[TrainConfig, Curves]) -> None:
    pytest.importorskip("trackio")
    import sqlite3

    config, expected = run
    (file,) = (config.out.parent / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("SELECT step, metrics FROM metrics").fetchall()
    found = {(step, name): value for step, metrics in rows for name, value in json.loads(metrics).items()}
    assert_same(found, expected)


def test_no_logger_leaves_metrics_alone(run: tuple[TrainConfig, Curves], tmp_path: Path) -> None:
    config, expected = run
    train(replace(config, out=tmp_path / "run", log=""), quiet=True)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.json", "metrics.jsonl", "checkpoints", "result.json"
    }  # fmt: skip
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [line["loss"] for line in lines if "loss" in line] == [
        value for (_, name), value in expected.items() if name == "loss"
    ]


def test_mistakes_are_told_before_anything_is_written(
    run: tuple[TrainConfig, Curves], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="unknown logger 'comet'; there is tensorboard, wandb, trackio"):
        train(replace(run[0], out=out, log="tensorboard, comet"), quiet=True)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb is not installed"):
        train(replace(run[0], out=out, log="wandb"), quiet=True)
    assert not out.exists()
