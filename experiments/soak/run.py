"""One run beside another that is killed again and again at random moments, and goes on each time.

    python -m experiments.soak.run --kills 50 --out runs/soak

Both are real processes of the command line, on the shipped set, with caption noise and micro-batches. The second one
ends with the losses and the weights of the first, or this ends with status 2.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from oblique_clip.cli import run_script
from oblique_clip.config import write_json
from oblique_clip.errors import UserError

FLAGS = (
    "--batch-size", "64", "--micro-batch", "24", "--caption-noise", "0.1", "--patch-dropout", "0.25", "--ema", "0.99",
    "--class-tokens", "oblique", "--save-every", "10", "--eval-every", "50", "--log-every", "1", "--log", "",
    "--device", "cpu", "--threads", "1",
)  # fmt: skip


@dataclass(frozen=True)
class SoakConfig:
    """Kill a run at random moments, and compare it with one that was not."""

    kills: int = 50
    """How often."""
    steps: int = 400
    """Steps of either run."""
    longest: float = 20.0
    """Seconds that a process lives at most before it is killed; the shortest time is none."""
    seed: int = 0
    """Of the moments."""
    out: Path = Path("runs/soak")
    """Folder of both runs and result.json."""


def soak(config: SoakConfig) -> None:
    whole, killed = config.out / "whole", config.out / "killed"
    steps = ("--steps", str(config.steps))
    _finish(["--out", str(whole), *steps, *FLAGS])
    draws, reached = random.Random(config.seed), []
    for _ in range(config.kills):
        begun = (killed / "config.json").exists()
        process = _start(["--resume", str(killed)] if begun else ["--out", str(killed), *steps, *FLAGS])
        try:
            process.wait(draws.uniform(0, config.longest))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        reached.append(max(losses(killed), default=0))
        if (killed / "result.json").exists():
            break
    if not (killed / "result.json").exists():
        _finish(["--resume", str(killed)])
    result = compared(whole, killed) | {"kills": len(reached), "reached": reached, "steps": config.steps}
    write_json(config.out / "result.json", result)
    print(json.dumps(result))
    if not (result["losses_equal"] and result["weights_equal"]):
        raise UserError(f"{killed} has not come to what {whole} has")


def compared(whole: Path, killed: Path) -> dict[str, Any]:
    """Whether every loss and every weight of the last and of the best checkpoint is the same, to the last bit."""
    same = all(
        torch.equal(mine[name], value)
        for place in ("last", "best")
        for mine, theirs in [[load_file(run / "checkpoints" / f"{place}.safetensors") for run in (killed, whole)]]
        for name, value in theirs.items()
    )
    return {"losses_equal": losses(whole) == losses(killed), "weights_equal": same}


def losses(run: Path) -> dict[int, float]:
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = {}
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:  # cut by a kill
            continue
        if "loss" in values:
            found[values["step"]] = values["loss"]
    return found


def _start(arguments: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "oblique_clip", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _finish(arguments: list[str]) -> None:
    began = time.monotonic()
    if _start(arguments).wait():
        raise UserError(f"oblique-clip train {' '.join(arguments)} has failed")
    print(f"{arguments[1]}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    run_script(soak, SoakConfig, "python -m experiments.soak.run")
