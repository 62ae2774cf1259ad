"""Training by many processes: the numbers of one, whatever their number, and an end that says why when one dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import fork, losses, settings, weights, write_pictures

from oblique_clip.config import TrainConfig
from oblique_clip.errors import UserError
from oblique_clip.state import newest
from oblique_clip.train import train

SAME = 1e-5
"""Relative difference of losses: float32 sums in another order, over a few steps."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        return int(opened.getsockname()[1])


def together(world: int, run: Callable[[int], None]) -> list[int | None]:
    """Exit codes of ranks that each run a function of their number."""
    port = free_port()

    def rank_of(rank: int) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="localhost")
        try:
            run(rank)
        except UserError as error:
            print(error, file=sys.stderr)
            sys.exit(2)

    children = [fork.Process(target=rank_of, args=(rank,)) for rank in range(world)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        child.kill()
    return [child.exitcode for child in children]


def plain(pictures: Path, out: Path, kind: str = "table", **optim: Any) -> TrainConfig:
    """Without what draws at random within a tower: ranks draw for themselves."""
    config = settings(pictures, out, kind, **{"steps": 8, "micro_batch": None, "ema": 0.0, **optim})
    model = replace(config.model, arch=replace(config.model.arch, patch_dropout=0.0), class_tokens="free")
    return replace(config, model=model)


def assert_near(found: Path, expected: Path) -> None:
    one, other = losses(found), losses(expected)
    assert one.keys() == other.keys()
    for step, loss in other.items():
        assert float(one[step]) == pytest.approx(float(loss), rel=SAME)


@pytest.mark.parametrize(
    ("world", "changes"),
    [
        (2, {}),
        (4, {}),
        (2, {"micro_batch": 3}),
        (2, {"ring": True}),
        (2, {"fsdp": True}),
        (4, {"fsdp": True, "ring": True, "micro_batch": 1}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else str(value),
)
@pytest.mark.parametrize("class_tokens", ["free", "oblique"])
def test_many_processes_have_the_losses_of_one(
    class_tokens: str,
    world: int,
    changes: dict[str, Any],
    pictures: Path,
    tmp_path: Path,
) -> None:
    """Two of the sixty pictures cannot be read: some ranks have fewer pairs than others."""
    if class_tokens == "oblique" and "fsdp" in changes:
        pytest.skip("points are not cut into parts")
    one = plain(pictures, tmp_path / "one")
    one = replace(one, model=replace(one.model, class_tokens=class_tokens))
    many = replace(one, out=tmp_path / "many", optim=replace(one.optim, **changes))
    train(one, quiet=True)
    assert together(world, lambda rank: train(many, quiet=True)) == [0] * world
    assert_near(many.out, one.out)
    result, other = (json.loads((out / "result.json").read_text()) for out in (many.out, one.out))
    assert result["processes"] == world and result["skipped"] == other["skipped"]
    for name, value in weights(one.out).items():
        assert torch.allclose(weights(many.out)[name], value, atol=2e-3), name


@pytest.mark.parametrize(
    ("before", "after", "fsdp"), [(2, 1, False), (1, 2, False), (4, 2, False), (2, 4, True), (4, 1, True)]
)
def test_a_run_goes_on_with_another_number_of_processes(
    before: int,
    after: int,
    fsdp: bool,
    pictures: Path,
    tmp_path: Path,
) -> None:
    one, config = plain(pictures, tmp_path / "one"), plain(pictures, tmp_path / "run", fsdp=fsdp)
    train(one, quiet=True)

    def half(rank: int) -> None:
        from oblique_clip import loop

        original, counter = loop.train_step, [0]

        def counted(*args: Any, **options: Any) -> Any:
            counter[0] += 1
            if counter[0] == 4 and rank == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*args, **options)

        loop.train_step = counted
        with pytest.raises(KeyboardInterrupt):
            train(config, quiet=True)

    def go_on(rank: int) -> None:
        train(config, quiet=True, resume=True)

    if before == 1:
        child = fork.Process(target=half, args=(0,))
        child.start()
        child.join()
        assert child.exitcode == 0
    else:
        assert together(before, half) == [0] * before, "a signal to one rank stops all, behind the same step"
    kept, _ = newest(config.out / "checkpoints")
    assert kept is not None and kept.step == 4
    if after == 1:
        train(config, quiet=True, resume=True)
    else:
        assert together(after, go_on) == [0] * after
    assert_near(config.out, one.out)


def test_shards_go_on_exactly_with_as_many_processes(pictures: Path, tmp_path: Path) -> None:
    whole, config = plain(pictures, tmp_path / "whole", "shards"), plain(pictures, tmp_path / "run", "shards")
    assert together(2, lambda rank: train(whole, quiet=True)) == [0, 0]

    def dies(rank: int) -> None:
        from oblique_clip import loop

        original = loop.train_step

        def deadly(*args: Any, **options: Any) -> Any:
            if (config.out / "checkpoints" / "state-00000003.safetensors").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        loop.train_step = deadly
        train(config, quiet=True)

    assert -signal.SIGKILL in together(2, dies)
    assert together(2, lambda rank: train(config, quiet=True, resume=True)) == [0, 0]
    assert losses(config.out) == losses(whole.out)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(
    pictures: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = plain(pictures, tmp_path / "run", batch_size=9)
    assert together(2, lambda rank: train(config, quiet=True)) == [2, 2]
    assert "--batch-size 9 must be a multiple of the 2 processes" in capfd.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_rank_that_dies_ends_the_job_with_its_cause(pictures: Path, tmp_path: Path) -> None:
    """Under torchrun itself, by the command line."""
    out, data = tmp_path / "run", str(pictures / "pairs.csv")
    small = ["--vision-width", "32", "--vision-layers", "1", "--text-width", "32", "--text-layers", "1", "--log", ""]
    flags = ["--data", data, "--max-bad-fraction", "0.1", "--steps", "100000", "--batch-size", "8", "--save-every", "2"]
    often = ["--log-every", "1", "--device", "cpu", "--threads", "1", "--out", str(out)]
    start = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    # Behind "--", as torchrun would take --log for a flag of its own.
    command = [sys.executable, *start, "-m", "--", "oblique_clip", "train", *flags, *small, *often]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        while len(list((out / "checkpoints").glob("state-*"))) < 2:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.1)
        listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        began = time.monotonic()
        os.kill(int(listed.stdout.split()[-1]), signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - began < 60
    assert process.returncode not in (0, None)
    # torchrun ends the others at once; what they say when nobody does is tested with `joined`.
    assert "Signal 9 (SIGKILL)" in said
    assert not (out / "result.json").exists()
    kept, damaged = newest(out / "checkpoints")
    assert kept is not None and not damaged
