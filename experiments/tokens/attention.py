"""Do class tokens look at different patches? Overlap of their attention, for finished runs or checkpoints.

    python -m experiments.tokens.attention runs/a/seed-0 runs/b/seed-0

On pictures of the test families that each run left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import tyro

from oblique_clip import load
from oblique_clip.attention import token_attention, token_overlap
from oblique_clip.checkpoint import data_of
from oblique_clip.cli import run_script
from oblique_clip.errors import UserError
from oblique_clip.evaluate.tasks import HeldOut
from oblique_clip.explore.points import sample_rows

PICTURES = 1000


@dataclass(frozen=True)
class Overlap:
    """How much of the same patches two class tokens look at, on average over pairs of them."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders, checkpoints or shipped models, with two class tokens or more."""


def overlap(source: str) -> tuple[float, float]:
    """Mean over pairs of tokens, and the largest of a pair, in [0, 1].

    Raises:
        UserError: for a model with one class token.
    """
    loaded, test = load(source), HeldOut(data_of(source)).splits.test
    rows = sample_rows(len(test), PICTURES, seed=0)
    maps = token_attention(loaded.model, loaded.preprocess.batch(test.images(rows.numpy())))
    tokens = maps.shape[1]
    if tokens < 2:
        raise UserError(f"{source} has one class token, which overlaps with none")
    found = token_overlap(maps)[~torch.eye(tokens, dtype=torch.bool)]
    return float(found.mean()), float(found.max())


def main(command: Overlap) -> None:
    """Print a line a model."""
    for source in command.models:
        mean, most = overlap(source)
        print(f"{source}: mean {mean:.3f}, most alike pair {most:.3f}")


if __name__ == "__main__":
    run_script(main, Overlap, "python -m experiments.tokens.attention")
