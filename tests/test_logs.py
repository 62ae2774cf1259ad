"""Loggers: each holds the figures of metrics.jsonl, under their steps."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from oblique_clip.config import Architecture, DataConfig, OptimConfig, TrainConfig, model_config
from oblique_clip.errors import UserError
from oblique_clip.logs import LOGGERS, Log, loggers_of
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
    lines = [line for line in lines if "warning" not in line]  # which are words, for people
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


def leveldb_records(content: bytes, header: int = 7, block: int = 32768) -> Iterator[bytes]:
    """The records of a log as LevelDB writes it, behind wandb's header: pieces with a checksum, a length and a type."""
    place, record = header, b""
    while place + 7 <= len(content):
        if block - place % block < 7:
            place += block - place % block
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole, or the last of several pieces
            yield record
            record = b""


def test_wandb_offline(run: tuple[TrainConfig, Curves]) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    config, expected = run
    (file,) = (config.out / "wandb").glob("offline-run-*/*.wandb")
    found = {}
    for data in leveldb_records(file.read_bytes()):
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


def logger_of(name: str, init: Callable[..., Any]) -> ModuleType:
    """A module of that name with nothing but `init` and wandb's exception."""
    module = ModuleType(name)
    vars(module).update(init=init, Error=type("Error", (Exception,), {}))
    return module


def test_a_logger_that_refuses_is_one_line_and_leaves_nothing_of_a_run(
    run: tuple[TrainConfig, Curves], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(error: type[Exception]) -> Callable[..., Any]:
        def init(**settings: Any) -> Any:
            raise error("api_key not configured\nmore of it")

        return init

    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    wandb = logger_of("wandb", lambda **settings: None)
    vars(wandb)["init"] = refuse(wandb.Error)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "trackio", logger_of("trackio", refuse(OSError)))
    for name in ("wandb", "trackio"):
        out = tmp_path / name
        with pytest.raises(UserError, match=rf"^--log {name}: api_key not configured; [^\n]+$"):
            train(replace(run[0], out=out, log=name), quiet=True)
        assert not any(out.iterdir())


@pytest.mark.parametrize("fails", [False, True])
def test_a_logger_is_told_how_the_run_ended_and_closed_if_a_later_one_refuses(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[dict[str, Any]] = []
    started = SimpleNamespace(
        id="a1", log=lambda *args, **settings: None, finish=lambda **settings: ends.append(settings)
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "wandb", logger_of("wandb", lambda **settings: started))
    config = TrainConfig(out=tmp_path, log="wandb")
    try:
        with Log(config) as log:
            log({"step": 1, "loss": 2.5})
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert ends == [{"exit_code": int(fails)}]

    monkeypatch.setitem(sys.modules, "trackio", logger_of("trackio", lambda **settings: 1 / 0))
    with pytest.raises(UserError, match="--log trackio: division by zero"):
        Log(replace(config, log="wandb,trackio"))
    assert len(ends) == 2
