"""A batch of 4,096 by micro-batches of 256: its memory and time beside the batch in one piece."""

from __future__ import annotations

import torch

from ..config import model_config
from ..data.images import Augmentation, TrainingPixels
from ..device import peak_memory_mib
from ..model import DualEncoder, create_model, preprocess_of
from ..step import train_step
from .measure import BenchConfig, Row, Task, apart, extra_memory_mib, seconds_of

WHOLE, MICRO = 4096, 256
MIB = 2**20


def rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """Of one augmented step of the tiny oblique model, float32, in a process for each measurement."""
    if peak_memory_mib(device) is None:
        print("  left out: this system does not tell a process's peak")
        return []
    threads = torch.get_num_threads()
    whole, micro, small = (
        apart(measured, batch, part, str(device), threads)
        for batch, part in ((WHOLE, None), (WHOLE, MICRO), (MICRO, None))
    )
    points = 2 * WHOLE * model_config("tiny").embed_dim * 4 / MIB
    what = f"a step of {WHOLE:,} pairs by {MICRO}"
    note = f"the peer is a step of {MICRO} pairs ({small[0]:.0f} MiB) and {points:.0f} MiB of points"
    return [
        Row("micro", f"{what}: memory", micro[0], whole[0], "MiB", "in one piece", whole[0] / micro[0]),
        Row("micro", f"{what}: memory", micro[0], small[0] + points, "MiB", "a micro-batch and the points",
            micro[0] / (small[0] + points), note=note),
        Row("micro", f"{what}: time", micro[1], whole[1], "s", "in one piece", whole[1] / micro[1],
            note="every tower runs forward twice"),
    ]  # fmt: skip


def measured(batch: int, micro_batch: int | None, device: str, threads: int) -> tuple[float, float]:
    """Peak extra MiB and seconds of one step; for a process of its own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    place = torch.device(device)
    model = create_model(model_config("tiny", "oblique")).to(place)
    _step(model, 16, None, place)()
    model.zero_grad(set_to_none=False)
    task = _step(model, batch, micro_batch, place)
    seconds: list[float] = []
    memory = extra_memory_mib(lambda: seconds.append(seconds_of(task, place)), place)
    return memory, seconds[0]


def _step(model: DualEncoder, batch: int, micro_batch: int | None, device: torch.device) -> Task:
    squares = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
    ids = torch.randint(1, 4000, (batch, 8))
    images = TrainingPixels(squares, preprocess_of(model), device, Augmentation.draw(batch, seed=0))
    return lambda: train_step(model, images, ids, None, "info_nce", "float32", micro_batch)
