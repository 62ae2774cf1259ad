"""What a run's model makes of the pictures of the test families: points, and how similar each is to each name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import BEST, LAST, load
from ..config import read_run_config
from ..data.emoji import EmojiSet
from ..data.splits import split_emoji
from ..evaluate.encode import encode_images, encode_texts
from ..evaluate.tasks import concept_labels
from ..topology import Topology

CHUNK = 256


@dataclass(frozen=True)
class Seen:
    """The pictures of the test families and their names, as points of one model.

    Examples:
        >>> import numpy as np, torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.data.emoji import load_emoji
        >>> from oblique_clip.page.family import Seen
        >>> test = load_emoji().select(np.arange(16150) < 2)  # "1st place medal" and "2nd place medal"
        >>> topology = parse_topology("sphere(2)")
        >>> points = topology.project(torch.tensor([[[2.0, 1.0]], [[3.0, 1.0]]]))
        >>> seen = Seen(test, topology, points, topology.project(torch.eye(2)[:, None]))
        >>> seen.names, seen.predicted.tolist(), seen.right.tolist()
        (['1st place medal', '2nd place medal'], [0, 0], [True, False])
    """

    test: EmojiSet
    topology: Topology
    points: Tensor
    """(N, *point_shape), of the pictures."""
    texts: Tensor
    """(K, *point_shape), of the names in alphabetical order."""

    @cached_property
    def names(self) -> list[str]:
        return concept_labels(self.test)[0]

    @cached_property
    def labels(self) -> Tensor:
        """Place (N,) of each picture's own name."""
        return concept_labels(self.test)[1]

    @cached_property
    def similarity(self) -> Tensor:
        """Of each picture with each name, (N, K)."""
        with torch.no_grad():
            return torch.cat([self.topology.similarity(part, self.texts) for part in self.points.split(CHUNK)])

    @cached_property
    def own(self) -> Tensor:
        """Similarity (N,) of each picture with its own name."""
        return self.similarity.gather(1, self.labels[:, None])[:, 0]

    @cached_property
    def predicted(self) -> Tensor:
        """Place (N,) of the name most similar to each picture."""
        return self.similarity.argmax(1)

    @cached_property
    def right(self) -> Tensor:
        return self.predicted == self.labels


def has_model(run: Path) -> bool:
    """Whether a run folder holds a checkpoint; where results alone are kept, it does not."""
    return any((run / "checkpoints" / name).is_file() for name in (BEST, LAST))


def look(run: Path, device: str | torch.device = "cpu") -> Seen | str:
    """Show a run's model its test families; where there is nothing to show, a sentence says why.

    Raises:
        UserError: for a damaged checkpoint.
    """
    data = read_run_config(run).data
    if data.data != "emoji":
        return "was trained on other data than the shipped set"
    test = split_emoji(data).test
    if not len(test):
        return "left no family of the shipped set out of training"
    if not has_model(run):
        return "is without a checkpoint"
    loaded = load(run, device)
    batches = (test.images(np.arange(start, min(start + CHUNK, len(test)))) for start in range(0, len(test), CHUNK))
    points = encode_images(loaded.model, batches, loaded.preprocess)
    texts = encode_texts(loaded.model, loaded.tokenizer, concept_labels(test)[0])
    if not (points.isfinite().all() and texts.isfinite().all()):
        return "has diverged: its points are no numbers"
    return Seen(test, loaded.model.topology.cpu(), points, texts)
