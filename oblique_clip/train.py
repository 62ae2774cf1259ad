"""One step, one loop: from a configuration to a run folder.

A run folder holds config.json, metrics.jsonl (a line every `log_every` steps), the files of other loggers, checkpoints/
and, once finished, result.json.
"""

from __future__ import annotations

import errno
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .checkpoint import BEST, LAST, Loaded, load, save_model
from .config import DataConfig, OptimConfig, TrainConfig, check_ranges, to_json, write_json
from .data.batches import MapBatches, TrainingData
from .data.order import Share
from .data.sources import open_training_data
from .device import forget_peak_memory, peak_memory_mib, versions
from .distill import open_teacher, refuse_seen
from .distributed import joined, parallel
from .errors import UserError
from .evaluate.calibration import FITTED
from .evaluate.tasks import HeldOut, calibration_scales, evaluate_emoji
from .logs import Log, Silent, loggers_of
from .loop import Loop, Parts
from .model import create_model, preprocess_of, tokenizer_of
from .optim import Optimizer
from .peers import Peers, everyone_says
from .progress import Come
from .resume import ORDER, place_to_go_on
from .start import start_weights
from .state import State, newest

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


def train(
    config: TrainConfig, quiet: bool = False, resume: bool = False, override: Sequence[str] = ()
) -> dict[str, Any]:
    """Run a configuration to its end and return what result.json says.

    Under torchrun every process runs it, the batch is shared among them, and the first one writes and returns the
    result; the others return {}.

    Args:
        resume: go on with the run in `config.out`, as if it had never stopped; see `resume.check_same`.
        override: settings that are others than the run began with, on purpose.

    Raises:
        UserError: for a configuration that cannot be run, before anything is written; on a full disk; where a run
            diverges, or its data are worse than it bears.
        Stopped: when SIGINT or SIGTERM ended it in good order.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip import classify, model_config
        >>> from oblique_clip.config import DataConfig, OptimConfig, TrainConfig
        >>> from oblique_clip.train import train
        >>> folder = Path(tempfile.mkdtemp())
        >>> with (folder / "pairs.csv").open("w") as table:
        ...     print("image,caption", file=table)
        ...     for colour in ("red", "green", "blue", "white"):
        ...         Image.new("RGB", (32, 32), colour).save(folder / f"{colour}.png")
        ...         print(f"{colour}.png,a {colour} square", file=table)
        >>> config = TrainConfig(
        ...     model=model_config("tiny", "oblique"),
        ...     data=DataConfig(data=str(folder / "pairs.csv"), augment=False),
        ...     optim=OptimConfig(steps=20, batch_size=4),
        ...     out=folder / "run",
        ...     device="cpu",
        ...     log="",
        ... )
        >>> result = train(config, quiet=True)
        >>> result["steps"], result["topology"], result["loss"] < 0.5
        (20, 'oblique(16,8)', True)
        >>> probabilities, names = classify(folder / "run", [folder / "red.png"], ["a blue square", "a red square"])
        >>> names
        ['a red square']
    """
    check_ranges(config)
    loggers_of(config.log)
    if config.threads:
        torch.set_num_threads(config.threads)
    with _told(config), joined(config.device, ring=config.optim.ring) as peers:
        began = time.perf_counter()
        loop = _prepare(config, peers, resume, override)
        config.out.mkdir(parents=True, exist_ok=True)
        # Before the folder says that a run has begun: a logger may refuse.
        with Log(config, loop.come.position.step) if peers.rank == 0 else Silent() as log:
            if peers.rank == 0:
                write_json(config.out / "config.json", to_json(config))
                _record_noise(config.out, config.data, loop.parts.data)
            loop.run(log, quiet or peers.rank > 0)
        lost = sum(map(Counter, everyone_says(peers, loop.come.lost)), Counter[str]())
        if lost:
            loop.refuse_bad(lost, sum(everyone_says(peers, loop.come.read)))
        trained, memory = time.perf_counter() - began, peak_memory_mib(peers.device)
    if peers.rank > 0:
        return {}
    result = {
        **_figures(loop),
        "train_seconds": round(trained, 2),
        "wall_seconds": round(time.perf_counter() - began, 2),
        "peak_memory_mib": memory,
        "skipped": dict(lost + loop.parts.data.left_out),
        "processes": peers.world,
        "command": " ".join(["oblique-clip", *sys.argv[1:]]),
    }
    write_json(config.out / "result.json", result)
    return result


def _prepare(config: TrainConfig, peers: Peers, resume: bool, override: Sequence[str]) -> Loop:
    """Everything that a run is made of, new or as a state on disk says; nothing is written."""
    tokenizer = tokenizer_of(config.model)
    # Before the seed is set: building the teacher draws weights.
    teacher = open_teacher(config.loss, config.data, tokenizer, peers.device)
    _check_many(config, peers)
    if config.start_from:
        refuse_seen("--start-from", config.start_from, config.data)
    # A larger teacher sees its pictures as they are.
    side = max(config.model.arch.image_size, int(teacher.loaded.preprocess.image_size) if teacher else 0)
    share = Share(peers.rank, peers.world)
    data = open_training_data(config.data, tokenizer, config.optim.batch_size, side, config.seed, share)
    steps = total_steps(config.optim, data)
    state = _state_to_go_on(config, resume)
    torch.manual_seed(config.seed)
    model = create_model(config.model, config.loss.loss, pretrained=config.start_from is None and state is None)
    model.to(peers.device)
    if state is not None:
        model.load_state_dict(state.group("model"))
    elif config.start_from:
        start_weights(model, config)
    model.set_grad_checkpointing(config.optim.grad_checkpointing)
    if config.optim.compile:
        model.visual.compile()
    held_out = HeldOut(config.data) if config.data.data == "emoji" else None
    forget_peak_memory(peers.device)
    # Before the optimiser: sharded towers have parameters of their own.
    towers = parallel(model, peers, config.optim.fsdp)
    optimizer = Optimizer(model, config.optim, steps)
    come, average = Come(), None
    if state is not None:
        come = _come_of(state, data, peers, fresh=not set(override).isdisjoint(ORDER))
        optimizer.load_state_dict({"steps": state.step, "moments": state.group("moments")})
        average = state.group("average") or None
    loaded = Loaded(model, preprocess_of(model), tokenizer)
    return Loop(Parts(config, loaded, towers, optimizer, data, held_out, teacher, peers, steps), come, average)


def _check_many(config: TrainConfig, peers: Peers) -> None:
    if config.optim.ema and config.optim.fsdp:
        raise UserError("--ema averages whole weights, and --fsdp cuts them into parts: take one of the two")
    if config.loss.distill_from and peers.world > 1:
        raise UserError(
            "--distill-from compares the pairs of one process: take one, with --micro-batch where memory ends"
        )


def _state_to_go_on(config: TrainConfig, resume: bool) -> State | None:
    """The newest intact state where a run is gone on with; None for one that begins.

    Raises:
        UserError: where the folder holds a run that is finished, or one that is not to be gone on with.
    """
    if (config.out / "result.json").exists():
        raise UserError(f"{config.out} holds a finished run; name another --out or remove it")
    if not resume:
        if (config.out / "config.json").exists():
            raise UserError(
                f"{config.out} holds a run that is not finished: go on with --resume {config.out}, or remove it"
            )
        return None
    state, damaged = newest(config.out / "checkpoints")
    for reason in damaged:
        print(f"oblique-clip: left alone: {reason}", file=sys.stderr)
    where = "its first step, as it has no intact state" if state is None else f"step {state.step:,}"
    print(f"oblique-clip: {config.out} goes on from {where}", file=sys.stderr)
    return state


def _come_of(state: State, data: TrainingData, peers: Peers, fresh: bool) -> Come:
    place = place_to_go_on(state.facts, data.fingerprint(), peers, stream=data.pairs is None, fresh=fresh)
    come = Come.of(state.facts["come"], place)
    each = state.facts["each"]
    if len(each) == peers.world:
        come.read, come.lost = each[peers.rank]["read"], Counter(each[peers.rank]["lost"])
    elif peers.rank == 0:
        come.read, come.lost = sum(one["read"] for one in each), sum((Counter(one["lost"]) for one in each), Counter())
    else:
        come.read, come.lost = 0, Counter()
    return come


def _figures(loop: Loop) -> dict[str, Any]:
    """What a finished run has come to, judged at its best checkpoint and at its last."""
    config, come, held_out, device = loop.config, loop.come, loop.parts.held_out, loop.parts.peers.device
    judged = {name: load(config.out / "checkpoints" / name, device) for name in (BEST, LAST)}
    if held_out:
        for name, loaded in judged.items():
            loaded.model.temperature.calibrated = calibration_scales(loaded, held_out).get(FITTED)
            save_model(loaded.model, config.model, config.out / "checkpoints" / name, config.data)
    return {
        "format_version": 1,
        "form": config.model.form,
        "topology": loop.model.topology.spec,
        "seed": config.seed,
        "steps": loop.parts.steps,
        "batch_size": config.optim.batch_size,
        "loss": come.last["loss"],
        "scale": come.last["scale"],
        "best": come.best,
        # Validation is noisy: beside the best checkpoint stands the last, which nothing chose.
        "evaluation": evaluate_emoji(judged[BEST], held_out) if held_out else {},
        "last_evaluation": evaluate_emoji(judged[LAST], held_out) if held_out else {},
        "parameters": sum(p.numel() for p in judged[LAST].model.parameters()),
        "images_per_second": round(loop.rate(), 1),
        "bad_steps": come.bad_steps,
        "warnings": list(come.warnings.values()),
        "resumed": come.resumed,
        "versions": versions(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


@contextmanager
def _told(config: TrainConfig) -> Iterator[None]:
    """Say in one line what a full disk, or a compiler that is not there, does to a run."""
    try:
        yield
    except torch._dynamo.exc.BackendCompilerFailed as error:
        raise UserError(f"--compile: torch cannot compile here ({str(error).splitlines()[0]}); leave it out") from error
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise UserError(
            f"cannot write {error.filename or config.out}: {error.strerror}; what was saved before is as it was: make "
            f"room, and go on with --resume {config.out}"
        ) from error


def total_steps(config: OptimConfig, data: TrainingData) -> int:
    """Optimiser steps of a run.

    Raises:
        UserError: for a stream of unknown length without `steps`, or a run of no steps.
    """
    if config.steps is None and data.pairs is None:
        raise UserError("shards are a stream of unknown length: say how long to train with --steps")
    steps = round(config.epochs * (data.pairs or 0) / config.batch_size) if config.steps is None else config.steps
    if steps < 1:
        raise UserError(f"this run has {steps} steps; give it more --epochs or --steps")
    return steps


def _record_noise(out: Path, config: DataConfig, data: TrainingData) -> None:
    """Which caption each training pair got, where captions were shuffled."""
    if config.caption_noise and isinstance(data, MapBatches):
        np.save(out / "caption_rows.npy", data.caption_rows)
