"""What a plan says before anything is run, against what is then counted and measured."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from oblique_clip import create_model, distributed, model_config
from oblique_clip.cli import main
from oblique_clip.config import FORMS
from oblique_clip.errors import UserError
from oblique_clip.loss import info_nce
from oblique_clip.model import DualEncoder
from oblique_clip.peers import Peers
from oblique_clip.plan import PlanConfig, count_parameters, plan
from oblique_clip.step import train_step
from oblique_clip.topology import parse_topology

ACTIVATIONS, WORK = 0.1, 0.05
"""How far an estimate may be from what is counted."""
PAIRS, WORDS = 16, 32


def planned(**settings: Any) -> dict[str, float]:
    return {line.what: line.value for line in plan(PlanConfig(**{"size": "tiny", "ranks": 1, **settings}))}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_parameters_are_exact(size: str, form: Any) -> None:
    config = model_config(size, form)
    model = create_model(config)
    towers = [sum(p.numel() for p in tower.parameters()) for tower in (model.visual, model.text)]
    assert count_parameters(config) == (sum(p.numel() for p in model.parameters()), max(towers))


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Most bytes that autograd keeps at once for a backward pass, each memory counted once, parameters left out."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes = self.peak = 0
        self._own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._held: Counter[int] = Counter()
        super().__init__(self._pack, lambda box: box[0])

    def __enter__(self) -> Kept:
        super().__enter__()
        return self

    class _Box(list[Tensor]):
        __hash__ = object.__hash__

    def _pack(self, tensor: Tensor) -> _Box:
        box, storage = self._Box([tensor]), tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self._own:
            self.bytes += size * (not self._held[place])
            self._held[place] += 1
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(box, self._drop, place, size)
        return box

    def _drop(self, place: int, size: int) -> None:
        self._held[place] -= 1
        self.bytes -= size * (not self._held[place])


def batch(model: DualEncoder, size: int, pairs: int = PAIRS) -> tuple[Tensor, Tensor]:
    """Captions that fill the whole context."""
    ids = torch.randint(1, 4000, (pairs, model.context_length))
    ids[:, -1] = model.text.vocab_size - 1
    return torch.randn(pairs, 3, size, size), ids


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "size, pixels, micro_batch, checkpointing",
    [("tiny", 32, None, False), ("tiny", 32, 4, False), ("tiny", 32, None, True), ("small", 64, None, False)],
)
def test_activations_are_those_that_autograd_keeps(
    size: str, pixels: int, form: Any, micro_batch: int | None, checkpointing: bool
) -> None:
    model = create_model(model_config(size, form))
    model.set_grad_checkpointing(checkpointing)
    with Kept(model) as kept:
        train_step(model, *batch(model, pixels), None, "info_nce", "float32", micro_batch)
    settings = {"batch_size": PAIRS, "precision": "float32", "grad_checkpointing": checkpointing}
    found = planned(size=size, form=form, micro_batch=micro_batch, **settings)["memory: activations"]
    assert found == pytest.approx(kept.peak, rel=ACTIVATIONS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size, pixels, micro_batch", [("tiny", 32, None), ("tiny", 32, 4), ("small", 64, None)])
def test_work_is_what_a_step_multiplies(size: str, pixels: int, form: Any, micro_batch: int | None) -> None:
    model = create_model(model_config(size, form))
    # The fused kernel of a CPU is not counted, the products that it stands for are.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        train_step(model, *batch(model, pixels), None, "info_nce", "float32", micro_batch)
    found = planned(size=size, form=form, micro_batch=micro_batch, batch_size=PAIRS)
    assert found["work: towers"] == pytest.approx(counter.get_total_flops(), rel=WORK)


class Meter:
    """Bytes that a rank sends by ring algorithms, from what it gives to the collectives that are called."""

    def __init__(self, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: Counter[str] = Counter()
        share = (world - 1) / world
        for module, name, factor, place in (
            (distributed, "_gather_into", share, 0),
            (distributed, "_scatter_sum_into", share, 1),
            (dist, "all_reduce", 2 * share, 0),
        ):
            monkeypatch.setattr(module, name, self._metered(getattr(module, name), name, factor, place))
        send = dist.batch_isend_irecv

        def metered_send(moves: list[Any]) -> Any:
            self.sent["ring"] += sum(move.tensor.nbytes for move in moves if move.op is dist.isend)
            return send(moves)

        monkeypatch.setattr(dist, "batch_isend_irecv", metered_send)

    def _metered(self, call: Any, name: str, factor: float, place: int) -> Any:
        def metered(*args: Any, **options: Any) -> Any:
            # One number is the value of a loss or its parameters, not a quantity that grows.
            if args[place].numel() > 2:
                self.sent[name] += factor * args[place].nbytes  # type: ignore[assignment]
            return call(*args, **options)

        return metered


SPEC, BATCH = "oblique(16,8)", 64


def bytes_on_a_rank(peers: Peers) -> dict[str, dict[str, float]]:
    """Of the loss, gathered and in a ring, and of the gradients of a step."""
    found = {}
    topology, own = parse_topology(SPEC), BATCH // peers.world
    for way in ("gathered", "ring"):
        with pytest.MonkeyPatch.context() as patch:
            meter, peers.ring = Meter(peers.world, patch), way == "ring"
            x, y = (topology.project(torch.randn(own, 8, 16)).requires_grad_() for _ in range(2))
            info_nce(x, y, topology, 1.0, peers=peers).backward()
            found[way] = dict(meter.sent)
    peers.ring = False
    model = create_model(model_config("tiny", "oblique"))
    towers = distributed.parallel(model, peers)
    with pytest.MonkeyPatch.context() as patch:
        meter = Meter(peers.world, patch)
        train_step(model, *batch(model, 32, own), None, "info_nce", "float32", towers=towers)
        found["step"] = dict(meter.sent)
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_traffic_is_what_goes_over_the_wire(world: int, tmp_path: Path) -> None:
    """To the byte: of the loss, and of the gradients of all parameters but the one that is sent alone."""
    gathered, ring = (planned(topology=SPEC, batch_size=BATCH, ranks=world, ring=way) for way in (False, True))
    for rank in run_ranks(world, bytes_on_a_rank, tmp_path):
        assert rank["gathered"] == {
            "_gather_into": gathered["traffic: captions gathered"],
            "_scatter_sum_into": gathered["traffic: their gradient"],
            "all_reduce": gathered["traffic: column sums"],
        }
        assert rank["ring"] == {
            "ring": ring["traffic: captions in the ring"] + ring["traffic: their gradient in the ring"],
            "all_reduce": ring["traffic: column sums"],
        }
        gradients = gathered["traffic: gradients"] - 2 * (world - 1) / world * 4
        assert rank["step"]["all_reduce"] - gathered["traffic: column sums"] == pytest.approx(gradients, abs=1e-3)


def test_parts_of_weights_are_held_and_sent_by_their_share() -> None:
    settings = {"batch_size": 4096, "precision": "float32", "ranks": 8}
    whole, parts = planned(**settings), planned(**settings, fsdp=True)
    for what in ("weights", "gradients", "moments"):
        assert parts[f"memory: {what}"] == whole[f"memory: {what}"] / 8
    assert parts["traffic: gradients"] == whole["traffic: gradients"] / 2


def test_a_process_alone_sends_nothing() -> None:
    assert planned(batch_size=64)["traffic: sum"] == 0


def test_memory_of_the_loss_stays_with_more_ranks_in_a_ring_and_does_not_gathered() -> None:
    """At a fixed number of pairs a rank."""
    few, many = ({"batch_size": 1024 * ranks, "ranks": ranks} for ranks in (64, 1024))
    ring = [planned(**sizes, ring=True)["memory: loss"] for sizes in (few, many)]
    gathered = [planned(**sizes)["memory: loss"] for sizes in (few, many)]
    points = 2 * 1024 * (1024 - 64) * 128 * 4
    assert gathered[1] - gathered[0] > points > 50 * (ring[1] - ring[0])


def test_the_command_prints_and_writes_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    args = ["--size", "tiny", "--batch-size", "4096", "--ranks", "4", "--micro-batch", "64"]
    assert main(["bench", "--plan", *args, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert {line["what"]: line["value"] for line in report["plan"]} == planned(batch_size=4096, ranks=4, micro_batch=64)
    assert "2,377,089" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"size": "huge"}, "unknown size"),
        ({"batch_size": 4, "ranks": 8}, "without a pair"),
        ({"ranks": 0}, "--ranks must lie"),
        ({"caption_tokens": 1000}, "--caption-tokens must lie"),
    ],
)
def test_a_step_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(**settings)
