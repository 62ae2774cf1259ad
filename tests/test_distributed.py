"""Many processes and one batch: the loss and every gradient of one process, and an end with a cause when one dies."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, relative_error
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from oblique_clip import create_model, model_config
from oblique_clip.config import ModelConfig, OptimConfig
from oblique_clip.distributed import (
    VARIABLES,
    clip_gradients,
    joined,
    parallel,
    whole,
)
from oblique_clip.errors import UserError
from oblique_clip.loss import LOSSES
from oblique_clip.model import DualEncoder
from oblique_clip.optim import Optimizer
from oblique_clip.peers import Peers
from oblique_clip.step import train_step
from oblique_clip.topology import parse_topology

WORLDS = (2, 4)
"""One process alone is what they are compared with."""
SPECS = {
    "sphere(16)": 20.0, "sphere(16)/geodesic": 10.0, "sphere(16)/chordal": 10.0, "oblique(8,3)": 7.0,
    "oblique(8,3)/geodesic": 5.0, "oblique(8,3)/chordal": 5.0, "euclidean(16)": 5.0, "euclidean(16)/squared": 1.0,
    "lorentz(16)": 5.0,
}  # fmt: skip
"""Every topology and distance, with a scale."""
BIAS = -1.3
PAIRS = 24
SIZES = {
    2: {"even": (12, 12), "uneven": (17, 7), "empty": (0, 24)},
    4: {"even": (6, 6, 6, 6), "uneven": (3, 11, 9, 1), "empty": (9, 0, 15, 0)},
}
"""Pairs of each rank."""
TILES = {"even": None, "uneven": 5, "empty": 4}
LAYOUTS = [
    ("gathered", "even", "index"), ("gathered", "uneven", "groups"), ("gathered", "empty", "index"),
    ("ring", "even", "groups"), ("ring", "uneven", "index"), ("ring", "empty", "groups"),
]  # fmt: skip
CASES = [(loss, spec, *layout) for loss, spec, layout in itertools.product(LOSSES, SPECS, LAYOUTS)]
FLOAT32 = 1e-5
FLOAT64 = 1e-9
CLIP = 1e-3
SETTINGS = OptimConfig(lr=1e-3, warmup=0.0, clip_grad=0.0, max_bad_steps=0)


def batch(spec: str, grouped: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Points of alike images and captions in float64, and groups that lie across ranks."""
    topology, generator = parse_topology(spec).double(), torch.Generator().manual_seed(3)
    features, noise = torch.randn(2, PAIRS, topology.m, topology.n, generator=generator, dtype=torch.float64)
    x, y = (topology.project(points).detach() for points in (features, features + 2 * noise))
    return x, y, torch.arange(PAIRS) % 9 if grouped == "groups" else None


def value_and_gradients(
    loss: str, spec: str, grouped: str, dtype: torch.dtype, own: slice, peers: Peers, tile: int | None = None
) -> list[Tensor]:
    """Value, and gradients of images, captions, scale, bias and curvature, of the pairs `own` among those of peers."""
    topology = parse_topology(spec).to(dtype)
    x, y, groups = batch(spec, grouped)
    leaves = [points[own].to(dtype).requires_grad_() for points in (x, y)]
    numbers = [torch.tensor(number, dtype=dtype, requires_grad=True) for number in (SPECS[spec], BIAS)]
    curvature = [value for name, value in topology.named_parameters() if name == "log_curvature"]
    groups = None if groups is None else groups[own]
    value = LOSSES[loss](*leaves, topology, numbers[0], bias=numbers[1], groups=groups, tile=tile, peers=peers)
    return [value.detach(), *torch.autograd.grad(value, [*leaves, *numbers, *curvature])]


def losses_on_a_rank(peers: Peers) -> dict[tuple[str, ...], list[Tensor]]:
    found = {}
    for case in CASES:
        loss, spec, way, cut, grouped = case
        peers.ring = way == "ring"
        found[case] = value_and_gradients(loss, spec, grouped, torch.float32, own_pairs(peers, cut), peers, TILES[cut])
    return found


@pytest.fixture(scope="module", params=WORLDS)
def scored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, list[Tensor]]]:
    """Every case on every rank."""
    return run_ranks(request.param, losses_on_a_rank, tmp_path_factory.mktemp("losses"))


@lru_cache
def alone(loss: str, spec: str, grouped: str) -> list[Tensor]:
    return value_and_gradients(loss, spec, grouped, torch.float64, slice(None), Peers())


@pytest.mark.parametrize("loss, spec", itertools.product(LOSSES, SPECS))
def test_ranks_have_the_loss_and_the_gradients_of_one_process(
    scored: list[dict[Any, list[Tensor]]], loss: str, spec: str
) -> None:
    """Gathered and in a ring, on even, uneven and empty ranks, with and without groups."""
    for case in (case for case in CASES if case[:2] == (loss, spec)):
        values, images, captions, *numbers = zip(*(rank[case] for rank in scored), strict=True)
        value, *gradients = alone(loss, spec, case[-1])
        assert all(torch.equal(other, values[0]) for other in values), "every rank has the same loss"
        assert relative_error(values[0], value) < FLOAT32, case
        # A rank has the whole gradient of its own points, and its part of those of numbers that all share.
        found = [torch.cat(images), torch.cat(captions), *(torch.stack(parts).sum(0) for parts in numbers)]
        for place, (ours, reference) in enumerate(zip(found, gradients, strict=True)):
            # A bias cancels in InfoNCE: its gradient is rounding.
            near = (ours - reference).abs().max() < FLOAT32 if place == 3 else False
            assert near or relative_error(ours, reference) < FLOAT32, (case, place)


KINDS: dict[str, ModelConfig] = {
    "clip": model_config("tiny", "clip", topology="sphere(32)", embed_dim=32, arch=TINY),
    "lorentz": model_config("tiny", "sphere", topology="lorentz(32)", embed_dim=32, arch=TINY),
    "oblique": model_config("tiny", "oblique", topology="oblique(8,4)", embed_dim=32, arch=TINY),
    "points": model_config(
        "tiny", "oblique", topology="oblique(8,4)", embed_dim=32, arch=TINY, class_tokens="oblique"
    ),
}  # fmt: skip
KIND_LOSSES = {"clip": "info_nce", "lorentz": "sigmoid", "oblique": "info_nce", "points": "sigmoid"}
KIND_SIZES = {"points": (8, 32)}
"""Prefixes that are trained; the other kinds train the whole embedding."""
STEP_SIZES = {2: "empty", 4: "uneven"}
WAYS: dict[str, tuple[bool, int | None]] = {
    "ddp": (False, None), "ddp by micro-batches": (False, 4), "fsdp": (True, None), "fsdp by micro-batches": (True, 4),
}  # fmt: skip
"""Whether towers are in parts, and the micro-batch."""
STEPS = [(kind, way) for kind, way in itertools.product(KINDS, WAYS) if not (kind == "points" and WAYS[way][0])]


def build(kind: str, seed: int = 1) -> DualEncoder:
    torch.manual_seed(seed)
    return create_model(KINDS[kind], KIND_LOSSES[kind]).double()


def step(model: DualEncoder, kind: str, own: slice, micro_batch: int | None = None, **options: Any) -> Tensor:
    """One step on the pairs `own` of the batch of all, in float64, with groups that lie across ranks."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(PAIRS, 3, 32, 32, generator=generator, dtype=torch.float64)
    ids = torch.randint(1, 4000, (PAIRS, 7), generator=generator)
    ends = 1 + torch.arange(PAIRS) * 6 // PAIRS
    ids[torch.arange(PAIRS), ends] = 4095
    ids[torch.arange(7) > ends[:, None]] = 0
    groups = torch.arange(PAIRS) % 9
    parts = (part[own] for part in (images, ids, groups))
    return train_step(
        model, *parts, KIND_LOSSES[kind], "float32", micro_batch, nested=KIND_SIZES.get(kind, ()), **options
    )[0]


def own_pairs(peers: Peers, cut: str) -> slice:
    sizes = SIZES[peers.world][cut]
    first = sum(sizes[: peers.rank])
    return slice(first, first + sizes[peers.rank])


def gradients_of(model: DualEncoder) -> dict[str, Tensor]:
    """Whole ones, wherever their parts are."""
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: (g.full_tensor() if isinstance(g, DTensor) else g).clone() for name, g in found.items()}


def steps_on_a_rank(peers: Peers) -> dict[tuple[str, ...], Any]:
    """Loss, gradients, and their length before and after clipping."""
    found = {}
    for kind, way in STEPS:
        in_parts, micro_batch = WAYS[way]
        # Each rank draws other weights: all have to go on from rank 0's.
        model = build(kind, seed=1 + peers.rank)
        towers = parallel(model, peers, in_parts)
        value = step(model, kind, own_pairs(peers, STEP_SIZES[peers.world]), micro_batch, towers=towers)
        gradients = gradients_of(model)
        lengths = [clip_gradients(model.parameters(), CLIP) for _ in range(2)]
        found[kind, way] = {"value": value, "gradients": gradients, "lengths": lengths}
    return found


@pytest.fixture(scope="module", params=WORLDS)
def stepped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return run_ranks(request.param, steps_on_a_rank, tmp_path_factory.mktemp("steps"))


@pytest.mark.parametrize("case", STEPS, ids=" ".join)
def test_a_step_over_ranks_has_the_gradients_of_one_process(
    stepped: list[dict[Any, Any]], case: tuple[str, ...]
) -> None:
    """Of every parameter, and their length."""
    model = build(case[0])
    value = step(model, case[0], slice(None))
    expected = gradients_of(model)
    length = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    least = 1e-6 * max(float(gradient.norm()) for gradient in expected.values())
    for rank in stepped:
        found = rank[case]
        assert relative_error(found["value"], value) < FLOAT64
        assert found["gradients"].keys() == expected.keys()
        for name, reference in expected.items():
            error = float((found["gradients"][name] - reference).norm())
            assert error <= FLOAT64 * max(float(reference.norm()), least), name
        assert [float(n) for n in found["lengths"]] == pytest.approx([float(length), CLIP], rel=1e-4)


def checkpoint_on_a_rank(peers: Peers) -> dict[str, Any]:
    """Weights and moments after a step of towers in parts, and the moments after they were loaded again."""
    model, states = build("oblique"), []
    towers = parallel(model, peers, fsdp=True)
    optimizer = Optimizer(model, SETTINGS, total_steps=10)
    step(model, "oblique", own_pairs(peers, "uneven"), towers=towers)
    optimizer.step()
    states.append(optimizer.state_dict())
    weights = {name: whole(value) for name, value in model.state_dict().items()}
    again = build("oblique")
    parallel(again, peers, fsdp=True)
    other = Optimizer(again, SETTINGS, total_steps=10)
    other.load_state_dict(states[0])
    states.append(other.state_dict())
    return {"weights": weights, "states": states}


@pytest.mark.parametrize("world", WORLDS)
def test_a_checkpoint_of_towers_in_parts_is_that_of_one_process(world: int, tmp_path: Path) -> None:
    """On every rank, and so it is for any number of them."""
    model = build("oblique")
    optimizer = Optimizer(model, SETTINGS, total_steps=10)
    step(model, "oblique", slice(None))
    optimizer.step()
    expected = optimizer.state_dict()
    for rank in run_ranks(world, checkpoint_on_a_rank, tmp_path):
        assert rank["weights"].keys() == model.state_dict().keys()
        for name, weight in model.state_dict().items():
            assert relative_error(rank["weights"][name], weight) < FLOAT64
        for state in rank["states"]:
            assert state["steps"] == 1 and state["moments"].keys() == expected["moments"].keys()
            for name, moment in expected["moments"].items():
                assert relative_error(state["moments"][name], moment) < FLOAT64


def test_points_are_not_cut_into_parts() -> None:
    with pytest.raises(UserError, match="--class-tokens free"):
        parallel(build("points"), Peers(), fsdp=True)


def talk_on_a_rank(peers: Peers) -> list[Any]:
    peers.barrier()
    block = torch.arange(peers.rank, dtype=torch.float64)[:, None] + 10 * peers.rank
    sizes = peers.sizes(len(block))
    whole = peers.gather(block, sizes)
    passed = peers.shift(block, sizes[peers.rank - 1])()
    said = peers.from_first({"steps": peers.rank, "name": "Äpfel", "parts": [1.5, None]})
    return [sizes, whole, passed, peers.scatter_sum(whole, sizes), said]


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_tell_each_other_what_they_have(world: int, tmp_path: Path) -> None:
    """Blocks of 0, 1, 2, ... rows."""
    blocks = [[[10.0 * rank + row] for row in range(rank)] for rank in range(world)]
    for rank, (sizes, gathered, passed, summed, said) in enumerate(run_ranks(world, talk_on_a_rank, tmp_path)):
        assert sizes == list(range(world))
        assert gathered.tolist() == list(itertools.chain(*blocks))
        assert passed.tolist() == blocks[rank - 1]
        assert summed.tolist() == [[world * number for number in row] for row in blocks[rank]]
        assert said == {"steps": 0, "name": "Äpfel", "parts": [1.5, None]}


LAST = 2
"""The rank that dies."""


def until_one_dies(peers: Peers, end: Callable[[], None]) -> None:
    for turn in range(10**6):
        if turn == 20 and peers.rank == LAST:
            end()
        peers.sum_(torch.ones(8))


def killed_on_a_rank(peers: Peers) -> None:
    until_one_dies(peers, lambda: os._exit(9))


def mistaken_on_a_rank(peers: Peers) -> None:
    def fail() -> None:
        raise UserError("no such folder: shards")

    until_one_dies(peers, fail)


def silent_on_a_rank(peers: Peers) -> None:
    until_one_dies(peers, lambda: time.sleep(12))


ENDS = {
    "killed": (killed_on_a_rank, ""),
    "mistaken": (mistaken_on_a_rank, "UserError: no such folder: shards"),
    "silent": (silent_on_a_rank, ""),
}


@pytest.mark.parametrize("way", ENDS)
def test_a_rank_that_dies_ends_the_others_with_a_line_that_names_it(way: str, tmp_path: Path) -> None:
    work, cause = ENDS[way]
    began = time.monotonic()
    lines = run_ranks(4, work, tmp_path, timeout=6)
    assert time.monotonic() - began < 60
    del lines[LAST]
    for line in lines:
        assert line is not None and "\n" not in line
        assert f", as rank {LAST} is gone (" in line and cause in line and "--resume" in line


def test_a_process_alone_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as peers:
        assert (peers.rank, peers.world) == (0, 1)


def test_half_of_torchruns_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"WORLD_SIZE, LOCAL_RANK.*torchrun"), joined("cpu"):
        pass


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_one_gpu_for_every_rank_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match="every rank on one GPU"), joined(device):
        pass
