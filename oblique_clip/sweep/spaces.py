"""How the embedding spaces of arms differ: the diagnostics of `explore.summarise` over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from .results import Results
from .statistics import Interval, paired, t_interval


@dataclass(frozen=True)
class SpaceFigure:
    """A figure of `explore.summarise`; of a list, one number for each sphere, the mean."""

    title: str
    key: str

    def values(self, results: Results, arm: str) -> dict[int, float]:
        """Of each finished run that has it, by seed."""
        found = {seed: run.judged.get("space", {}).get(self.key) for seed, run in results.runs(arm).items()}
        return {seed: _mean(value) for seed, value in found.items() if value is not None}


FIGURES = (
    SpaceFigure("equilibrium gap, share of the range", "equilibrium_gap"),
    SpaceFigure("alignment", "alignment"),
    SpaceFigure("uniformity, pictures", "uniformity_images"),
    SpaceFigure("uniformity, names", "uniformity_texts"),
    SpaceFigure("modality gap", "modality_gap"),
    SpaceFigure("shared neighbours of pictures and names", "overlap"),
    SpaceFigure("hubness of names, skew", "hubness_texts"),
    SpaceFigure("CKA of pictures and names", "cka"),
    SpaceFigure("effective rank of 512, pictures", "effective_rank_images"),
    SpaceFigure("effective rank of 512, names", "effective_rank_texts"),
    SpaceFigure("intrinsic dimension (MLE), pictures", "mle_images"),
    SpaceFigure("intrinsic dimension (MLE), names", "mle_texts"),
    SpaceFigure("intrinsic dimension (TwoNN), pictures", "twonn_images"),
    SpaceFigure("intrinsic dimension (TwoNN), names", "twonn_texts"),
    SpaceFigure("persistence entropy of loops, pictures (nats)", "entropy_h1_images"),
    SpaceFigure("persistence entropy of loops, names (nats)", "entropy_h1_texts"),
    SpaceFigure("bottleneck of loops, pictures to names", "bottleneck_h1"),
    SpaceFigure("CKA between spheres, pictures", "sphere_cka_images"),
    SpaceFigure("CKA between spheres, names", "sphere_cka_texts"),
    SpaceFigure("effective rank of a sphere, pictures", "sphere_effective_rank_images"),
    SpaceFigure("top-1 of one sphere alone", "sphere_top1"),
    SpaceFigure("a sphere's choice is that of all", "sphere_agreement"),
    SpaceFigure("dead spheres, pictures", "dead_spheres_images"),
    SpaceFigure("duplicate spheres, pictures", "duplicate_spheres_images"),
)
"""What a table of spaces has, where an arm has it. Lengths are in the units of each figure's function in `explore`."""


def rows_of(results: Results, arms: Sequence[str]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Headings, and a row a figure: mean and half of its 95 % interval for each arm that has a finished run.

    Of two arms, how far the second is above the first, paired by seed, follows.
    """
    begun = [arm for arm in arms if results.runs(arm)]
    rows = []
    for figure in FIGURES:
        every = [figure.values(results, arm) for arm in begun]
        if any(every):
            ends = [_difference(*every)] if len(begun) == 2 else []
            rows.append((figure.title, *map(_cell, every), *ends))
    headings = ("figure", *begun, *([f"{begun[1]} above {begun[0]}"] if len(begun) == 2 else []))
    return headings, tuple(rows) if begun else ()


def _cell(values: Mapping[int, float]) -> str:
    if not values:
        return "-"
    found = t_interval(list(values.values()))
    return f"{found.mean:.3g}" + (f" ± {found.half:.2g}" if math.isfinite(found.half) else "")


def _difference(first: Mapping[int, float], second: Mapping[int, float]) -> str:
    return _ends(paired(second, first)) if first.keys() & second.keys() else "-"


def _ends(found: Interval) -> str:
    return f"{found.mean:+.3g}" + (f" [{found.low:+.3g}, {found.high:+.3g}]" if math.isfinite(found.half) else "")


def _mean(value: float | list[float]) -> float:
    return fmean(value) if isinstance(value, list) else value
