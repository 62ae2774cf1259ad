"""Weights from files of torch and safetensors, read so that no code in them runs."""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .errors import UserError

# Where trainers put the state dict: timm's averages first, as timm itself prefers them.
WRAPPINGS = ("state_dict_ema", "model_ema", "state_dict", "model")
# What torch.compile and data parallelism write in front of every name.
PREFIXES = ("_orig_mod.", "module.")
LFS_POINTER = b"version https://git-lfs"
ZIP = b"PK\x03\x04"
AGAIN = "copy or download it again"
WEIGHTS_ALONE = "save its weights alone with torch.save(model.state_dict(), path)"

Weights = dict[str, Tensor]


def read_state_dict(path: Path) -> Weights:
    """The state dict in a file of torch or safetensors, freed from the usual wrappings.

    torch's files are read with `weights_only=True`: of a pickle come tensors and plain containers, or nothing.

    Raises:
        UserError: for a file that is missing, damaged, of another kind, or holds more than weights.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from oblique_clip.weights_file import read_state_dict
        >>> path = Path(tempfile.mkdtemp()) / "epoch_3.pt"
        >>> torch.save({"epoch": 3, "state_dict": {"module.weight": torch.ones(2)}}, path)
        >>> read_state_dict(path)
        {'weight': tensor([1., 1.])}
    """
    content = _content(path)
    for key in WRAPPINGS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} holds no state dict: save one with torch.save(model.state_dict(), path)")
    return _without_prefixes({str(name): value for name, value in content.items()})


def is_safetensors(start: bytes) -> bool:
    """Whether a file that starts so is of safetensors: the length of a JSON header in eight bytes, then the header."""
    return start[8:9] == b"{"


def is_torch(start: bytes) -> bool:
    """Whether a file that starts so is what `torch.save` or pickle writes."""
    # The length of safetensors' header, which stands first, may begin with any of these bytes.
    return start.startswith((ZIP, pickle.PROTO)) and not is_safetensors(start)


def first_bytes(path: Path) -> bytes:
    """What tells the kind of a file.

    Raises:
        UserError: for a file that is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _content(path: Path) -> Any:
    start = first_bytes(path)
    try:
        if is_safetensors(start):
            return load_file(path)
        # timm's trainer keeps its settings, in a class that holds values and does nothing, beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped, a file that is only looked at costs no memory; torch's older format cannot be.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(ZIP))
    except Exception as error:  # damaged files make unpickling raise nearly anything
        raise UserError(f"{path} {why_unreadable(start, error)}") from error


def why_unreadable(start: bytes, error: Exception) -> str:
    """What is wrong with a file that starts so, and what to do, by what its reader raised."""
    if start == LFS_POINTER:
        return "is a Git LFS pointer in place of the weights: run `git lfs pull` in its repository"
    if "TorchScript" in str(error):
        return f"is a TorchScript archive, a program and not weights: {WEIGHTS_ALONE}"
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused or (start[:1] == pickle.PROTO and "Unsupported operand" in str(error)):
        what = refused[1] if refused else "a plain pickle"
        return f"holds more than tensors ({what}), which could run code, so it was not unpickled: {WEIGHTS_ALONE}"
    return f"is no .pt or .safetensors file, or not a whole one: {AGAIN}"


def _without_prefixes(weights: Weights) -> Weights:
    for prefix in (*PREFIXES, *PREFIXES):  # either may stand before the other
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights
