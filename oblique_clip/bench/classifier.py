"""Zero-shot classifier of ImageNet's names and OpenAI's templates, against open_clip's and CLIP_benchmark's."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import torch
from torch import Tensor

from ..evaluate.zeroshot import build_classifier
from ..interop.open_clip import from_open_clip
from ..tokenizer import get_tokenizer
from .measure import BenchConfig, Row, Task, faster, interleaved
from .step import CONTEXT, open_clip_model

Builder = Callable[[list[str]], Tensor]

PART = 25
"""Names of the usual run; a full one takes all 1,000."""
TOLERANCE = 1e-5
"""Relative difference (Frobenius) up to which two classifiers are the same."""


def rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """Seconds of each library's classifier on one text tower; the notes say how far their weights are apart."""
    import open_clip

    every: list[str] = open_clip.IMAGENET_CLASSNAMES
    names = every if config.full else every[:: len(every) // PART]
    builders = builders_of(device)
    weights: dict[str, Tensor] = {}

    def task(name: str) -> Task:
        def build() -> None:
            weights[name] = builders[name](names)

        return build

    # A few names warm each of them up: the full size takes the peers minutes, and runs once.
    for build in builders.values():
        build(every[:3])
    rounds = 1 if config.full else config.rounds
    runs = interleaved({name: task(name) for name in builders}, rounds, device, warmup=0)
    what = f"classifier, {len(names):,} names x {len(open_clip.OPENAI_IMAGENET_TEMPLATES)} templates"
    return [_row(what, runs, peer, weights, ">= 5" if config.full else "") for peer in builders if peer != "ours"]


def builders_of(device: torch.device) -> dict[str, Builder]:
    """Class names to weights (512, K), of each library installed here; one text tower for all."""
    import open_clip

    peer, tokenizer = open_clip_model().to(device).eval(), get_tokenizer("clip", CONTEXT)
    model = from_open_clip(peer).to(device).eval()
    templates = open_clip.OPENAI_IMAGENET_TEMPLATES
    builders: dict[str, Builder] = {
        "ours": lambda names: build_classifier(model, tokenizer, names, templates).flatten(1).T,
        "open_clip": lambda names: open_clip.build_zero_shot_classifier(
            peer, tokenizer, names, templates, device=device
        ).cpu(),
    }
    try:
        from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier
    except ImportError:
        print("  CLIP_benchmark is left out: pip install clip_benchmark")
        return builders
    texts = [template("{c}") for template in templates]

    def clip_benchmarks(names: list[str]) -> Tensor:
        # Its progress bar is no part of the table; its autocast would give other weights.
        with contextlib.redirect_stderr(io.StringIO()):
            return zero_shot_classifier(peer, tokenizer, names, texts, str(device), amp=False).cpu()

    return {**builders, "CLIP_benchmark": clip_benchmarks}


def _row(what: str, runs: dict[str, list[float]], peer: str, weights: dict[str, Tensor], aim: str) -> Row:
    ours, theirs = (weights[name].double() for name in ("ours", peer))
    difference = float((ours - theirs).norm() / theirs.norm())
    once = "; one run" if len(runs[peer]) == 1 else ""
    note = f"weights differ from {peer}'s by {difference:.1e} (aim {TOLERANCE:.0e}){once}"
    return faster("classifier", what, runs, peer, aim, note, difference <= TOLERANCE)
