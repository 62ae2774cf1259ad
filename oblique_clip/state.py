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
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import write_tensors
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


class Damaged(ValueError):
    """A file that is not what was written."""


def save(state: State, folder: Path, keep: int) -> Path:
    """Write a state, then remove all but the newest `keep` of those up to it.

    What lay ahead of it, a future that a run has turned from, is set aside under another name.

    Raises:
        OSError: where it cannot be written; the states that were there before are untouched.
    """
    path = folder / f"state-{state.step:08d}.safetensors"
    facts = json.dumps({"format_version": FORMAT_VERSION, **state.facts})
    write_tensors(path, state.tensors, {"facts": facts, "sha256": _digest(state.tensors, facts)})
    every = _paths(folder)
    place = every.index(path)
    for ahead in every[:place]:
        ahead.replace(ahead.with_suffix(".set-aside"))
    for old in every[place + keep :]:
        old.unlink(missing_ok=True)
    return path


def newest(folder: Path) -> tuple[State | None, list[str]]:
    """The newest state that is intact, None where there is none, and what is wrong with those newer than it.

    Raises:
        UserError: for a state of another format, or one that the system does not let us read: it may be intact.
    """
    damaged: list[str] = []
    for path in _paths(folder):
        try:
            return _read(path), damaged
        except Damaged as error:
            damaged.append(str(error))
    return None, damaged


def at_step(folder: Path, step: int) -> State:
    """The state behind so many steps.

    Raises:
        UserError: where it is not there, or damaged.
    """
    path = folder / f"state-{step:08d}.safetensors"
    try:
        return _read(path)
    except Damaged as error:
        raise UserError(f"{error}, but another process could read it: do all see the same folder?") from error


def clear(folder: Path) -> None:
    """Remove all states, and what was left unfinished."""
    for path in (*folder.glob("state-*"), *folder.glob("*.part")):
        path.unlink(missing_ok=True)


def _paths(folder: Path) -> list[Path]:
    """The newest first."""
    found = [(int(match[1]), path) for path in folder.glob("state-*") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _read(path: Path) -> State:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            header = file.metadata() or {}
    except SafetensorError as error:
        raise Damaged(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; nothing was changed") from error
    if header.get("sha256") != _digest(tensors, header.get("facts", "")):
        raise Damaged(f"{path} is damaged: its checksum is another")
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
