"""A run that is stopped in any way goes on as if nothing had happened: bit for bit the losses of one that was not."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from oblique_clip import checkpoint, model_config, state
from oblique_clip.cli import main
from oblique_clip.config import Architecture, DataConfig, OptimConfig, TemperatureConfig, TrainConfig
from oblique_clip.data.batches import MapBatches
from oblique_clip.data.order import Position
from oblique_clip.errors import UserError
from oblique_clip.loop import steps_between
from oblique_clip.state import newest
from oblique_clip.train import train

STEPS, EVERY = 24, 3
MOMENTS = 6
"""Runs that are killed twice each, for both kinds of data; eight more are killed inside of a save."""
ARCH = Architecture(
    patch_size=16, vision_width=32, vision_layers=1, vision_heads=2, text_width=32, text_layers=1, text_heads=2
)
fork = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def write_pictures(folder: Path) -> Path:
    """A table and two shards of the same sixty pictures, two of which cannot be read."""
    noise = np.random.default_rng(0).integers(256, size=(60, 40, 40, 3), dtype=np.uint8)
    rows = ["image,caption"]
    shards = [webdataset.TarWriter(str(folder / f"{part}.tar")) for part in range(2)]
    for number, pixels in enumerate(noise):
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        if number in (7, 40):
            path.write_bytes(path.read_bytes()[:100])
        rows.append(f"{number}.png,thing number {number % 50}")
        caption = f"thing number {number % 50}"
        shards[number % 2].write({"__key__": str(number), "png": path.read_bytes(), "txt": caption})
    for shard in shards:
        shard.close()
    (folder / "pairs.csv").write_text("\n".join(rows))
    return folder


def settings(pictures: Path, out: Path, kind: str = "table", **optim: Any) -> TrainConfig:
    table = kind == "table"
    return TrainConfig(
        model_config(
            "tiny", "oblique", topology="oblique(8,4)", embed_dim=32, class_tokens="oblique",
            arch=replace(ARCH, patch_dropout=0.25),
        ),
        DataConfig(
            data=str(pictures / ("pairs.csv" if table else "{0..1}.tar")), caption_noise=0.3 if table else 0.0,
            max_bad_fraction=0.1, workers=1,
        ),
        optim=OptimConfig(**{"steps": STEPS, "batch_size": 8, "micro_batch": 3, "ema": 0.9, "lr": 3e-3, **optim}),
        out=out, device="cpu", threads=1, log_every=1, log="", save_every=EVERY,
    )  # fmt: skip


def losses(out: Path) -> dict[int, str]:
    """Loss of each step, every digit of it; no step twice."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], repr(line["loss"])) for line in lines if "loss" in line]
    assert len(dict(found)) == len(found)
    return dict(found)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / "last.safetensors")


@pytest.fixture(scope="module", params=["table", "shards"])
def whole(request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run that was never stopped."""
    config = settings(pictures, tmp_path_factory.mktemp("whole") / request.param, request.param)
    train(config, quiet=True)
    return config


def assert_same(found: Path, expected: Path) -> None:
    assert losses(found) == losses(expected)
    own, theirs = weights(found), weights(expected)
    assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)
    one, other = (json.loads((out / "result.json").read_text()) for out in (found, expected))
    assert one["skipped"] == other["skipped"] == {"truncated image": 2}


def in_child(function: Callable[[], None]) -> multiprocessing.process.BaseProcess:
    child = fork.Process(target=function)
    child.start()
    return child


def run_out(config: TrainConfig) -> None:
    train(config, quiet=True, resume=(config.out / "config.json").exists())


def last_step(out: Path) -> int:
    lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def test_kill_9_at_any_moment(whole: TrainConfig, tmp_path: Path) -> None:
    """From before the first step to behind the last, twice a run; what is left then goes on to the end."""
    draws, reached = random.Random(0), set()
    for number in range(MOMENTS):
        config = replace(whole, out=tmp_path / str(number))
        for _ in range(2):
            step = draws.randrange(STEPS + 1)
            child = in_child(lambda config=config: run_out(config))
            while child.is_alive() and last_step(config.out) < step:
                time.sleep(0.002)
            time.sleep(draws.uniform(0, 0.05))
            child.kill()
            child.join()
            kept, damaged = newest(config.out / "checkpoints")
            assert not damaged
            reached.add(0 if kept is None else kept.step)
            if (config.out / "result.json").exists():
                break
        else:
            run_out(config)
        assert_same(config.out, whole.out)
    assert len(reached) > 3, "the moments are spread over the run"


def dies_inside(config: TrainConfig, place: str, call: int) -> None:
    """A run that kills itself inside of its save number `call`."""
    target, name = {
        "half written": (checkpoint, "save_file"),
        "not synced": (checkpoint.os, "fsync"),
        "not renamed": (Path, "replace"),
        "not pruned": (state, "_paths"),
    }[place]
    original, calls = getattr(target, name), [0]

    def deadly(*args: Any) -> Any:
        names = [str(Path(f"/proc/self/fd/{arg}").readlink()) if place == "not synced" else str(arg) for arg in args]
        is_state = place == "not pruned" or any("state-" in name for name in names)
        calls[0] += is_state
        if calls[0] == call and is_state:
            if place == "half written":
                original(*args)
                content = Path(args[1]).read_bytes()
                Path(args[1]).write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(target, name, deadly)
    run_out(config)


@pytest.mark.parametrize("call", [1, 4])
@pytest.mark.parametrize("place", ["half written", "not synced", "not renamed", "not pruned"])
def test_kill_9_inside_of_a_save(place: str, call: int, whole: TrainConfig, tmp_path: Path) -> None:
    config = replace(whole, out=tmp_path / "run")
    child = in_child(lambda: dies_inside(config, place, call))
    child.join()
    assert child.exitcode == -signal.SIGKILL
    run_out(config)
    assert_same(config.out, whole.out)
    assert {path.name for path in (config.out / "checkpoints").iterdir()} == {"best.safetensors", "last.safetensors"}


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_in_good_order(number: signal.Signals, status: int, pictures: Path, tmp_path: Path) -> None:
    """Of a real process, by the command line; it goes on from the very step it stopped behind."""
    out = tmp_path / "run"
    flags = ["--data", str(pictures / "pairs.csv"), "--max-bad-fraction", "0.1", "--steps", "100000", "--batch-size"]
    small = ["--vision-width", "32", "--vision-layers", "1", "--text-width", "32", "--text-layers", "1", "--log", ""]
    command = [
        sys.executable,
        "-m",
        "oblique_clip",
        "train",
        *flags,
        "8",
        *small,
        "--log-every",
        "1",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        [*command, "--out", str(out)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    last = said.strip().splitlines()[-1]
    assert f"stopped by {number.name} behind step" in last and f"oblique-clip train --resume {out}" in last
    assert not (out / "result.json").exists() and "Traceback" not in said
    kept, _ = newest(out / "checkpoints")
    assert kept is not None and kept.step == max(losses(out))


def test_a_second_ctrl_c_ends_at_once() -> None:
    from oblique_clip.signals import watched

    with pytest.raises(KeyboardInterrupt), watched() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.number == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def stopped(config: TrainConfig, step: int) -> None:
    """A run that a signal has ended behind a step."""
    run_until(config, step, lambda: os.kill(os.getpid(), signal.SIGTERM))


def run_until(config: TrainConfig, step: int, act: Callable[[], None]) -> None:
    from oblique_clip import loop

    original = loop.train_step

    def watched_step(*args: Any, **options: Any) -> Any:
        counter[0] += 1
        if counter[0] == step:
            act()
        return original(*args, **options)

    counter = [0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", watched_step)
        with pytest.raises(KeyboardInterrupt):
            train(config, quiet=True)


def test_the_newest_intact_state_is_taken_where_the_last_is_damaged(
    whole: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(whole, out=tmp_path / "run")
    stopped(config, 13)
    states = sorted((config.out / "checkpoints").glob("state-*"))
    flipped = bytearray(states[-1].read_bytes())
    flipped[-1] ^= 1
    states[-1].write_bytes(flipped)
    states[-2].write_bytes(states[-2].read_bytes()[:-10])
    train(config, quiet=True, resume=True)
    said = capsys.readouterr().err
    assert f"{states[-1]} is damaged" in said and str(states[-2]) in said and "goes on from step 9" in said
    assert_same(config.out, whole.out)


def test_a_state_of_another_format_is_told_by_name(tmp_path: Path) -> None:
    path = state.save(state.State({}, {"step": 1}), tmp_path, keep=1)
    kept, _ = newest(tmp_path)
    assert kept is not None and kept.step == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "FORMAT_VERSION", 2)
        with pytest.raises(UserError, match=f"{path} has format version 1; this library reads 2"):
            newest(tmp_path)


def test_where_no_state_can_be_read_nothing_is_changed(whole: TrainConfig, tmp_path: Path) -> None:
    config = replace(whole, out=tmp_path / "run")
    stopped(config, 13)
    for path in (config.out / "checkpoints").glob("state-*"):
        path.write_bytes(path.read_bytes()[:-10])
    before = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"no state in .* can be read, and nothing was changed"):
        train(config, quiet=True, resume=True)
    assert {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()} == before


def test_keep_states_are_kept_and_what_lay_ahead_is_set_aside(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        state.save(state.State({}, {"step": step}), tmp_path, keep=2)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["state-00000003", "state-00000004"]
    state.save(state.State({}, {"step": 2}), tmp_path, keep=2)
    kept, _ = newest(tmp_path)
    assert kept is not None and kept.step == 2
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".safetensors", ".set-aside", ".set-aside"]


def test_validation_best_schedules_and_curvature_go_on(tmp_path: Path) -> None:
    """On the shipped set, with what a run of tables and shards has not: the same best checkpoint, of the same step."""
    model = model_config(
        "tiny", "sphere", topology="lorentz(32)", embed_dim=32, arch=ARCH,
        temperature=TemperatureConfig("cosine", init_scale=5.0, final_scale=20.0),
    )  # fmt: skip
    data = DataConfig(test_families=("emoji-fluent",), val_families=("emoji-fxemoji",))
    config = TrainConfig(
        model, data, optim=OptimConfig(steps=10, batch_size=32, lr=3e-3), out=tmp_path / "whole", device="cpu",
        threads=1, log_every=1, log="", eval_every=2, save_every=EVERY,
    )  # fmt: skip
    train(config, quiet=True)
    other = replace(config, out=tmp_path / "run")
    stopped(other, 7)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        # All steps are taken, and the calibrated checkpoints written, but not the result.
        patch.setattr("oblique_clip.train.evaluate_emoji", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        train(other, quiet=True, resume=True)
    train(other, quiet=True, resume=True)
    assert losses(other.out) == losses(config.out)
    lines = [
        [line for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" not in line]
        for out in (other.out, config.out)
    ]
    assert lines[0] == lines[1] and len([line for line in lines[0] if "val_top1" in line]) == 5
    one, two = (json.loads((out / "result.json").read_text()) for out in (other.out, config.out))
    for name in ("best", "evaluation", "last_evaluation", "warnings", "bad_steps", "scale"):
        assert one[name] == two[name], name
    for name in ("best", "last"):
        mine, theirs = (load_file(out / "checkpoints" / f"{name}.safetensors") for out in (other.out, config.out))
        assert all(torch.equal(mine[key], value) for key, value in theirs.items())


@pytest.fixture
def halted(pictures: Path, tmp_path: Path) -> TrainConfig:
    config = settings(pictures, tmp_path / "halted")
    stopped(config, 5)
    return config


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--batch-size", "4"], "batch_size was 8 and is 4 now"),
        (["--topology", "oblique(4,8)"], "topology was oblique(8,4) and is oblique(4,8) now"),
        (["--caption-noise", "0", "--lr", "1"], "caption_noise was 0.3 and is 0.0 now, lr was 0.003 and is 1.0 now"),
        (["--out", "elsewhere"], "goes on in its own folder"),
        (["--override", "temprature"], "--override temprature: there is no such setting"),
    ],
)
def test_a_run_is_not_gone_on_with_as_another(
    flags: list[str], said: str, halted: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", str(halted.out), *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error


def test_other_data_under_the_same_name_are_refused(pictures: Path, halted: TrainConfig) -> None:
    table = pictures / "pairs.csv"
    content = table.read_text()
    try:
        table.write_text(content.replace("thing number 9", "other thing"))
        with pytest.raises(UserError, match="not those that the run began with"):
            train(halted, quiet=True, resume=True)
    finally:
        table.write_text(content)


def test_a_library_caller_is_refused_too(halted: TrainConfig) -> None:
    other = replace(halted, optim=replace(halted.optim, batch_size=4))
    with pytest.raises(UserError, match="batch_size was 8 and is 4 now"):
        train(other, quiet=True, resume=True)


def test_a_model_that_the_weights_do_not_fit_is_told_of(
    halted: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--topology", "oblique(4,8)", "--override", "topology"]
    assert main(["train", "--resume", str(halted.out), *flags]) == 2
    assert "the weights of step 5 do not fit the model" in capsys.readouterr().err


def test_what_is_named_may_change(halted: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of another size begin a new epoch: a place among the old ones is none among these."""
    starts: list[Position] = []
    original = MapBatches.batches

    def noted(data: MapBatches, start: Position) -> Any:
        starts.append(start)
        return original(data, start)

    monkeypatch.setattr(MapBatches, "batches", noted)
    flags = ["--batch-size", "4", "--lr", "0.001", "--override", "batch-size", "lr", "--threads", "1"]
    assert main(["train", "--resume", str(halted.out), *flags]) == 0
    result = json.loads((halted.out / "result.json").read_text())
    assert result["steps"] == STEPS and result["batch_size"] == 4 and result["resumed"] == 1
    assert json.loads((halted.out / "config.json").read_text())["optim"]["lr"] == 0.001
    assert starts == [Position(epoch=1, batch=0, step=5)]


def test_pictures_that_vanish_in_a_later_epoch_end_a_run(pictures: Path, tmp_path: Path) -> None:
    """Six batches an epoch: behind the first one, which lost two pictures and went on, the disk is gone."""
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(pictures, folder)
    config = settings(folder, tmp_path / "run", steps=30)
    from oblique_clip import loop

    original, counter = loop.train_step, [0]

    def step(*args: Any, **options: Any) -> Any:
        counter[0] += 1
        if counter[0] == 9:
            for path in folder.glob("*.png"):
                path.unlink()
        return original(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", step)
        with pytest.raises(UserError, match=r"lost in epoch 2|no batch of an epoch"):
            train(config, quiet=True)


def test_a_run_that_is_not_finished_is_not_begun_again(halted: TrainConfig) -> None:
    with pytest.raises(UserError, match=f"go on with --resume {halted.out}, or remove it"):
        train(halted, quiet=True)
    train(halted, quiet=True, resume=True)
    with pytest.raises(UserError, match="holds a finished run"):
        train(halted, quiet=True, resume=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB, which two states fill."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield place
    # Lazily: tensors read from a file there may still be mapped.
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_ends_a_run_in_one_line_and_leaves_its_last_state(
    whole: TrainConfig, small_disk: Path, tmp_path: Path
) -> None:
    config = replace(whole, out=small_disk / "run", keep=100)
    with pytest.raises(UserError, match=r"No space left on device.*--resume") as caught:
        train(config, quiet=True)
    assert "\n" not in str(caught.value)
    kept, damaged = newest(config.out / "checkpoints")
    assert kept is not None and not damaged
    assert not list(config.out.rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    train(config, quiet=True, resume=True)
    assert_same(config.out, whole.out)


def test_an_error_of_the_disk_in_a_save_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.save(state.State({"x": torch.ones(3)}, {"step": 1}), tmp_path, keep=1)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        state.save(state.State({"x": torch.zeros(3)}, {"step": 2}), tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["state-00000001.safetensors"]


@given(st.floats(1e-4, 1e3), st.floats(1e-4, 1e2))
def test_saving_takes_two_percent_of_the_time_at_most(cost: float, a_step: float) -> None:
    """And no more than a state in half a minute."""
    steps = steps_between(cost, a_step)
    assert steps * a_step >= 30 * (1 - 1e-9) or steps * a_step >= 50 * cost * (1 - 1e-9)
    assert cost <= 0.02 * steps * a_step * (1 + 1e-9)
    assert (steps - 1) * a_step <= max(30.0, 50 * cost)


def test_a_run_takes_its_states_at_that_distance(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With states that cost as much as twenty steps, and nothing said of half a minute."""
    from oblique_clip import loop

    original, taken = loop.save, []

    def slow(kept: state.State, *args: Any) -> Any:
        taken.append(kept.step)
        time.sleep(0.2)
        return original(kept, *args)

    monkeypatch.setattr(loop, "save", slow)
    monkeypatch.setattr(loop, "SAVING_SECONDS", 0.0)
    train(replace(settings(pictures, tmp_path / "run", steps=120, micro_batch=None), save_every=0), quiet=True)
    assert taken[0] == 1 and taken[-1] == 120
    assert all(later - earlier > 20 for earlier, later in itertools.pairwise(taken[1:-1]))
