"""What a training step costs on each topology, beside the sphere's: interleaved, a process a form, a thread each.

    python -m experiments.topology.cost --json experiments/topology/cost.json

The step is that of the question's runs but for augmentation: pairs, batch, precision and towers are theirs.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from oblique_clip.bench.measure import Rival, race
from oblique_clip.bench.step import ENDLESS
from oblique_clip.cli import run_script
from oblique_clip.config import write_json
from oblique_clip.data.sources import open_training_data
from oblique_clip.device import keep_freed_memory, pick_device
from oblique_clip.model import create_model, preprocess_of, tokenizer_of
from oblique_clip.optim import Optimizer
from oblique_clip.questions.topology import FACTORS, OTHERS
from oblique_clip.step import train_step
from oblique_clip.sweep.answer import Table

ARMS = {arm.name: arm.config for arm in (*FACTORS, *OTHERS)}
PEER = "sphere-short"
STEPS = 20
"""Steps a reading, each on a batch of its own."""


@dataclass(frozen=True)
class Cost:
    """Time of a training step on each topology, as a ratio to the sphere's."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    threads: int = 1
    """CPU threads of each process; one process computes at a time."""
    rounds: int = 7
    """Interleaved readings of each; the median counts."""
    json: Path | None = None
    """File for every reading, in seconds a step."""


def steps_of(name: str, device: torch.device) -> Callable[[], Tensor]:
    """What takes `STEPS` steps of an arm, and gives the last loss."""
    keep_freed_memory()
    config = ARMS[name]
    torch.manual_seed(0)
    model = create_model(config.model).to(device).train()
    optimizer, preprocess = Optimizer(model, config.optim, ENDLESS), preprocess_of(model)
    tokenizer, side = tokenizer_of(config.model), config.model.arch.image_size
    source = open_training_data(config.data, tokenizer, config.optim.batch_size, side, seed=0)
    batches = list(itertools.islice(source.batches(), STEPS))

    def steps() -> Tensor:
        for batch in batches:
            images = preprocess.batch(batch.squares.to(device))
            loss, _, _ = train_step(
                model, images, batch.ids, None, config.loss.loss, config.optim.precision, config.optim.micro_batch
            )
            optimizer.step(loss)
        return loss

    return steps


def table(readings: dict[str, list[float]]) -> Table:
    """Medians, and the ratio to the peer's of the same round: its median, least and most."""
    rows = []
    for name, own in readings.items():
        ratios = [ours / theirs for ours, theirs in zip(own, readings[PEER], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append((name, ARMS[name].model.topology, f"{1000 * statistics.median(own):.0f}", spread))
    return Table("", ("arm", "topology", "ms a step", f"times that of {PEER}"), tuple(rows))


def main(command: Cost) -> None:
    """Measure, print, and write."""
    torch.set_num_threads(command.threads)
    device = pick_device(command.device)
    rivals = {name: Rival(steps_of, (name, device)) for name in ARMS}
    seconds, _ = race(rivals, command.rounds, device)
    readings = {name: [one / STEPS for one in own] for name, own in seconds.items()}
    print(table(readings).markdown())
    if command.json:
        facts = {"device": str(device), "threads": command.threads, "torch": torch.__version__}
        write_json(command.json, {"format_version": 1, **facts, "seconds_a_step": readings})


if __name__ == "__main__":
    run_script(main, Cost, "python -m experiments.topology.cost")
