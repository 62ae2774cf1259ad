"""Two tasks to learn from few pictures: what is shown, by which classes, and which pictures may serve as shots.

Both give points of one model, encoded once, and draw shots by seed. Shots are nested: those of k are among those of 2k.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oblique_clip.data.emoji import EmojiSet, Record, load_emoji
from oblique_clip.errors import UserError

SHOTS = (1, 2, 4, 8, 16)
# Validation shots a class beside k shots, as CoOp allows itself (Zhou et al. 2022, arXiv 2109.01134).
MOST_VALIDATION = 4
# A subgroup takes part with so many concepts: 16 for shots, 4 for validation and at least 4 for the test.
LEAST_CONCEPTS = SHOTS[-1] + MOST_VALIDATION + 4
PEOPLE = {"man", "woman", "men", "women", "person", "people"}

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """Rows of one seed: shots and validation shots of each class, in the order they are taken, and the test."""

    shots: Rows
    """(K, 16)."""
    validation: Rows
    """(K, 4)."""
    test: Rows
    """(N,), the same for every k."""

    def of(self, k: int) -> tuple[Rows, Rows]:
        """The first k shots and min(k, 4) validation shots of every class, each as one list."""
        return self.shots[:, :k].ravel(), self.validation[:, : min(k, MOST_VALIDATION)].ravel()


@dataclass(frozen=True)
class Task:
    """Pictures with labels in [0, K), and how shots are drawn from them."""

    name: str
    classes: list[str]
    """(K,) names as the text tower reads them."""
    squares: Tensor
    """uint8 (N, 3, H, H)."""
    labels: Tensor
    """(N,)."""
    pools: list[list[Rows]]
    """For each class its concepts, each with the rows of its pictures; a shot is one picture of a concept."""
    test: Rows | None
    """A fixed test, or None: all pictures of the concepts that were not drawn."""

    def batches(self, size: int = 256) -> Iterator[Tensor]:
        """The pictures, a part at a time."""
        for start in range(0, len(self.squares), size):
            yield self.squares[start : start + size]

    def draw(self, seed: int) -> Draw:
        """Shots, validation shots and test of a seed; no two of them show one concept."""
        random = np.random.default_rng(seed)
        drawn, rest = [], []
        for concepts in self.pools:
            order = random.permutation(len(concepts))
            chosen = order[: SHOTS[-1] + MOST_VALIDATION]
            drawn.append([random.choice(concepts[place]) for place in chosen])
            rest += [concepts[place] for place in order[len(chosen) :]] if self.test is None else []
        rows = np.array(drawn)
        return Draw(
            rows[:, : SHOTS[-1]], rows[:, SHOTS[-1] :], np.concatenate(rest) if self.test is None else self.test
        )


def base_concept(record: Record) -> str:
    """What a picture shows but for skin, hair and sex: variants of one emoji are one concept."""
    words = [word for word in record.concept.split(":")[0].split() if word not in PEOPLE]
    return " ".join(words) or "person"


def emoji_task(family: str = "emoji-fluent") -> Task:
    """Subgroups of the CLDR, such as `animal-mammal`, in a family of pictures that training never saw."""
    emoji = load_emoji().of_families((family,))
    size = Counter(subgroup for subgroup, _ in {(r.subgroup, base_concept(r)) for r in emoji.records})
    subgroups = sorted(name for name, count in size.items() if count >= LEAST_CONCEPTS)
    emoji = emoji.select(np.array([record.subgroup in subgroups for record in emoji.records]))
    names = [subgroup.replace("-", " ") for subgroup in subgroups]
    labels = torch.tensor([subgroups.index(record.subgroup) for record in emoji.records])
    pools = [_concepts(emoji, subgroup) for subgroup in subgroups]
    return Task("emoji subgroups", names, emoji.images(), labels, pools, None)


def _concepts(emoji: EmojiSet, subgroup: str) -> list[Rows]:
    rows: dict[str, list[int]] = {}
    for row, record in enumerate(emoji.records):
        if record.subgroup == subgroup:
            rows.setdefault(base_concept(record), []).append(row)
    return [np.array(rows[concept]) for concept in sorted(rows)]


FASHION = ["t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def fashion_task(folder: Path, pool: int = 500) -> Task:
    """Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747): shots from its training part, the test on its test part.

    Args:
        folder: with the four IDX files, as Debian's package `dataset-fashion-mnist` or, under `FashionMNIST/raw`,
            torchvision leaves them, compressed or not.
        pool: pictures a class that shots are drawn from, the first of the training part.

    Raises:
        UserError: where one of the files is missing.
    """
    pictures, labels = _idx(folder, "train-images-idx3-ubyte"), _idx(folder, "train-labels-idx1-ubyte")
    pools = [np.flatnonzero(labels == label)[:pool] for label in range(len(FASHION))]
    kept = np.concatenate(pools)
    test = _idx(folder, "t10k-images-idx3-ubyte")
    grey = torch.from_numpy(np.concatenate([pictures[kept], test]))
    every = torch.from_numpy(np.concatenate([labels[kept], _idx(folder, "t10k-labels-idx1-ubyte")])).long()
    places = np.arange(len(kept)).reshape(len(FASHION), pool, 1)
    squares = grey[:, None].expand(-1, 3, -1, -1)
    return Task(
        "Fashion-MNIST", FASHION, squares, every, [list(rows) for rows in places], np.arange(len(kept), len(grey))
    )


def _idx(folder: Path, name: str) -> npt.NDArray[np.uint8]:
    """The array of an IDX file of bytes: four bytes of type, four for each size, then the numbers."""
    found = next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)
    if found is None:
        raise UserError(f"{folder} has no {name} or {name}.gz, a file of Fashion-MNIST")
    raw = gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()
    sizes = np.frombuffer(raw, ">i4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)
