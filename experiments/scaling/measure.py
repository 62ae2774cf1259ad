"""The loss over 1, 2 and 4 ranks of this machine: seconds, memory and traffic a rank, beside what a plan says.

    for ranks in 1 2 4; do
      torchrun --nproc-per-node $ranks -m experiments.scaling.measure --out experiments/scaling/results.json
      torchrun --nproc-per-node $ranks -m experiments.scaling.measure --out experiments/scaling/results.json --ring
    done

Each rank has one thread. The time of one rank gives the rate of products, and that of gathering a block and of
scattering a sum the bytes a second; the rest is predicted from these.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oblique_clip.bench.measure import extra_memory_mib
from oblique_clip.cli import run_script
from oblique_clip.config import write_json
from oblique_clip.device import forget_peak_memory, peak_memory_mib
from oblique_clip.distributed import joined
from oblique_clip.loss import CPU_TILE, info_nce
from oblique_clip.peers import Peers
from oblique_clip.plan import PlanConfig, plan
from oblique_clip.topology import parse_topology

SPEC = "oblique(32,16)"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ScalingConfig:
    """Measure the loss on the ranks that torchrun has started."""

    batch: int = 8192
    """Pairs of all ranks."""
    rounds: int = 5
    """Runs; the median of the slowest rank counts."""
    ring: bool = False
    """Captions go round the ranks instead of being gathered."""
    out: Path = Path("results.json")
    """File that a line for this number of ranks is put into."""


def measure(config: ScalingConfig) -> None:
    torch.set_num_threads(1)
    with joined("cpu") as peers:
        row = measured(peers, config)
        if peers.rank == 0:
            known = json.loads(config.out.read_text()) if config.out.exists() else []
            rest = [other for other in known if (other["ranks"], other["ring"]) != (peers.world, config.ring)]
            rows = sorted([*rest, row], key=lambda row: (row["ranks"], row["ring"]))
            write_json(config.out, rows)
            print(table(rows))


def measured(peers: Peers, config: ScalingConfig) -> dict[str, Any]:
    """Seconds and MiB of the slowest and largest rank; a process that has run before would ask for no new memory."""
    peers.ring = config.ring
    topology, own = parse_topology(SPEC), config.batch // peers.world
    x, y = (topology.project(torch.randn(own, topology.m, topology.n)).requires_grad_() for _ in range(2))

    def loss(pairs: int = own) -> None:
        torch.autograd.grad(info_nce(x[:pairs], y[:pairs], topology, 1.0, peers=peers), [x, y])

    def carry() -> None:
        sizes = peers.sizes(own)
        peers.scatter_sum(peers.gather(y.detach(), sizes), sizes)

    # What the libraries take once is not the loss's.
    loss(64)
    memory = torch.tensor(extra_memory_mib(loss, CPU)) if peak_memory_mib(CPU) is not None else torch.tensor(-1.0)
    forget_peak_memory(CPU)
    seconds, carried = (slowest(peers, task, config.rounds) for task in (loss, carry))
    row = {"ranks": peers.world, "batch": config.batch, "ring": config.ring, "seconds": seconds, "carried": carried}
    return row | {"mib": float(peers.largest_(memory)), "cores": len(os.sched_getaffinity(0))}


def slowest(peers: Peers, task: Callable[[], None], rounds: int) -> float:
    """Median of what the slowest rank takes."""
    times = []
    for _ in range(rounds):
        peers.barrier()
        began = time.perf_counter()
        task()
        times.append(float(peers.largest_(torch.tensor(time.perf_counter() - began))))
    return statistics.median(times)


def table(rows: list[dict[str, Any]]) -> str:
    """What was measured beside what follows from one rank's rate and the wire's."""
    lines = [
        "| ranks | captions | seconds | predicted | MiB a rank | predicted | MiB sent a rank |",
        "|---|---|---|---|---|---|---|",
    ]
    rate = next((work_of(row) / row["seconds"] for row in rows if row["ranks"] == 1), float("nan"))
    for row in rows:
        lines_of = {line.what: line.value for line in plan(planned(row), CPU_TILE)}
        sent = sum(v for what, v in lines_of.items() if what.startswith(("traffic: captions", "traffic: their")))
        # As many ranks as there are cores work at a time.
        computed = work_of(row) / rate * max(1, row["ranks"] / row["cores"])
        gathered = {line.what: line.value for line in plan(planned(row | {"ring": False}))}
        wire = (gathered["traffic: captions gathered"] + gathered["traffic: their gradient"]) / row["carried"]
        predicted = computed + (sent / wire if sent else 0.0)
        # Own points stand before the loss begins, their gradients do not.
        memory = (lines_of["memory: loss"] + lines_of["memory: points"] / 2) / 2**20
        way = "alone" if row["ranks"] == 1 else "ring" if row["ring"] else "gathered"
        lines.append(
            f"| {row['ranks']} | {way} | {row['seconds']:.2f} | {predicted:.2f} | {row['mib']:.0f} | {memory:.0f} "
            f"| {sent / 2**20:.1f} |"
        )
    return "\n".join(lines)


def planned(row: dict[str, Any]) -> PlanConfig:
    return PlanConfig(size="small", batch_size=row["batch"], ranks=row["ranks"], ring=row["ring"])


def work_of(row: dict[str, Any]) -> float:
    return next(line.value for line in plan(planned(row)) if line.what == "work: loss")


if __name__ == "__main__":
    run_script(measure, ScalingConfig, "python -m experiments.scaling.measure")
