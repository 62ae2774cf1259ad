"""Every hyperparameter of the comparison, with where it is from; nothing of it was tuned here.

python -m experiments.gpu.settings    # these tables, for README.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from oblique_clip.config import Form

Value = int | float | str
Name = Literal["cc3m", "cc12m", "yfcc15m"]


@dataclass(frozen=True)
class Setting:
    """The value of a flag of `oblique-clip train`, and where it is from."""

    value: Value
    source: str
    guess: bool = False
    """Neither published for these models nor tried here."""


# SLIP is Mu et al. 2021 (arXiv 2112.12750) and its repository, facebookresearch/SLIP: its CLIP baselines are the ones
# published for these towers on all three sets.
COMMON: dict[str, Setting] = {
    "batch_size": Setting(4096, "SLIP, README"),
    "lr": Setting(5e-4, "SLIP, README: the same for S and B; open_clip's default for a ViT"),
    "weight_decay": Setting(0.5, "SLIP, README; open_clip's default is 0.2, its run on Conceptual Captions has 0.1"),
    "beta2": Setting(0.98, "SLIP, main.py; open_clip's default for a ViT"),
    "clip_grad": Setting(0.0, "SLIP and open_clip clip no gradient"),
    "precision": Setting("bf16", "SLIP trains in float16 with a scaler", guess=True),
    "loss": Setting("info_nce", "CLIP (Radford et al. 2021)"),
    "positives": Setting("index", "CLIP: a pair is the only positive of its row and column"),
    "twins": Setting("allow", "SLIP, open_clip: batches are drawn at random"),
    "temperature": Setting("learned", "CLIP, in every arm"),
    "image_size": Setting(224, "SLIP, models.py"),
    "embed_dim": Setting(512, "SLIP, models.py; clip-mtob: 16 x 32"),
    "tokenizer": Setting("clip", "SLIP, open_clip: 49,408 pieces of words"),
    "context_length": Setting(77, "SLIP, models.py"),
    "workers": Setting(16, "as many cores as a GPU of a common node has", guess=True),
}

MICRO_BATCH = Setting(512, "the largest share of a GPU that --plan finds room for in 80 GiB", guess=True)


@dataclass(frozen=True)
class DataSet:
    """What differs from one data set to another."""

    listed: int
    """Pairs in the published list; a download has fewer, and the steps of a run follow from those that it has."""
    list_source: str
    epochs: Setting
    published: str
    """Zero-shot top-1 on ImageNet of CLIP in SLIP's README, in %."""

    @property
    def warmup(self) -> Setting:
        return Setting(1 / float(self.epochs.value), "SLIP, main.py: the first epoch")


DATA: dict[Name, DataSet] = {
    "cc3m": DataSet(3_318_333, "Sharma et al. 2018", Setting(40, "SLIP, README, of its ViT-B"), "B: 17.1"),
    "cc12m": DataSet(12_423_374, "Changpinyo et al. 2021", Setting(35, "SLIP, README, of its ViT-B"), "B: 36.5"),
    "yfcc15m": DataSet(
        14_829_396, "openai/CLIP, data/yfcc100m.md", Setting(25, "SLIP, README"), "S: 32.7, B: 37.6"
    ),
}  # fmt: skip

SIZES = ("ViT-S-16", "ViT-B-16")
"""Of `oblique-clip train --size`: towers of open_clip's model_configs."""


@dataclass(frozen=True)
class Arm:
    """One of the forms that are compared."""

    form: Form
    topology: str
    projection: str | None
    what: str


ARMS: dict[str, Arm] = {
    "clip": Arm("clip", "sphere(512)", None, "open_clip's own towers"),
    "sphere": Arm("sphere", "sphere(512)", None, "our towers, one class token"),
    "oblique-shared": Arm(
        "oblique", "oblique(32,16)", "shared", "16 class tokens, one projection, as the official code"
    ),
    "oblique-per-token": Arm("oblique", "oblique(32,16)", "per_token", "16 class tokens, a projection each"),
}
PRIMARY = ("oblique-shared", "sphere")
"""The arm of the paper against its baseline, named before anything is trained; there is no validation part to choose
the other projection by."""
CONTRASTS = (PRIMARY, ("oblique-per-token", "sphere"), ("oblique-shared", "clip"), ("sphere", "clip"))
SEEDS = Setting(3, "experiments/method.md: three, of which the first of every arm is trained first", guess=True)

# What no flag sets, and is as it is in every run.
LIBRARY: dict[str, Setting] = {
    "optimiser": Setting("AdamW, beta1 0.9, eps 1e-6", "CLIP, open_clip; SLIP has 1e-8"),
    "decay exempts": Setting("tokens, positions, norms, biases, scale", "SLIP decays tokens and positions too"),
    "schedule": Setting("linear from 0, then a cosine to 0", "SLIP: from 1e-6 and to 1e-5"),
    "scale": Setting("starts at 1/0.07 on [-1, 1], at most 100", "CLIP; the same share of each topology's range"),
    "augmentation": Setting(
        "crop of 50 to 100 %, aspect to 1.2, rotation to 10 degrees, jitter 0.3", "SLIP: the crop, aspect to 4/3", True
    ),
    "crops are of": Setting("the middle square, at image_size", "SLIP crops the whole picture", True),
    "caption of YFCC15M": Setting("title or description, drawn once", "SLIP draws at every pass", True),
    "ViT-S text tower": Setting("384 wide, 6 heads", "open_clip; SLIP's is 512 wide, and its image tower has 12 heads"),
}

DRY: dict[str, Value] = {"batch_size": 4, "steps": 2, "workers": 1, "threads": 1, "log_every": 1}
"""What a dry run has in place of the table's."""


def settings_for(name: Name, pairs: int, gpus: int, changes: Mapping[str, Value]) -> dict[str, Value]:
    """The flags of `train` that all runs on a data set share, by their names; `changes` replace or add some."""
    common = {key: setting.value for key, setting in COMMON.items()} | dict(changes)
    epochs, batch = float(DATA[name].epochs.value), int(common["batch_size"])
    derived: dict[str, Value] = {"steps": steps_of(pairs, epochs, batch), "warmup": DATA[name].warmup.value}
    if -(-batch // gpus) > int(MICRO_BATCH.value):
        derived["micro_batch"] = MICRO_BATCH.value
    return {**common, **derived, **changes}


def steps_of(pairs: int, epochs: float, batch_size: int) -> int:
    """Optimiser steps of so many passes."""
    return max(1, round(epochs * pairs / batch_size))


def flags_of(size: str, arm: str, settings: Mapping[str, Value]) -> list[str]:
    """The model and its settings as flags of `oblique-clip train`."""
    own = ARMS[arm]
    model: dict[str, Value] = {"size": size, "form": own.form, "topology": own.topology}
    if own.projection is not None:
        model["projection"] = own.projection
    return [text for name, value in {**model, **settings}.items() for text in (_flag(name), f"{value}")]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def tables() -> Iterator[str]:
    """The tables of this file in Markdown."""
    sets = [
        (name, f"{own.listed:,}", own.list_source, f"{own.epochs.value}", own.epochs.source,
         f"{steps_of(own.listed, float(own.epochs.value), int(COMMON['batch_size'].value)):,}", own.published)
        for name, own in DATA.items()
    ]  # fmt: skip
    yield markdown(
        ("data set", "pairs listed", "by", "epochs", "by", "steps, had all been fetched", "SLIP's CLIP, top-1 %"), sets
    )
    rows = {**COMMON, "warmup": next(iter(DATA.values())).warmup, "micro_batch": MICRO_BATCH, "seeds": SEEDS}
    shown = {"warmup": "1 / epochs", "micro_batch": f"{MICRO_BATCH.value}, where a GPU's share is larger"}
    yield markdown(
        ("setting", "value", "from", "guess"),
        [(f"`{name}`", shown.get(name, f"{s.value}"), s.source, _guess(s)) for name, s in rows.items()],
    )
    yield markdown(
        ("no flag", "is", "from", "guess"), [(n, f"{s.value}", s.source, _guess(s)) for n, s in LIBRARY.items()]
    )


def _guess(setting: Setting) -> str:
    return "guess" if setting.guess else ""


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as in a README."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows))


if __name__ == "__main__":
    print(*tables(), sep="\n\n")
