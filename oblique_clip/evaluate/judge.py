"""Everything that a finished run of the shipped set is judged by, each picture encoded once."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.emoji import SIDE, EmojiSet, Record
from ..data.faults import Lost
from ..data.images import decode_square
from ..data.shards import read_records
from ..errors import UserError
from ..explore import summarise
from ..topology import Topology
from .tasks import Case, Encoded, HeldOut, emoji_parts, pixel_ranks, report_of, retrieved, validation_of
from .zeroshot import rank_figures

if TYPE_CHECKING:
    from ..checkpoint import Loaded

# Sources of experiments/data that do not ship, and of which no family is trained on.
BUILT = ("openmoji", "art4apps", "tuxpaint")


def judge(loaded: Loaded, held_out: HeldOut, built: Path | None = None) -> dict[str, Any]:
    """Every evaluation of a model on what its training left out.

    Args:
        built: folder of shards made by experiments/data; what it has of `BUILT` is judged too.

    Returns:
        `evaluation`, as `evaluate_emoji` gives it; `validation`; `built`, for each source its zero-shot figures among
        its own names, with calibration, and recall; `right`, for each of these how many pictures of each class, in the
        order of names, are classified right, and of how many; `sizes`, top-1 under the first so many numbers; `space`,
        the diagnostics of `explore.summarise`.

    Raises:
        UserError: for a folder without shards of these sources.

    Examples:
        >>> from oblique_clip import load
        >>> from oblique_clip.checkpoint import data_of
        >>> from oblique_clip.config import DataConfig
        >>> from oblique_clip.evaluate.judge import judge
        >>> from oblique_clip.evaluate.tasks import HeldOut
        >>> judged = judge(load("tiny-oblique"), HeldOut(DataConfig()))
        >>> sum(judged["right"]["concepts"]["right"]) / judged["evaluation"]["concepts"]["images"] > 0.2
        True
        >>> judged["sizes"]["128"]["concepts"] == judged["evaluation"]["concepts"]["top1"]
        True
    """
    encoded = Encoded(loaded, held_out)
    cases = {"family": encoded.test, "concepts": encoded.concepts}
    evaluation = report_of(encoded)
    sizes = {
        str(size): {name: case.cut(size).figures()["top1"] for name, case in cases.items()}
        for size in prefix_sizes(loaded.model.topology)
    }
    known = {record.concept for record in held_out.splits.train.records}
    figures: dict[str, Any] = {}
    for source, emoji in (read_built(built) if built else {}).items():
        case = cases[source] = encoded.case(emoji)
        figures[source] = {
            **encoded.calibrated(case),
            "images": len(emoji),
            "classes": len(case.classifier),
            "parts": {part: case.figures(keep) for part, keep in emoji_parts(emoji, known).items() if keep.any()},
            "retrieval": retrieved(loaded, case.points, emoji),
        }
        if source == "openmoji":
            ranks = pixel_ranks(emoji, held_out.splits.train)
            figures[source]["pixel_floor"] = rank_figures(ranks, case.labels, len(case.classifier))
    return {
        "evaluation": evaluation,
        "validation": validation_of(encoded),
        "built": figures,
        "right": {name: case.right() for name, case in cases.items()},
        "sizes": sizes,
        "space": space_of(encoded.test),
    }


def space_of(case: Case) -> dict[str, Any]:
    """How pictures and names lie: see `explore.summarise`; loops are looked for where ripser is installed."""
    points, labels, classifier, topology = case
    return summarise(points, classifier, topology, labels, homology=find_spec("ripser") is not None)


def prefix_sizes(topology: Topology) -> list[int]:
    """Sizes that an embedding can be cut to: the whole, and halves of it down to 1/16; none where it cannot be cut."""
    sizes = [topology.embed_dim // 2**i for i in reversed(range(5))]
    found = []
    for size in sizes:
        try:
            topology.prefix(size)
        except UserError:
            continue
        found.append(size)
    return found


@lru_cache(maxsize=1)
def read_built(folder: Path) -> dict[str, EmojiSet]:
    """Pictures of `BUILT` in a folder of shards, without variants of skin tone.

    Raises:
        UserError: for a folder with shards of none of them, or pictures of another size than the shipped set's.
    """
    found = {}
    for source in BUILT:
        urls = [str(path) for path in sorted(folder.glob(f"{source}-[0-9]*.tar"))]
        if urls:
            found[source] = _read_source(source, urls)
    if not found:
        raise UserError(f"{folder} has no shards of {', '.join(BUILT)}; see experiments/data/README.md")
    return found


def _read_source(source: str, urls: list[str]) -> EmojiSet:
    lost = Lost()
    records, pictures = [], []
    for sample in read_records(urls, lost):
        facts = json.loads(sample["json"])
        if not facts["skin"]:
            texts = (facts["caption"], tuple(facts["keywords"]), facts["group"], facts["subgroup"])
            records.append(Record(source, *texts))
            pictures.append(decode_square(sample["png"], SIDE).permute(1, 2, 0).numpy())
    if lost:
        raise UserError(f"{urls[0]}: {dict(lost)}; build it again")
    return EmojiSet(tuple(records), np.stack(pictures), np.arange(len(records)))
