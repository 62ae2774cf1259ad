"""Where a training step goes, by kind of operation, and how near it comes to the machine's own matrix products."""

from __future__ import annotations

import statistics
from collections import Counter

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from .measure import BenchConfig, Row, apart, seconds_of
from .step import Step, same_step, shipped

SIDE = 2048
# Beginnings of the names of torch's operations.
KINDS = {
    "linear layers": ("aten::mm", "aten::addmm", "aten::mkldnn_conv", "aten::conv"),
    # On the CPU attention is two batched products in bf16, and torch's fused kernel in float32.
    "attention": (
        "aten::_scaled_dot_product", "aten::_flash_attention", "aten::_efficient_attention", "aten::_cudnn_attention",
        "aten::_softmax", "aten::bmm", "aten::baddbmm",
    ),
    "GELU": ("aten::gelu",),
    "layer norm": ("aten::native_layer_norm",),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::stack", "aten::fill_", "aten::zero_", "aten::index"),
    "sums": ("aten::add", "aten::sum", "aten::mul", "aten::div"),
    "optimiser": ("aten::_fused_adam",),
}  # fmt: skip


def rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """Of `step`'s own model in both precisions: products a second beside a plain product's, and time by kind."""
    precisions = (("float32", torch.float32), ("bf16", torch.bfloat16))
    threads = torch.get_num_threads()
    return [row for case in precisions for row in apart(measured, *case, device, config.rounds, threads)]


def measured(precision: str, dtype: torch.dtype, device: torch.device, rounds: int, threads: int) -> list[Row]:
    """The rows of one precision; for a process of its own."""
    torch.set_num_threads(threads)
    # The same batch every time: what is counted in one step is what others are timed on.
    pairs = shipped("name")
    pairs.batches = pairs.batches[:1]
    step = same_step(device, "name", precision)
    for _ in range(2):
        step()
    return [_rate(step, precision, dtype, rounds, device), *_kinds(step, precision, device)]


def _rate(step: Step, precision: str, dtype: torch.dtype, rounds: int, device: torch.device) -> Row:
    """Useful operations a second (multiply and add are two), counted in the products of forward and backward."""
    # The counter does not know torch's fused attention kernels.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    square = torch.randn(SIDE, SIDE, device=device, dtype=dtype)
    plain, own = [], []
    for _ in range(rounds):
        plain.append(seconds_of(lambda: square @ square, device))
        own.append(seconds_of(step, device))
    reached = counter.get_total_flops() / statistics.median(own) / 1e9
    possible = 2 * SIDE**3 / statistics.median(plain) / 1e9
    note = f"products of {SIDE} x {SIDE} matrices; a step counts {counter.get_total_flops() / 1e9:.0f} GFLOP"
    return Row("profile", f"{precision}: share of the product rate", reached, possible, "GFLOP/s",
               "one large product", reached / possible, "", note)  # fmt: skip


def _kinds(step: Step, precision: str, device: torch.device) -> list[Row]:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        step()
    time: Counter[str] = Counter()
    for event in profiler.key_averages():
        # On a GPU each kernel is listed once more, apart from the operation that called it.
        if event.device_type.name != "CPU":
            continue
        spent = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        time[_kind(event.key)] += spent / 1e6
    whole = sum(time.values())
    return [
        Row("profile", f"{precision}: {kind}", seconds, whole, "s", "whole step", seconds / whole)
        for kind, seconds in time.most_common()
    ]


def _kind(operation: str) -> str:
    for kind, beginnings in KINDS.items():
        if operation.startswith(beginnings):
            return kind
    return "everything else"
