"""What a run needs to go on exactly: one safetensors file a moment, written whole or not at all, a few of them kept.

A file holds every tensor that decides the next step (weights, moments of the optimisers, an average of the weights) and
in its header, as JSON, every number that does (step, position in the data, best figures, configuration, versions).
Nothing in it is ever executed. Random generators are not among it: order, crops and noise are functions of seed and
position, and layers that draw get a generator of (seed, step, rank) at every step (`reseed`).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import read_tensors, write_tensors
from .errors import UserError

FORMAT_VERSION = 1
NAME = re.compile(r"state-(\d{8,})\.safetensors")


@dataclass(frozen=True)
class State:
    """A moment of a run, behind `facts["step"]` steps.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from oblique_clip.state import State, newest, save
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step in (10, 20, 30):
        ...     _ = save(State({"weight": torch.full((2,), float(step))}, {"step": step}), folder, keep=2)
        >>> [path.name for path in sorted(folder.iterdir())]
        ['state-00000020.safetensors', 'state-00000030.safetensors']
        >>> state, damaged = newest(folder)
        >>> state.facts["step"], state.tensors["weight"].tolist(), damaged
        (30, [30.0, 30.0], [])
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    """JSON values; `step` at least."""

    @property
    def step(self) -> int:
        return int(self.facts["step"])

    def group(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `name` and a dot, without that."""
        return {
            key.removeprefix(f"{name}."): value for key, value in self.tensors.items() if key.startswith(f"{name}.")
        }


def save(state: State, folder: Path, keep: int) -> Path:
    """Write a state, then remove all but the newest `keep` of those up to it: what lay ahead of it has not come to be.

    Raises:
        OSError: where it cannot be written; the states that were there before are untouched.
    """
    path = folder / f"state-{state.step:08d}.safetensors"
    facts = json.dumps({"format_version": FORMAT_VERSION, **state.facts})
    write_tensors(path, state.tensors, {"facts": facts, "sha256": _digest(state.tensors, facts)})
    every = _paths(folder)
    kept = every[every.index(path) :][:keep]
    for other in every:
        if other not in kept:
            other.unlink(missing_ok=True)
    return path


def newest(folder: Path) -> tuple[State | None, list[str]]:
    """The newest state that is intact, None where there is none, and what is wrong with those newer than it."""
    damaged: list[str] = []
    for path in _paths(folder):
        try:
            return _read(path), damaged
        except UserError as error:
            damaged.append(str(error))
    return None, damaged


def _paths(folder: Path) -> list[Path]:
    """The newest first."""
    found = [(int(match[1]), path) for path in folder.glob("state-*") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _read(path: Path) -> State:
    tensors, header = read_tensors(path)
    if header.get("sha256") != _digest(tensors, header.get("facts", "")):
        raise UserError(f"{path} is damaged: its checksum is another")
    facts = json.loads(header["facts"])
    if facts["format_version"] != FORMAT_VERSION:
        raise UserError(f"{path} has format version {facts['format_version']}; this library reads {FORMAT_VERSION}")
    return State(tensors, facts)


def _digest(tensors: dict[str, Tensor], facts: str) -> str:
    """SHA-256 over names, types, shapes and bytes in the order of the names, and over the facts."""
    total = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            total.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def reseed(seed: int, step: int, rank: int = 0) -> None:
    """Give torch's global generators, which dropout draws from, the seed of one step of one rank.

    Examples:
        >>> import torch
        >>> from oblique_clip.state import reseed
        >>> reseed(0, step=7)
        >>> drawn = torch.rand(3)
        >>> reseed(0, step=7)
        >>> torch.equal(drawn, torch.rand(3))
        True
    """
    torch.manual_seed(int(np.random.default_rng((seed, 4, step, rank)).integers(2**62)))
