"""A batch of 4,096 by micro-batches of 256: its memory and time beside the batch in one piece."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from ..config import model_config
from ..data.images import Augmentation, TrainingPixels
from ..device import keep_freed_memory, peak_memory_mib
from ..model import DualEncoder, create_model, preprocess_of
from ..step import train_step
from .measure import BenchConfig, Rival, Row, apart, extra_memory_mib, race
from .step import Step

WHOLE, MICRO = 4096, 256
MOST_ROUNDS = 3
MIB = 2**20


def rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """Of one augmented step of the tiny oblique model, float32, in a process for each measurement."""
    rounds = min(config.rounds, MOST_ROUNDS)
    sizes = {"ours": (WHOLE, MICRO), "in one piece": (WHOLE, None)}
    runs, _ = race({name: Rival(kept_step, (*size, device)) for name, size in sizes.items()}, rounds, device)
    own, whole = (statistics.median(runs[name]) for name in sizes)
    note = "every tower runs forward twice; freed memory is kept, as in training"
    what = f"a step of {WHOLE:,} pairs by {MICRO}"
    time = Row("micro", f"{what}: time", own, whole, "s", "in one piece", whole / own, "", note, runs)
    return [*_memory(what, device), time]


def _memory(what: str, device: torch.device) -> list[Row]:
    if peak_memory_mib(device) is None:
        print("  memory is left out: this system does not tell a process's peak")
        return []
    threads = torch.get_num_threads()
    whole, micro, small = (
        apart(peak_of_step, batch, part, str(device), threads)
        for batch, part in ((WHOLE, None), (WHOLE, MICRO), (MICRO, None))
    )
    points = 2 * WHOLE * model_config("tiny").embed_dim * 4 / MIB
    note = f"the peer is a step of {MICRO} pairs ({small:.0f} MiB) and {points:.0f} MiB of points"
    return [
        Row("micro", f"{what}: memory", micro, whole, "MiB", "in one piece", whole / micro),
        Row("micro", f"{what}: memory", micro, small + points, "MiB", "a micro-batch and the points",
            micro / (small + points), note=note),
    ]  # fmt: skip


def peak_of_step(batch: int, micro_batch: int | None, device: str, threads: int) -> float:
    """Peak extra MiB of one step; for a process of its own."""
    torch.set_num_threads(threads)
    place = torch.device(device)
    model = _model(place)
    # What the libraries take once, and the gradients, are there before.
    _step(model, 16, None, place)()
    return extra_memory_mib(_step(model, batch, micro_batch, place), place)


def kept_step(batch: int, micro_batch: int | None, device: torch.device) -> Step:
    """A step in a process that keeps freed memory."""
    keep_freed_memory()
    return _step(_model(device), batch, micro_batch, device)


def _model(device: torch.device) -> DualEncoder:
    torch.manual_seed(0)
    return create_model(model_config("tiny", "oblique")).to(device)


def _step(model: DualEncoder, batch: int, micro_batch: int | None, device: torch.device) -> Step:
    squares = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
    ids = torch.randint(1, 4000, (batch, 8))
    images = TrainingPixels(squares, preprocess_of(model), device, Augmentation.draw(batch, seed=0))

    def step() -> Tensor:
        model.zero_grad(set_to_none=False)
        loss, _, _ = train_step(model, images, ids, None, "info_nce", "float32", micro_batch)
        return loss

    return step
