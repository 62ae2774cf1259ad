"""Where a run computes, and with which versions."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from importlib import metadata
from pathlib import Path

import torch

from .errors import UserError

_LINUX_STATUS = Path("/proc/self/status")


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU; otherwise the named device.

    Raises:
        UserError: for a name torch does not know, or a device that this machine lacks.
    """
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}; there is auto, cpu, cuda, cuda:N and mps") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"unknown device {name!r}; there is auto, cpu, cuda, cuda:N and mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: torch finds no Metal GPU on this machine; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: torch finds {torch.cuda.device_count()} CUDA GPUs on this machine; use --device cpu"
        )
    return device


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next request, as torch does on a GPU.

    A training step on the CPU asks for the same gigabytes again and again; by default they go back to the system in
    between, which hands them out anew, page by page and zeroed. That holds for the rest of the process, so it is the
    command line that asks for it, not the library. Nothing happens under another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max = -1, -4
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the processor has instructions for products in bfloat16; elsewhere they are emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    info = Path("/proc/cpuinfo")
    names = ("avx512_bf16", "amx_bf16", "bf16")  # the last is Arm's
    return info.exists() and not set(names).isdisjoint(info.read_text().split())


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on another device, without waiting for what a CUDA device still computes."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def forget_peak_memory(device: torch.device) -> None:
    """Start `peak_memory_mib` anew, where the system can (CUDA, and Linux through /proc)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _LINUX_STATUS.exists():
        # Where it cannot be written (some containers), the peak since the start of the process is what there is.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> float | None:
    """Largest memory since `forget_peak_memory`: of the GPU where one is used, else of the process; None if unknown."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    if not _LINUX_STATUS.exists():
        return None
    line = next((line for line in _LINUX_STATUS.read_text().splitlines() if line.startswith("VmHWM")), None)
    return None if line is None else round(int(line.split()[1]) / 1024, 1)


def versions() -> dict[str, str]:
    """Versions that decide the numbers."""
    names = ("oblique-clip", "torch", "timm", "geoopt", "open_clip_torch")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
