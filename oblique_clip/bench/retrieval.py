"""recall@k both ways: time against scoring and sorting the whole matrix, and memory where that no longer fits."""

from __future__ import annotations

import time
from importlib.util import find_spec

import torch
from torch import Tensor

from ..device import peak_memory_mib
from ..evaluate.retrieval import KS, retrieval
from ..topology import parse_topology
from .measure import BenchConfig, Row, Task, apart, extra_memory_mib, faster, interleaved

TIMED = 10_000
LARGE = 50_000
LIMIT_MIB = 1536
TOPOLOGY = parse_topology("sphere(512)")
# Points are evaluated on the CPU, wherever they were encoded.
CPU = torch.device("cpu")
PEER_BATCH = 64
"""Rows that CLIP_benchmark takes at a time: its command's default batch size."""


def rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """Seconds at 10,000 x 10,000 and the memory of ours at 50,000 x 50,000, on the CPU whatever the device."""
    return [*_times(config), *_memory(config)]


def _times(config: BenchConfig) -> list[Row]:
    images, texts, matches = noisy_pairs(TIMED)
    found: dict[str, dict[str, float]] = {}

    def ours() -> None:
        found["ours"] = retrieval(images, texts, matches, TOPOLOGY)

    def sorting() -> None:
        found["score and sort"] = by_sorting(images, texts)

    def other() -> None:
        found["CLIP_benchmark"] = by_clip_benchmark(images, texts)

    tasks: dict[str, Task] = {"ours": ours, "score and sort": sorting}
    if find_spec("clip_benchmark") is None:
        print("  CLIP_benchmark is left out: pip install clip_benchmark")
    else:
        tasks["CLIP_benchmark"] = other
    runs = interleaved(tasks, config.rounds, CPU)
    what = f"R@k both ways, {TIMED:,} x {TIMED:,}"
    return [
        faster("retrieval", what, runs, peer, ">= 2", _difference(found["ours"], found[peer]))
        for peer in tasks
        if peer != "ours"
    ]


def _memory(config: BenchConfig) -> list[Row]:
    if peak_memory_mib(CPU) is None:
        print("  memory is left out: this system does not tell a process's peak")
        return []
    mib, seconds = apart(large_run, LARGE, config.threads)
    what = f"R@k both ways, {LARGE:,} x {LARGE:,}, memory beyond the embeddings"
    note = f"{seconds:.0f} s"
    return [Row("retrieval", what, mib, LIMIT_MIB, "MiB", "1.5 GiB", mib / LIMIT_MIB, "<= 1.0", note)]


def large_run(count: int, threads: int) -> tuple[float, float]:
    """Peak memory in MiB beyond the embeddings, and seconds."""
    if threads:
        torch.set_num_threads(threads)
    points = noisy_pairs(count)
    began = time.perf_counter()
    mib = extra_memory_mib(lambda: retrieval(*points, TOPOLOGY), CPU)
    return mib, time.perf_counter() - began


def noisy_pairs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image points, text points so far from them that about half are found first, and which belong together."""
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, count, 1, 512, generator=generator).unbind()
    texts = TOPOLOGY.project(images + 6 * noise)
    return TOPOLOGY.project(images), texts, torch.arange(count)[:, None].expand(-1, 2)


def by_sorting(images: Tensor, texts: Tensor) -> dict[str, float]:
    """The ranks of pairs in whole sorted rows, as open_clip's trainer finds them (`get_clip_metrics`)."""
    scores, own = images.flatten(1) @ texts.flatten(1).T, torch.arange(len(images))[:, None]
    figures: dict[str, float] = {}
    for side, matrix in (("image_to_text", scores), ("text_to_image", scores.T)):
        ranks = torch.where(matrix.argsort(descending=True) == own)[1]
        figures |= {f"{side}_r@{k}": (ranks < k).double().mean().item() for k in KS}
    return figures


def by_clip_benchmark(images: Tensor, texts: Tensor) -> dict[str, float]:
    """As CLIP_benchmark's `evaluate` goes on from its embeddings."""
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    scores = texts.flatten(1) @ images.flatten(1).T
    positive = torch.eye(len(scores), dtype=torch.bool)
    figures: dict[str, float] = {}
    for side, matrix, own in (("text_to_image", scores, positive), ("image_to_text", scores.T, positive.T)):
        for k in KS:
            recall = batchify(recall_at_k, matrix, own, PEER_BATCH, "cpu", k=k)
            figures[f"{side}_r@{k}"] = (recall > 0).double().mean().item()
    return figures


def _difference(ours: dict[str, float], theirs: dict[str, float]) -> str:
    largest = max(abs(ours[name] - value) for name, value in theirs.items())
    return f"largest difference of a recall: {largest:.1e}; R@1 {ours['image_to_text_r@1']:.3f}"
