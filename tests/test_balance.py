"""The balance of attraction and repulsion, against plain numbers, and that a run logs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

from oblique_clip import model_config, parse_topology
from oblique_clip.config import DataConfig, OptimConfig, TrainConfig
from oblique_clip.evaluate.tasks import Case, balance
from oblique_clip.train import train

EXACT = 1e-12
"""Two ways to the same float64 number."""


@pytest.mark.parametrize("spec", ["sphere(6)", "oblique(3,2)/geodesic", "euclidean(6)", "lorentz(6)"])
def test_it_is_that_of_the_similarities_one_by_one(spec: str) -> None:
    topology = parse_topology(spec)
    with torch.no_grad():
        points, classes = (
            topology.project(torch.randn(count, topology.m, topology.n, dtype=torch.float64)) for count in (25, 4)
        )
        labels = torch.randint(0, 4, (25,))
        found = balance(Case(points, labels, classes, topology))
        matrix = topology.similarity(points, classes).numpy()
    own = np.array([matrix[i, label] for i, label in enumerate(labels.tolist())])
    others = np.array([matrix[i, j] for i in range(25) for j in range(4) if j != labels[i]])
    low, high = topology.range
    width = high - low if np.isfinite(high - low) else 1.0
    expected = {
        "positive": own.mean(),
        "positive_std": own.std(),
        "negative": others.mean(),
        "negative_std": others.std(),
        "gap": (own.mean() - others.mean()) / width,
    }
    assert found == pytest.approx(expected, abs=EXACT)


def test_a_run_logs_it_at_every_validation_and_is_chosen_by_accuracy(tmp_path: Path) -> None:
    model = model_config("tiny", "oblique", arch=TINY)
    optim = OptimConfig(steps=4, batch_size=64, lr=3e-3)
    out = tmp_path / "run"
    config = TrainConfig(model, DataConfig(), optim=optim, out=out, device="cpu", threads=1, eval_every=2, test=False)
    best = train(config, quiet=True)["best"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    judged = [line for line in lines if "val_top1" in line]
    assert [line["step"] for line in judged] == [2, 4]
    for line in judged:
        assert line["val_gap"] == pytest.approx((line["val_positive"] - line["val_negative"]) / 16)
        assert line["val_positive_std"] > 0 < line["val_negative_std"]
    assert best["top1"] == max(line["val_top1"] for line in judged)
