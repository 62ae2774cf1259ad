"""Going on with a run: what may be another than before, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .config import TrainConfig
from .data.order import Position
from .errors import UserError
from .peers import Peers

# Settings that decide no number, but for the order of sums: where and how a run computes, and what it says of itself.
FREE = ("out", "device", "threads", "fsdp", "ring", "compile", "workers", "log", "log_every", "save_every", "keep",
        "max_bad_fraction")  # fmt: skip
# Settings that decide which samples make which batch.
ORDER = ("data", "batch_size", "seed", "twins", "caption_noise", "captions", "train_families", "train_share",
         "test_families", "val_families", "held_out_concepts", "image_column", "caption_column",
         "image_root")  # fmt: skip


def differences(one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name and both values of each setting, in a dataclass and in those within it, that is not the same.

    Examples:
        >>> from oblique_clip.config import OptimConfig, TrainConfig
        >>> from oblique_clip.resume import differences
        >>> list(differences(TrainConfig(), TrainConfig(optim=OptimConfig(batch_size=64), seed=1)))
        [('batch_size', 128, 64), ('seed', 0, 1)]
    """
    for part in dataclasses.fields(one):
        before, after = getattr(one, part.name), getattr(other, part.name)
        if dataclasses.is_dataclass(before) and dataclasses.is_dataclass(after):
            yield from differences(before, after)
        elif before != after:
            yield part.name, before, after


def check_same(before: TrainConfig, after: TrainConfig, override: Sequence[str], run: Path) -> None:
    """Refuse to go on with settings that decide other numbers than a run began with, unless `override` names them.

    Raises:
        UserError: with both values of each; or for a name in `override` that is no setting.

    Examples:
        >>> from pathlib import Path
        >>> from oblique_clip.config import OptimConfig, TrainConfig
        >>> from oblique_clip.resume import check_same
        >>> other = TrainConfig(optim=OptimConfig(batch_size=64), threads=1)
        >>> check_same(TrainConfig(), other, ["batch_size"], Path("runs/mine"))
        >>> check_same(TrainConfig(), other, [], Path("runs/mine"))
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: --resume runs/mine: batch_size was 128 and is 64 now; leave it out, or change it
        on purpose with --override batch_size
    """
    names = {name.replace("-", "_") for name in override}
    if unknown := sorted(names - set(_settings(before))):
        raise UserError(f"--override {unknown[0]}: there is no such setting")
    found = [change for change in differences(before, after) if change[0] not in {*FREE, *names}]
    if found:
        said = ", ".join(f"{name} was {old} and is {new} now" for name, old, new in found)
        raise UserError(
            f"--resume {run}: {said}; leave {'it' if len(found) == 1 else 'them'} out, or change "
            f"{'it' if len(found) == 1 else 'them'} on purpose with --override {' '.join(name for name, _, _ in found)}"
        )


def _settings(config: Any) -> Iterator[str]:
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        if dataclasses.is_dataclass(value):
            yield from _settings(value)
        else:
            yield part.name


def place_to_go_on(
    facts: dict[str, Any], fingerprint: dict[str, Any], peers: Peers, *, stream: bool = False, fresh: bool = False
) -> Position:
    """Where this process goes on in the data.

    Every process of a table or of the shipped set is at the same place, whatever their number. Of shards each has a
    place of its own: where there are more or fewer processes than before, the epoch begins anew.

    Args:
        facts: those of a `State`, as `train` saves them.
        fingerprint: of the data as it is now.
        stream: whether the data are shards.
        fresh: whether settings that decide the order of samples have been changed on purpose; a new epoch then begins.

    Raises:
        UserError: where the data are others than before, and not on purpose.

    Examples:
        >>> from oblique_clip.peers import ALONE
        >>> from oblique_clip.resume import place_to_go_on
        >>> facts = {"step": 9, "each": [{"position": [0, 9, 9]}], "data": {"pairs": 640}}
        >>> place_to_go_on(facts, {"pairs": 640}, ALONE)
        Position(epoch=0, batch=9, step=9)
        >>> place_to_go_on(facts, {"pairs": 640}, ALONE, fresh=True)
        Position(epoch=1, batch=0, step=9)
    """
    positions = [Position(*one["position"]) for one in facts["each"]]
    if fresh:
        return Position(max(position.epoch for position in positions) + 1, 0, int(facts["step"]))
    if facts["data"] != fingerprint:
        raise UserError(
            f"the data are not those that the run began with: {facts['data']} then, {fingerprint} now; "
            "go on with those, or with these on purpose by --override data"
        )
    if not stream:
        return positions[0]
    if len(positions) == peers.world:
        return positions[peers.rank]
    return Position(max(position.epoch for position in positions), 0, int(facts["step"]))
