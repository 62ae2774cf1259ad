"""The loop of a training run: one step behind another, what is logged, judged and saved along the way."""

from __future__ import annotations

import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .checkpoint import BEST, LAST, Loaded, save_model
from .config import TrainConfig, to_json
from .data.batches import Batch, TrainingData, prefetch
from .data.faults import refuse_bad, refuse_shards
from .data.images import Augmentation, Preprocess, TrainingPixels
from .device import send, versions
from .distill import SoftTargets, Teacher
from .distributed import whole
from .errors import UserError
from .evaluate.encode import evaluating
from .evaluate.tasks import HeldOut, validation_score
from .health import (
    SAMPLE,
    BadSteps,
    Signs,
    by_chance,
    by_guess,
    clamped,
    collapsed,
    point_names,
    settle_points,
    spheres,
)
from .logs import BAD_STEPS, AnyLog
from .model import DualEncoder
from .optim import Optimizer
from .peers import Peers, everyone_says
from .progress import COUNTS, Come, progress_bar
from .signals import Signals, Stopped, watched
from .state import State, reseed, save
from .step import Towers, train_step

VALIDATIONS = 10
# Numbers of a similarity matrix that logging holds at once: as many as a tile of the loss on the CPU.
HELD = 2**20
# By itself a run takes a state as often as that costs no more than this share of its time, but not more often than so
# many seconds apart.
SAVING_SHARE = 0.02
SAVING_SECONDS = 30.0
# Seconds that processes wait for the disk of the first one, or for the first batch of each.
PATIENCE = 3600.0
# Samples that the share of lost ones is judged by before an epoch is through.
ENOUGH = 1000


@dataclass
class Parts:
    """What a run is made of."""

    config: TrainConfig
    loaded: Loaded
    towers: Towers
    optimizer: Optimizer
    data: TrainingData
    fingerprint: dict[str, Any]
    """Of the data."""
    held_out: HeldOut | None
    teacher: Teacher | None
    peers: Peers
    steps: int


class Loop:
    """A run from where it stands to its last step.

    Raises (from `run`):
        Stopped: when a signal asked for it, with the state saved.
        UserError: when too many steps in a row were not finite, or too many samples were lost.
    """

    def __init__(self, parts: Parts, come: Come, average: dict[str, Tensor] | None = None) -> None:
        """`average` are the weights of the average where a run goes on with one."""
        self.parts, self.come, self.config = parts, come, parts.config
        self.model, self.points = parts.loaded.model, point_names(parts.loaded.model)
        self.average = _average(self.model, self.config.optim.ema, average)
        self.bad = BadSteps(self.config.optim.max_bad_steps, come.bad_steps, come.bad_row)
        # Statistics of batch norms, which a forward pass moves.
        self._statistics = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        self._since = time.perf_counter()
        self._next_state = come.position.step + (self.config.save_every or 1)

    @property
    def judged(self) -> Loaded:
        """What is validated and saved as the model: the average of the weights where there is one."""
        if self.average is None:
            return self.parts.loaded
        model: Any = self.average.module
        settle_points(model, self.points, "the average of the weights")
        return self.parts.loaded._replace(model=model)

    def rate(self) -> float:
        """Pairs a second of all processes, waiting for data included; validation is left out."""
        return self.come.images / max(self.come.busy, 1e-9)

    def run(self, log: AnyLog, quiet: bool) -> None:
        steps = self.parts.steps
        with watched() as signals, progress_bar(steps, str(self.config.out), quiet) as show:
            self._count_time(training=False)
            for batch in self._batches():
                self._one(batch, log, show)
                if number := self._asked_to_stop(signals):
                    self._stop(number, log)
                if batch.step + 1 == steps:
                    break
        if not self.come.best:
            self._save(BEST)

    def _batches(self) -> Iterator[Batch]:
        if self.come.position.step >= self.parts.steps:
            return
        batches = self.parts.data.batches(self.come.position)
        if self.parts.peers.device.type == "cuda":
            batches = map(Batch.pinned, batches)
        for number, batch in enumerate(prefetch(batches)):
            if number == 0:
                # To find its place in shards may take one process much longer than another.
                self.parts.peers.barrier(PATIENCE)
            yield batch

    def _one(self, batch: Batch, log: AnyLog, show: Callable[..., None]) -> None:
        done, optim, come, peers = batch.step + 1, self.config.optim, self.come, self.parts.peers
        # Layers that draw do so alike whenever this step is taken.
        reseed(self.config.seed, batch.step, peers.rank)
        before = [buffer.clone() for buffer in self._statistics]
        soft = self._soft_targets(batch)
        loss, image_points, text_points = train_step(
            self.model,
            self._pixels(batch, self.parts.loaded.preprocess),
            batch.ids,
            send(batch.groups, peers.device) if self.config.loss.positives == "caption" else None,
            self.config.loss.loss,
            optim.precision,
            optim.micro_batch,
            soft,
            self.parts.towers,
            self.config.loss.nested,
        )
        logged = done % self.config.log_every == 0 or done in (1, self.parts.steps)
        lr, apart = self.parts.optimizer.lr, {}
        if logged and soft is not None:
            with torch.no_grad():
                apart = {"divergence": soft.divergence(image_points, text_points).item()}
        bad = self.parts.optimizer.step(loss)
        self.bad.watch(done, batch.keys, bad)
        for buffer, old in zip(self._statistics, before, strict=True):
            buffer.copy_(buffer if bad is None else torch.where(bad, old, buffer))
        self.model.temperature.update(done / self.parts.steps)
        if self.average is not None and not (bad is not None and bad):
            self.average.update_parameters(self.model)
        self._note(batch)
        if logged or peers.device.type == "cpu":
            self._settle(log)
        if logged:
            come.last = {"loss": loss.item(), "scale": self.model.temperature.scale.item(), "lr": lr, **apart}
            come.last |= similarity_figures(self.model, image_points, text_points)
            self._look(image_points, text_points, log)
        self._count_time(training=True)
        if logged:
            log({"step": done, **come.last, "images_per_second": self.rate(), "seconds": come.busy})
        show(done, come.last, self.rate())
        every = self.config.eval_every or max(1, self.parts.steps // VALIDATIONS)
        if done % every == 0 or done == self.parts.steps:
            self._validate(done, log)
            self._count_time(training=False)
        if done >= self._next_state or done == self.parts.steps:
            self._settle(log)
            # Within a row of bad steps the last good state stays the one to go on from.
            if not self.bad.row or done == self.parts.steps:
                self._keep_state(log)

    def _note(self, batch: Batch) -> None:
        """Count a batch, and stop where too many samples were lost on the way to it."""
        come = self.come
        if batch.next.epoch != come.epoch:
            self._judge_samples(whole=True)
            come.epoch, come.read, come.missing = batch.next.epoch, 0, 0
        come.position = batch.next
        come.images += len(batch.squares) * self.parts.peers.world
        come.read += len(batch.squares)
        come.used += len(batch.squares)
        come.missing += batch.missing
        come.gone += batch.missing
        come.lost.update(batch.failed)
        # Of a later epoch that has only begun, a few samples say nothing.
        self._judge_samples(whole=come.epoch == 0 and batch.step + 1 == self.parts.steps)

    def _judge_samples(self, whole: bool) -> None:
        """Stop where too many samples of this epoch were lost; of few, as soon as it is known as a `whole`.

        Each process judges what it has read itself. The few of small data are judged together, at the end.
        """
        come = self.come
        if come.missing and (come.read + come.missing >= ENOUGH or (whole and self.parts.peers.world == 1)):
            lost = come.lost if come.epoch == 0 else Counter({f"lost in epoch {come.epoch + 1}": come.missing})
            self.refuse_bad(lost, come.read)
        if come.lost and whole and self.parts.data.shards:
            data = self.config.data
            refuse_shards(come.lost, self.parts.data.shards, data.max_bad_fraction, data.data)

    def refuse_bad(self, lost: Counter[str], read: int) -> None:
        """Stop where these samples are more than `--max-bad-fraction` allows."""
        data = self.config.data
        refuse_bad(lost, read, data.max_bad_fraction, data.data)

    def _settle(self, log: AnyLog) -> None:
        """Find out which of the last steps were not finite; they have moved nothing."""
        for step, keys in self.bad.settle():
            every = [key for own in everyone_says(self.parts.peers, list(keys)) for key in own]
            log.note(BAD_STEPS, {"step": step, "keys": every})
        self.come.bad_steps, self.come.bad_row = self.bad.count, self.bad.row
        if row := self.bad.exhausted:
            raise UserError(
                f"the loss or its gradient was not finite in {len(row)} steps in a row, from step {row[0]}: the run "
                f"diverged. --resume {self.config.out} comes to them again (their samples: {BAD_STEPS}); --override lr "
                "with a lower --lr, or other data, may not"
            )

    def _look(self, image_points: Tensor, text_points: Tensor, log: AnyLog) -> None:
        """Say aloud what looks wrong in a logged step."""
        come, topology = self.come, self.model.topology
        images, texts = image_points[:SAMPLE], text_points[:SAMPLE]
        maximum = getattr(self.model.temperature, "maximum", math.inf)
        come.clamped = come.clamped + self.config.log_every if come.last["scale"] >= 0.999 * maximum else 0
        self._warn(spheres(images, topology), log)
        self._warn(collapsed(topology.similarity(images, texts), topology), log)
        self._warn(clamped(come.clamped, self.parts.steps, maximum), log)
        if come.position.step == self.parts.steps and self.config.loss.loss == "info_nce":
            self._warn(by_guess(come.last["loss"], self.config.optim.batch_size), log)

    def _warn(self, signs: Signs, log: AnyLog) -> None:
        for kind, warning in signs.items():
            if kind not in self.come.warnings:
                self.come.warnings[kind] = warning
                log.warn(self.come.position.step, warning)

    def _soft_targets(self, batch: Batch) -> SoftTargets | None:
        """What the teacher says of a batch in the student's own view of it, at the teacher's size."""
        if self.parts.teacher is None:
            return None
        optim, images = self.config.optim, self._pixels(batch, self.parts.teacher.loaded.preprocess)
        return self.parts.teacher.targets(self.model, images, batch.ids, optim.precision, optim.micro_batch)

    def _pixels(self, batch: Batch, preprocess: Preprocess) -> TrainingPixels:
        """As a model wants them; one batch and step give every model the same crops and colours."""
        peers, count = self.parts.peers, self.config.optim.batch_size
        if not self.config.data.augment:
            return TrainingPixels(batch.squares, preprocess, peers.device)
        seed = int(np.random.default_rng((self.config.seed, 3, batch.step)).integers(2**62))
        # Of the batch of all processes as it was planned: a picture is seen alike whoever reads it, and whatever else
        # could not be read.
        draws = Augmentation.draw(count, seed)
        own = draws[: len(batch.squares)] if batch.places is None else draws[list(batch.places)]
        return TrainingPixels(batch.squares, preprocess, peers.device, own)

    def _validate(self, step: int, log: AnyLog) -> None:
        held_out = self.parts.held_out
        score = None if held_out is None else validation_score(self.judged, held_out)
        # Every process judges, as sharded towers want it; so that all go on alike, the first one's figures count.
        score = self.parts.peers.from_first(score)
        self._save(LAST)
        if score is None:
            return
        log({"step": step, **{f"val_{name}": value for name, value in score.items()}})
        headline = next(iter(score))
        if not self.come.best or score[headline] > self.come.best[headline]:
            self.come.best = {"step": step, **score}
            self._save(BEST)
        if step == self.parts.steps and held_out is not None:
            names = {record.concept for record in held_out.splits.val.records}
            self._warn(by_chance(score[headline], len(names)), log)

    def _save(self, name: str) -> None:
        place, first = self.config.out / "checkpoints" / name, self.parts.peers.rank == 0
        step = self.come.position.step
        save_model(self.judged.model, self.config.model, place, self.config.data, write=first, step=step)
        self.parts.peers.barrier(PATIENCE)

    def _keep_state(self, log: AnyLog) -> None:
        """Save a state, and decide which step the next one is due behind, the same on every process."""
        began, peers, come = time.perf_counter(), self.parts.peers, self.come
        come.drift = max(come.drift, settle_points(self.model, self.points, f"step {come.position.step}"))
        state = self._state()
        if peers.rank == 0:
            # What was logged before this moment is not logged again behind it.
            log.sync()
            save(state, self.config.out / "checkpoints", self.config.keep)
        peers.barrier(PATIENCE)
        now = time.perf_counter()
        come.busy += now - self._since
        self._since = now
        due = self.config.save_every or steps_between(now - began, come.busy / max(come.position.step, 1))
        self._next_state = come.position.step + peers.from_first(due)

    def _state(self) -> State:
        peers, come = self.parts.peers, self.come
        optimizer = self.parts.optimizer.state_dict()
        weights = {name: whole(value).cpu() for name, value in self.model.state_dict().items()}
        average = {} if self.average is None else self.average.module.state_dict()
        groups = {"model": weights, "average": average, "moments": optimizer["moments"]}
        counts = {name: getattr(come, name) for name in COUNTS}
        own = {"position": come.position, "lost": come.lost, **counts}
        facts = {
            "step": come.position.step,
            "each": everyone_says(peers, own),
            "come": come.facts(),
            "data": self.parts.fingerprint,
            "config": to_json(self.config),
            "versions": versions(),
        }
        tensors = {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
        return State(tensors, facts)

    def _asked_to_stop(self, signals: Signals) -> int:
        """The number of a signal that has come to any process; 0 for none."""
        return max(self.parts.peers.sizes(signals.number))

    def _stop(self, number: int, log: AnyLog) -> None:
        self._settle(log)
        self._keep_state(log)
        name, step = signal.Signals(number).name, self.come.position.step
        raise Stopped(
            number,
            f"stopped by {name} behind step {step:,} of {self.parts.steps:,}, all saved; go on with: "
            f"oblique-clip train --resume {self.config.out}",
        )

    def _count_time(self, training: bool) -> None:
        """Add the time since the last call to that of training, waiting for data included, or leave it out."""
        now = time.perf_counter()
        self.come.busy += (now - self._since) * training
        self._since = now


def steps_between(cost: float, a_step: float) -> int:
    """How many steps of so many seconds there are between two states, of which each takes `cost` seconds.

    Examples:
        >>> from oblique_clip.loop import steps_between
        >>> steps_between(cost=0.1, a_step=0.5), steps_between(cost=6.0, a_step=0.5)  # 30 s, and 2 % of 300 s
        (60, 600)
    """
    return max(1, math.ceil(max(SAVING_SECONDS, cost / SAVING_SHARE) / a_step))


def _average(model: DualEncoder, decay: float, weights: dict[str, Tensor] | None) -> AveragedModel | None:
    """A running average of the weights, which begins at those of the model; None without a decay."""
    if not decay:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    if weights is not None:
        average.module.load_state_dict(weights)
        average.n_averaged += 1
    return average


def similarity_figures(model: DualEncoder, image_points: Tensor, text_points: Tensor) -> dict[str, float]:
    """Mean similarity of pairs and of all others in a batch, and the margin between the two.

    Of a batch of fewer than two pairs there is nothing to say.

    Examples:
        >>> import torch
        >>> from oblique_clip import load
        >>> from oblique_clip.loop import similarity_figures
        >>> model = load("tiny-oblique").model
        >>> points = model.topology.project(torch.eye(128)[:2].view(2, 8, 16))
        >>> similarity_figures(model, points, points)
        {'positive': 8.0, 'negative': 7.0, 'margin': 1.0}
    """
    count, pairs, everything = len(image_points), image_points.new_zeros(()), image_points.new_zeros(())
    if count < 2:
        return {}
    with evaluating(model):
        rows = max(1, HELD // (count * model.topology.held_a_pair))
        for start in range(0, count, rows):
            similarity = model.topology.similarity(image_points[start : start + rows], text_points)
            pairs = pairs + similarity.diagonal(start).sum()
            everything = everything + similarity.sum()
        others = (everything - pairs) / (count * (count - 1))
        pairs = pairs / count
    return {"positive": pairs.item(), "negative": others.item(), "margin": (pairs - others).item()}
