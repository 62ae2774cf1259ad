"""Shards of all that may be trained on of the larger set: what the runs of the questions are judged by is left out.

    python -m experiments.data.build --raw RAW --out ALL
    python -m experiments.scale.larger --all ALL --out SHARDS/larger

Left out are the families that are kept for validation and test, all of OpenMoji, art4apps and tuxpaint, every concept
of the test split, every caption that is the name of one, and, as in the shipped set, variants of skin tone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.shards import ShardWriter, read_samples
from experiments.data.sources import SOURCES
from oblique_clip.cli import run_script
from oblique_clip.config import DataConfig, write_json
from oblique_clip.data.batches import caption_group
from oblique_clip.data.splits import split_emoji
from oblique_clip.errors import UserError
from oblique_clip.evaluate.judge import BUILT
from oblique_clip.questions.base import SPHERE

PREFIX, PER_SHARD = "larger", 4000


@dataclass(frozen=True)
class Larger:
    """The larger set without what runs are judged by, shuffled, as WebDataset shards."""

    all: Path
    """Folder that experiments/data has built."""
    out: Path
    """Folder for the shards."""
    seed: int = 0
    """Of the order of the pairs."""


class Filter:
    """Why a record may not be trained on; None where it may."""

    def __init__(self, data: DataConfig) -> None:
        built = {SOURCES[source].family for source in BUILT}
        self.families = {*data.test_families, *data.val_families, *built}
        self.splits = data.held_out_concepts
        held = split_emoji(data).concepts.records
        self.names = {caption_group(text) for record in held for text in (record.concept, record.caption)}

    def __call__(self, record: dict[str, Any]) -> str | None:
        if record["family"] in self.families:
            return "held-out family"
        said = {caption_group(record["caption"]), caption_group(record["concept"])}
        if record["split"] in self.splits or said & self.names:
            return "held-out concept"
        return "skin tone" if record["skin"] else None


def kept(folder: Path, refused: Filter, left_out: Counter[str], by_source: Counter[str]) -> Iterator[dict[str, bytes]]:
    """Samples that may be trained on; both counters are added to."""
    for source in SOURCES:
        for sample in read_samples(folder, source):
            cause = refused(json.loads(sample["json"]))
            if cause:
                left_out[cause] += 1
            else:
                by_source[source] += 1
                yield sample


def main(command: Larger) -> None:
    """Read, filter, shuffle, write."""
    left_out, by_source = Counter[str](), Counter[str]()
    samples = list(kept(command.all, Filter(SPHERE.data), left_out, by_source))
    if not samples:
        raise UserError(f"{command.all} has no shards of experiments/data with anything to train on")
    command.out.mkdir(parents=True, exist_ok=True)
    with ShardWriter(command.out, PREFIX, PER_SHARD) as writer:
        for row in np.random.default_rng(command.seed).permutation(len(samples)):
            writer.write(samples[row])
    facts = {"pairs": len(samples), "left_out": dict(left_out), "sources": dict(by_source)}
    write_json(command.out / "stats.json", facts)
    print(f"{len(samples)} pairs in {-(-len(samples) // PER_SHARD)} shards; left out: {dict(left_out)}")


if __name__ == "__main__":
    run_script(main, Larger, "python -m experiments.scale.larger")
