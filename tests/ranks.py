"""Runs a function on several ranks, each a process of this machine, as torchrun would start them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import torch

from oblique_clip.distributed import joined
from oblique_clip.errors import UserError
from oblique_clip.peers import Peers

Work = Callable[[Peers], Any]
PRELOAD = ["oblique_clip.distributed", "oblique_clip.towers"]
"""What takes seconds to import: where processes can be forked from one that has it, it is imported once."""
LONGEST = 120
"""Seconds in which all ranks have to end."""


def run_ranks(world: int, work: Work, folder: Path, timeout: float = 60.0) -> list[Any]:
    """What `work` returns on each rank: tensors, numbers, texts and tables of them; a UserError as its text.

    None for a rank that has died. `work` must be importable by name.
    """
    context, port = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn"), _free_port()
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(PRELOAD)
    ranks = [context.Process(target=_serve, args=(work, rank, world, port, folder, timeout)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(LONGEST)
    hanging = [process for process in ranks if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, f"{len(hanging)} of {world} ranks did not end"
    files = [folder / f"{rank}.pt" for rank in range(world)]
    return [torch.load(file, weights_only=True) if file.exists() else None for file in files]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def _serve(work: Work, rank: int, world: int, port: int, folder: Path, timeout: float) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    try:
        with joined("cpu", timeout) as peers:
            found = work(peers)
    except UserError as error:
        found = str(error)
    torch.save(found, folder / f"{rank}.pt")
