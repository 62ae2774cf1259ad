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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .checkpoint import BEST, LAST, Loaded, check_points, load, save_model, step_of
from .cli import command_line
from .config import (
    DataConfig,
    OptimConfig,
    TrainConfig,
    check_ranges,
    from_json,
    read_run_config,
    to_json,
    write_json,
)
from .data.batches import MapBatches, TrainingData
from .data.order import Position, Share
from .data.sources import open_training_data
from .device import forget_peak_memory, peak_memory_mib, versions
from .distill import open_teacher, refuse_seen
from .distributed import joined, parallel
from .errors import UserError
from .evaluate.calibration import FITTED
from .evaluate.tasks import HeldOut, calibration_scales, evaluate_emoji
from .logs import Log, Silent, loggers_of
from .loop import PATIENCE, Loop, Parts
from .model import DualEncoder, create_model, preprocess_of, tokenizer_of
from .optim import Optimizer
from .peers import Peers, everyone_says
from .progress import COUNTS, Come
from .resume import ORDER, check_same, differences, place_to_go_on
from .start import start_weights
from .state import State, at_step, clear, newest

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
    with _told(config):
        began = time.perf_counter()
        with joined(config.device, ring=config.optim.ring) as peers:
            loop = _prepare(config, peers, resume, override)
            peers.barrier(PATIENCE)
            lost = _run(loop, quiet)
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
            "command": command_line(),
        }
        write_json(config.out / "result.json", result)
        clear(config.out / "checkpoints")
    return result


def _run(loop: Loop, quiet: bool) -> Counter[str]:
    """Run a loop with its log, and give what was lost of the data by all processes, by cause."""
    config, peers, come = loop.config, loop.parts.peers, loop.come
    config.out.mkdir(parents=True, exist_ok=True)
    # Before the folder says that a run has begun: a logger may refuse.
    with Log(config, come.position.step) if peers.rank == 0 else Silent() as log:
        if peers.rank == 0:
            # Left by a process that was killed while it wrote.
            for unfinished in (config.out / "checkpoints").glob("*.part"):
                unfinished.unlink()
            write_json(config.out / "config.json", to_json(config))
            _record_noise(config.out, config.data, loop.parts.data)
        loop.run(log, quiet or peers.rank > 0)
    if peers.world > 1 and (gone := sum(everyone_says(peers, come.gone))):
        loop.refuse_bad(Counter({"lost in all": gone}), sum(everyone_says(peers, come.used)))
    return sum(map(Counter, everyone_says(peers, come.lost)), Counter[str]())


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
    state, fresh = _state_to_go_on(config, peers, resume, override)
    torch.manual_seed(config.seed)
    model = create_model(config.model, config.loss.loss, pretrained=config.start_from is None and state is None)
    model.to(peers.device)
    if state is not None:
        _load(model, state)
    elif config.start_from:
        start_weights(model, config)
    for size in config.loss.nested:
        model.topology.prefix(size)
    model.set_grad_checkpointing(config.optim.grad_checkpointing)
    if config.optim.compile:
        model.visual.compile()
    held_out = HeldOut(config.data) if config.data.data == "emoji" else None
    forget_peak_memory(peers.device)
    # Before the optimiser: sharded towers have parameters of their own.
    towers = parallel(model, peers, config.optim.fsdp)
    optimizer = Optimizer(model, config.optim, steps)
    come, average, fingerprint = Come(), None, data.fingerprint()
    if state is not None:
        place = place_to_go_on(state.facts, fingerprint, peers, stream=data.pairs is None, fresh=fresh)
        come = _come_of(state, place, peers)
        _forget_other_best(come, config)
        optimizer.load_state_dict({"steps": state.step, "moments": state.group("moments")})
        average = state.group("average") or None
    loaded = Loaded(model, preprocess_of(model), tokenizer)
    parts = Parts(config, loaded, towers, optimizer, data, fingerprint, held_out, teacher, peers, steps)
    return Loop(parts, come, average)


def _check_many(config: TrainConfig, peers: Peers) -> None:
    if config.optim.ema and config.optim.fsdp:
        raise UserError("--ema averages whole weights, and --fsdp cuts them into parts: take one of the two")
    if config.loss.distill_from and peers.world > 1:
        raise UserError(
            "--distill-from compares the pairs of one process: take one, with --micro-batch where memory ends"
        )


def _state_to_go_on(
    config: TrainConfig, peers: Peers, resume: bool, override: Sequence[str]
) -> tuple[State | None, bool]:
    """The newest intact state where a run is gone on with, None for one that begins, and whether an epoch begins anew.

    Raises:
        UserError: where the folder holds a run that is finished, or one that is not to be gone on with.
    """
    if peers.from_first((config.out / "result.json").exists()):
        raise UserError(f"{config.out} holds a finished run; name another --out or remove it")
    if not resume:
        if peers.from_first((config.out / "config.json").exists()):
            raise UserError(
                f"{config.out} holds a run that is not finished: go on with --resume {config.out}, or remove it"
            )
        return None, False
    state = _newest_of_first(config.out / "checkpoints", peers)
    if state is None:
        before, where = replace(read_run_config(config.out), out=config.out), "its first step, as it has no state yet"
    else:
        where = f"step {state.step:,}"
        before = from_json(TrainConfig, state.facts["config"], f"the state of {where}")
    check_same(before, config, override, config.out)
    if peers.rank == 0:
        print(f"oblique-clip: {config.out} goes on from {where}", file=sys.stderr)
    return state, state is not None and any(name in ORDER for name, _, _ in differences(before, config))


def _newest_of_first(folder: Path, peers: Peers) -> State | None:
    """What the first process finds to be newest, on all of them."""
    state, damaged = newest(folder) if peers.rank == 0 else (None, [])
    for reason in damaged:
        print(f"oblique-clip: left alone: {reason}", file=sys.stderr)
    if damaged and state is None:
        raise UserError(
            f"no state in {folder} can be read, and nothing was changed: mend that, or move it away to begin again"
        )
    step = peers.from_first(None if state is None else state.step)
    if peers.rank == 0 or step is None:
        return state
    return at_step(folder, step)


def _load(model: DualEncoder, state: State) -> None:
    try:
        model.load_state_dict(state.group("model"))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"the weights of step {state.step:,} do not fit the model that is asked for: {reason}"
        ) from error
    check_points(model, f"the state of step {state.step:,}")


def _come_of(state: State, place: Position, peers: Peers) -> Come:
    """What a state says of this process: its own counts where there are as many as before, else they begin anew."""
    come, each = Come.of(state.facts["come"], place), state.facts["each"]
    if len(each) == peers.world:
        own = each[peers.rank]
        come.lost = Counter(own["lost"])
        for name in COUNTS:
            setattr(come, name, own[name])
    else:
        # The first process keeps what all have lost, unless it is read again from the start.
        lost = sum((Counter(one["lost"]) for one in each), Counter[str]())
        come.lost = lost if peers.rank == 0 and (place.epoch or place.batch) else Counter()
        come.used = come.gone = 0
    if len(each) != peers.world or place.epoch != come.epoch:
        come.epoch, come.read, come.missing = place.epoch, 0, 0
    return come


def _forget_other_best(come: Come, config: TrainConfig) -> None:
    """A best checkpoint of a future that the run has turned from is none of this run."""
    path = config.out / "checkpoints" / BEST
    if come.best and (not path.exists() or step_of(path) != come.best["step"]):
        come.best = {}


def _figures(loop: Loop) -> dict[str, Any]:
    """What a finished run has come to, judged at its best checkpoint and at its last."""
    config, come, held_out, device = loop.config, loop.come, loop.parts.held_out, loop.parts.peers.device
    judged = {name: load(config.out / "checkpoints" / name, device) for name in (BEST, LAST)}
    if held_out:
        for name, loaded in judged.items():
            loaded.model.temperature.calibrated = calibration_scales(loaded, held_out).get(FITTED)
            path = config.out / "checkpoints" / name
            save_model(loaded.model, config.model, path, config.data, step=step_of(path))
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
        "evaluation": evaluate_emoji(judged[BEST], held_out) if held_out and config.test else {},
        "last_evaluation": evaluate_emoji(judged[LAST], held_out) if held_out and config.test else {},
        "parameters": sum(p.numel() for p in judged[LAST].model.parameters()),
        "images_per_second": round(loop.rate(), 1),
        "bad_steps": come.bad_steps,
        "warnings": list(come.warnings.values()),
        "drift": come.drift,
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
