"""Run folders without training: shipped weights, made-up figures."""

from __future__ import annotations

import json
import math
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from oblique_clip.checkpoint import BEST, config_of
from oblique_clip.config import DataConfig, TrainConfig, model_config, to_json, write_json

STEPS = 400


def make_run(folder: Path, model: str | None = None, top1: float = 0.1, data: DataConfig | None = None) -> Path:
    """A finished run of a shipped model, `tiny-sphere` or `tiny-oblique`; of no checkpoint without one."""
    config = model_config() if model is None else config_of(model)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", to_json(TrainConfig(config, data or DataConfig())))
    write_json(folder / "result.json", made_result(config.topology, top1))
    lines = (json.dumps(line) for line in made_metrics(top1))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if model is not None:
        (folder / "checkpoints").mkdir()
        asset = resources.files("oblique_clip.data").joinpath(f"assets/{model}.safetensors")
        shutil.copyfile(str(asset), folder / "checkpoints" / BEST)
    return folder


def made_result(topology: str, top1: float) -> dict[str, Any]:
    """As `train` writes it, but for what the page does not read."""
    figures = {"top1": top1, "top5": 2 * top1, "chance": 0.01}
    return {
        "topology": topology, "seed": 0, "steps": STEPS, "batch_size": 64, "parameters": 2_377_089,
        "scale": 50 * top1, "images_per_second": 500.0, "train_seconds": 60.5, "threads": 1, "device": "cpu",
        "command": "oblique-clip train", "versions": {"torch": "2"},
        "evaluation": {"family": figures, "concepts": figures},
    }  # fmt: skip


def made_metrics(top1: float, steps: int = STEPS) -> list[dict[str, float]]:
    """A line a step, and now and then a validation; one loss is no number, as in a step that was skipped."""
    lines: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        loss = math.nan if step == 8 else 4 * math.exp(-step / steps)
        lines.append({"step": step, "loss": loss, "scale": 1 + step / steps, "positive": 0.4, "negative": 0.1,
                      "margin": 0.3, "images_per_second": 500.0})  # fmt: skip
        if step % (steps // 10) == 0:
            lines.append({"step": step, "val_top1": top1 * step / steps})
    return lines
