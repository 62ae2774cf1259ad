"""One step, one loop: from a configuration to a run folder.

A run folder holds config.json, metrics.jsonl (a line every `log_every` steps), the files of other loggers, checkpoints/
and, once finished, result.json.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from .checkpoint import BEST, LAST, Loaded, load, save_model
from .config import DataConfig, OptimConfig, TrainConfig, check_ranges, to_json, write_json
from .data.batches import Batch, MapBatches, TrainingData, prefetch
from .data.images import Augmentation, Preprocess, TrainingPixels
from .data.sources import open_training_data
from .device import forget_peak_memory, keep_freed_memory, peak_memory_mib, pick_device, send, versions
from .distill import SoftTargets, Teacher, open_teacher, refuse_seen
from .errors import UserError
from .evaluate.calibration import FITTED
from .evaluate.encode import evaluating
from .evaluate.tasks import HeldOut, calibration_scales, evaluate_emoji, validation_score
from .logs import Log, loggers_of
from .model import DualEncoder, create_model, preprocess_of, tokenizer_of
from .optim import Optimizer
from .start import start_weights
from .step import train_step

VALIDATIONS = 10
# Rows of the similarity matrix that are held at once, so that logging takes less memory than the loss.
ROWS = 1024


def train(config: TrainConfig, quiet: bool = False) -> dict[str, Any]:
    """Run a configuration to its end and return what result.json says.

    Raises:
        UserError: for a configuration that cannot be run, before anything is written.

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
    device = pick_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    arch = config.model.arch
    tokenizer = tokenizer_of(config.model)
    # Before the seed is set: building the teacher draws weights.
    teacher = open_teacher(config.loss, config.data, tokenizer, device)
    if config.start_from:
        refuse_seen("--start-from", config.start_from, config.data)
    # Files are read large enough for both models.
    side = max(arch.image_size, 0 if teacher is None else teacher.loaded.preprocess.image_size)
    data = open_training_data(config.data, tokenizer, config.optim.batch_size, side, config.seed)
    steps = total_steps(config.optim, data)
    if (config.out / "result.json").exists():
        raise UserError(f"{config.out} holds a finished run; name another --out or remove it")
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    model = create_model(config.model, config.loss.loss).to(device)
    if config.start_from:
        start_weights(model, config)
    model.set_grad_checkpointing(config.optim.grad_checkpointing)
    if config.optim.compile:
        model.visual.compile()
    held_out = HeldOut(config.data) if config.data.data == "emoji" else None
    config.out.mkdir(parents=True, exist_ok=True)
    # Before the folder says that a run has begun: a logger may refuse.
    with Log(config) as log:
        write_json(config.out / "config.json", to_json(config))
        _record_noise(config.out, config.data, data)
        forget_peak_memory(device)
        optimizer = Optimizer(model, config.optim, steps)
        loaded = Loaded(model, preprocess_of(model), tokenizer)
        loop = _Loop(config, loaded, teacher, data, held_out, optimizer, steps, device)
        began = time.perf_counter()
        loop.run(log, quiet)
    trained, memory = time.perf_counter() - began, peak_memory_mib(device)
    best = load(config.out, device)
    if held_out:
        for name, judged in ((BEST, best), (LAST, loaded)):
            judged.model.temperature.calibrated = calibration_scales(judged, held_out).get(FITTED)
            save_model(judged.model, config.model, config.out / "checkpoints" / name, config.data)
    result = {
        "format_version": 1,
        "form": config.model.form,
        "topology": model.topology.spec,
        "seed": config.seed,
        "steps": steps,
        "batch_size": config.optim.batch_size,
        "loss": loop.last["loss"],
        "scale": loop.last["scale"],
        "best": loop.best,
        # Validation is noisy: beside the best checkpoint stands the last, which nothing chose.
        "evaluation": evaluate_emoji(best, held_out) if held_out else {},
        "last_evaluation": evaluate_emoji(loaded, held_out) if held_out else {},
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": round(trained, 2),
        "wall_seconds": round(time.perf_counter() - began, 2),
        "images_per_second": round(loop.rate(), 1),
        "peak_memory_mib": memory,
        "skipped": dict(data.skipped),
        "versions": versions(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "command": " ".join(["oblique-clip", *sys.argv[1:]]),
    }
    write_json(config.out / "result.json", result)
    return result


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


@dataclass
class _Loop:
    """The state of a running loop."""

    config: TrainConfig
    loaded: Loaded
    teacher: Teacher | None
    data: TrainingData
    held_out: HeldOut | None
    optimizer: Optimizer
    steps: int
    device: torch.device
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    _busy: float = 0.0
    _images: int = 0

    def rate(self) -> float:
        """Pairs a second, of training alone."""
        return self._images / max(self._busy, 1e-9)

    def run(self, log: Log, quiet: bool) -> None:
        with _progress_bar(self.steps, str(self.config.out), quiet) as show:
            batches = self.data.batches()
            if self.device.type == "cuda":
                batches = map(Batch.pinned, batches)
            for batch in prefetch(batches):
                self._one(batch, log, show)
                if batch.step + 1 == self.steps:
                    break
        self._save(LAST)
        if not self.best:
            self._save(BEST)

    def _one(self, batch: Batch, log: Log, show: Callable[..., None]) -> None:
        began = time.perf_counter()
        done, model, optim = batch.step + 1, self.loaded.model, self.config.optim
        soft = self._soft_targets(batch)
        loss, image_points, text_points = train_step(
            model,
            self._pixels(batch, self.loaded.preprocess),
            batch.ids,
            send(batch.groups, self.device) if self.config.loss.positives == "caption" else None,
            self.config.loss.loss,
            optim.precision,
            optim.micro_batch,
            soft,
        )
        logged = done % self.config.log_every == 0 or done in (1, self.steps)
        lr, apart = self.optimizer.lr, {}
        if logged and soft is not None:
            with torch.no_grad():
                apart = {"divergence": soft.divergence(image_points, text_points).item()}
        self.optimizer.step()
        model.temperature.update(done / self.steps)
        self._images += len(batch.squares)
        if logged:
            self.last = {"loss": loss.item(), "scale": model.temperature.scale.item(), "lr": lr, **apart}
            if not math.isfinite(self.last["loss"]):
                raise UserError(f"the loss is {self.last['loss']} at step {done}: the run diverged; try a lower --lr")
            self.last |= similarity_figures(model, image_points, text_points)
        self._busy += time.perf_counter() - began
        if logged:
            log({"step": done, **self.last, "images_per_second": self.rate(), "seconds": self._busy})
        show(done, self.last, self.rate())
        every = self.config.eval_every or max(1, self.steps // VALIDATIONS)
        if done % every == 0 or done == self.steps:
            self._validate(done, log)

    def _soft_targets(self, batch: Batch) -> SoftTargets | None:
        """What the teacher says of a batch in the student's own view of it, at the teacher's size."""
        if self.teacher is None:
            return None
        optim, images = self.config.optim, self._pixels(batch, self.teacher.loaded.preprocess)
        return self.teacher.targets(self.loaded.model, images, batch.ids, optim.precision, optim.micro_batch)

    def _pixels(self, batch: Batch, preprocess: Preprocess) -> TrainingPixels:
        """As a model wants them; one batch and step give every model the same crops and colours."""
        if not self.config.data.augment:
            return TrainingPixels(batch.squares, preprocess, self.device)
        seed = int(np.random.default_rng((self.config.seed, 3, batch.step)).integers(2**62))
        return TrainingPixels(batch.squares, preprocess, self.device, Augmentation.draw(len(batch.squares), seed))

    def _validate(self, step: int, log: Log) -> None:
        score = None if self.held_out is None else validation_score(self.loaded, self.held_out)
        self._save(LAST)
        if score is None:
            return
        log({"step": step, **{f"val_{name}": value for name, value in score.items()}})
        headline = next(iter(score))
        if not self.best or score[headline] > self.best[headline]:
            self.best = {"step": step, **score}
            self._save(BEST)

    def _save(self, name: str) -> None:
        save_model(self.loaded.model, self.config.model, self.config.out / "checkpoints" / name, self.config.data)


def similarity_figures(model: DualEncoder, image_points: Tensor, text_points: Tensor) -> dict[str, float]:
    """Mean similarity of pairs and of all others in a batch, and the margin between the two."""
    count, pairs, everything = len(image_points), image_points.new_zeros(()), image_points.new_zeros(())
    with evaluating(model):
        for start in range(0, count, ROWS):
            similarity = model.topology.similarity(image_points[start : start + ROWS], text_points)
            pairs = pairs + similarity.diagonal(start).sum()
            everything = everything + similarity.sum()
        others = (everything - pairs) / (count * (count - 1))
        pairs = pairs / count
    return {"positive": pairs.item(), "negative": others.item(), "margin": (pairs - others).item()}


@contextmanager
def _progress_bar(steps: int, title: str, quiet: bool) -> Iterator[Callable[..., None]]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  scale {task.fields[scale]:.2f}  {task.fields[rate]:.0f} img/s"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, disable=quiet) as progress:
        task = progress.add_task(title, total=steps, loss=float("nan"), scale=float("nan"), rate=0.0)

        def show(done: int, figures: dict[str, float], rate: float) -> None:
            progress.update(task, completed=done, loss=figures["loss"], scale=figures["scale"], rate=rate)

        yield show


def _record_noise(out: Path, config: DataConfig, data: TrainingData) -> None:
    """Which caption each training pair got, where captions were shuffled."""
    if config.caption_noise and isinstance(data, MapBatches):
        np.save(out / "caption_rows.npy", data.caption_rows)
