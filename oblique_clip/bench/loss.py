"""Time and memory of the tiled losses, value and gradients together, against open_clip's, which keep every logit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from ..device import peak_memory_mib
from ..loss import LOSSES
from ..topology import parse_topology
from .measure import BenchConfig, Row, Task, apart, extra_memory_mib, faster, interleaved

SUITE = "loss"
PEERS: dict[str, Callable[[], torch.nn.Module]] = {"info_nce": ClipLoss, "sigmoid": SigLipLoss}
SPHERE = "sphere(512)"
BATCH = 16_384
# Spec, batch, MiB of the dense loss's own matrices and which they are, and the MiB to stay below.
GEODESIC = ("oblique(32,16)/geodesic", 8192, 16 * 4 * 8192**2 / 2**20, "cosines of 16 spheres", 2048)
LARGEST = (SPHERE, 65_536, 2 * 4 * 65_536**2 / 2**20, "two matrices of logits", 4096)


def rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """Time and memory at B = 16,384, and the memory of larger or costlier batches.

    Where the system tells no peak memory, the rows of memory are left out, and a note says so.
    """
    table = [_time(name, config, device) for name in PEERS]
    if peak_memory_mib(device) is None:
        left_out = f"; no peak memory is known for {device} on this system: its rows are left out"
        return [replace(row, note=row.note + left_out) for row in table]
    table += [_memory(name, device) for name in PEERS]
    return table + [_limit(*case, device) for case in (GEODESIC, *([LARGEST] if config.full else []))]


def _time(name: str, config: BenchConfig, device: torch.device) -> Row:
    peer = PEERS[name].__name__
    tasks = {"ours": ours(name, SPHERE, BATCH, device), peer: theirs(name, BATCH, device)}
    runs = interleaved(tasks, config.rounds, device, warmup=0)
    note = f"loss and gradients, {SPHERE}, float32"
    return faster(SUITE, f"{name}: time, B = {BATCH:,}, D = 512", runs, peer, ">= 1.0", note)


def _memory(name: str, device: torch.device) -> Row:
    peer, threads = PEERS[name].__name__, torch.get_num_threads()
    mine = apart(memory_of_ours, name, SPHERE, BATCH, str(device), threads)
    dense = apart(memory_of_theirs, name, BATCH, str(device), threads)
    note = f"peak beyond the points, loss and gradients, {SPHERE}, float32, a process each"
    what = f"{name}: memory, B = {BATCH:,}, D = 512"
    return Row(SUITE, what, mine, dense, "MiB", peer, dense / mine, ">= 20", note)


def _limit(spec: str, batch: int, dense: float, matrices: str, limit: int, device: torch.device) -> Row:
    mine = apart(memory_of_ours, "info_nce", spec, batch, str(device), torch.get_num_threads())
    what = f"info_nce: memory, {spec}, B = {batch:,}"
    note = f"the ratio is ours over the limit of {limit:,} MiB; the dense figure is computed: {matrices} in float32"
    return Row(SUITE, what, mine, dense, "MiB", "dense (computed)", mine / limit, "<= 1.0", note)


def ours(name: str, spec: str, batch: int, device: torch.device) -> Task:
    """One forward and backward pass of our loss over random points."""
    topology = parse_topology(spec).to(device)
    x, y = (topology.project(torch.randn(batch, topology.m, topology.n, device=device)) for _ in range(2))
    scale, bias = _scale_and_bias(name, device)
    return _task(lambda: LOSSES[name](x, y, topology, scale, bias=bias), x, y, scale, bias)


def theirs(name: str, batch: int, device: torch.device) -> Task:
    """The same of open_clip's, over unit vectors."""
    loss = PEERS[name]()
    x, y = (torch.nn.functional.normalize(torch.randn(batch, 512, device=device), dim=-1) for _ in range(2))
    scale, bias = _scale_and_bias(name, device)
    return _task(lambda: loss(x, y, scale, bias), x, y, scale, bias)


def _scale_and_bias(name: str, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Where CLIP and SigLIP start; CLIP has no bias."""
    scale = torch.tensor(1 / 0.07 if name == "info_nce" else 10.0, device=device)
    return scale, None if name == "info_nce" else torch.tensor(-10.0, device=device)


def _task(loss: Callable[[], Tensor], *inputs: Tensor | None) -> Task:
    leaves = [tensor.detach_().requires_grad_() for tensor in inputs if tensor is not None]

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    return run


def memory_of_ours(name: str, spec: str, batch: int, device: str, threads: int) -> float:
    """Peak extra MiB of one pass of ours; for a process of its own."""
    return _peak(lambda size: ours(name, spec, size, torch.device(device)), batch, device, threads)


def memory_of_theirs(name: str, batch: int, device: str, threads: int) -> float:
    """Peak extra MiB of one pass of open_clip's; for a process of its own."""
    return _peak(lambda size: theirs(name, size, torch.device(device)), batch, device, threads)


def _peak(task_of: Callable[[int], Task], batch: int, device: str, threads: int) -> float:
    torch.set_num_threads(threads)
    # What the libraries take once, whatever the batch, is neither's.
    task_of(64)()
    return extra_memory_mib(task_of(batch), torch.device(device))
