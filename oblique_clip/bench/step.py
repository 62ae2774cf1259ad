"""A training step against open_clip's own: the same weights, pictures and captions, the same losses.

Everything of the reference is open_clip's: `CLIP` of 64 px, patch 8, width 192, 6 layers and 3 heads a tower, embedding
512, context 77; `ClipLoss`; torch's AdamW as its trainer calls it. Ours starts from the same weights
(`from_open_clip`) and takes the step that `train` takes, but for augmentation and clipping, which open_clip's has not.
Each rival lives in a process of its own; ours keeps freed memory there, as `oblique-clip train` does
(`keep_freed_memory`), and some rows give open_clip the same.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import DataConfig, ModelConfig, OptimConfig, model_config
from ..data.batches import Batch
from ..data.sources import open_training_data
from ..device import keep_freed_memory, multiplies_bf16
from ..interop.open_clip import from_open_clip
from ..model import DualEncoder, create_model, preprocess_of
from ..optim import Optimizer, decay_groups
from ..step import train_step
from ..tokenizer import PAD_ID, get_tokenizer
from .measure import BenchConfig, Rival, Row, faster, race

Captions = Literal["name", "keywords", "full"]
"""Names; names with keywords; and the same said again until the context is full, so that there is nothing to cut."""
Step = Callable[[], Tensor]

BATCH = 128
CONTEXT = 77
STEPS = 20
LR = 5e-4
SAME = 1e-4
"""Largest difference between losses of the same step."""
WEIGHT_DECAY = 0.1
# Nobody's schedule: so long that the rate stays what it is.
ENDLESS = 10**9


def rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """All rows of the suite; minutes on two cores."""
    return [
        *_in_float32(device),
        *_in_bfloat16(config.rounds, device),
        *_on_long_captions("keywords", config.rounds, device),
        *_on_long_captions("full", config.rounds, device),
        *_of_tokens(config.rounds, device),
    ]


class Pairs:
    """The first batches of the shipped pairs, on the CPU; captions are cut to the longest of their batch."""

    def __init__(self, captions: Captions) -> None:
        data = DataConfig(captions="name" if captions == "name" else "keywords", augment=False)
        source = open_training_data(data, get_tokenizer("clip", CONTEXT), BATCH, 64, seed=0)
        self.batches: list[Batch] = list(itertools.islice(source.batches(), STEPS))
        if captions == "full":
            self.batches = [replace(batch, ids=_filled(batch.ids)) for batch in self.batches]
        lengths = torch.cat([(batch.ids != PAD_ID).sum(1) for batch in self.batches]).double()
        self.mean, self.longest = lengths.mean().item(), int(lengths.max())
        self.cut = statistics.mean(batch.ids.shape[1] for batch in self.batches)

    def forever(self) -> Iterator[Batch]:
        return itertools.cycle(self.batches)


def _filled(ids: Tensor) -> Tensor:
    """Captions (B, L) whose words come again and again until the end token stands last, (B, CONTEXT)."""
    words = ids.argmax(1, keepdim=True) - 1  # between the start token and the end token, the largest number
    places = 1 + (torch.arange(CONTEXT) - 1) % words
    filled = ids.gather(1, places)
    filled[:, 0], filled[:, -1] = ids[:, 0], ids.amax(1)
    return filled


@lru_cache
def shipped(captions: Captions) -> Pairs:
    return Pairs(captions)


def open_clip_model(context: int = CONTEXT) -> Any:
    """The reference with weights of seed 0; a shorter context has the first positions of the full one."""
    from open_clip.model import CLIP

    torch.manual_seed(0)
    vision = {"image_size": 64, "patch_size": 8, "width": 192, "layers": 6, "head_width": 64}
    text = {"vocab_size": 49408, "width": 192, "heads": 3, "layers": 6}
    full = CLIP(512, vision, {**text, "context_length": CONTEXT})
    if context == CONTEXT:
        return full
    short = CLIP(512, vision, {**text, "context_length": context})
    weights = full.state_dict()
    weights["positional_embedding"] = weights["positional_embedding"][:context]
    short.load_state_dict(weights)
    return short


def their_step(
    device: torch.device, captions: Captions = "name", precision: str = "float32", context: int = CONTEXT, *,
    keep: bool = False,
) -> Step:  # fmt: skip
    """A step of open_clip's, on pictures that are ready and captions padded to its context."""
    from open_clip.loss import ClipLoss

    if keep:
        keep_freed_memory()
    preprocess = preprocess_of(from_open_clip(open_clip_model()))
    model, loss_function = open_clip_model(context).to(device).train(), ClipLoss()
    # Positions are not decayed, as ours are not; by open_clip's trainer they would be, and the losses drift apart.
    groups = decay_groups(model.named_parameters(), WEIGHT_DECAY)
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), eps=1e-6)
    inputs = itertools.cycle(
        [
            (preprocess.batch(batch.squares).to(device), _padded(batch.ids, context).to(device))
            for batch in shipped(captions).batches
        ]
    )

    def step() -> Tensor:
        images, ids = next(inputs)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            image_features, text_features, scale = model(images, ids)
            loss: Tensor = loss_function(image_features, text_features, scale)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return loss.detach()

    return step


def their_step_keeping_memory(
    device: torch.device, captions: Captions = "name", precision: str = "float32", context: int = CONTEXT
) -> Step:
    """The same in a process that keeps freed memory, as ours does."""
    return their_step(device, captions, precision, context, keep=True)


def _padded(ids: Tensor, context: int) -> Tensor:
    return F.pad(ids, (0, context - ids.shape[1]), value=PAD_ID)


def same_step(device: torch.device, captions: Captions = "name", precision: str = "float32") -> Step:
    """Our step on open_clip's model and weights."""
    return our_step(device, from_open_clip(open_clip_model()), captions, precision)


def preset_step(device: torch.device, preset: ModelConfig, compiled: bool = False) -> Step:
    """Our step on a preset of ours."""
    torch.manual_seed(0)
    model = create_model(preset)
    if compiled:
        # Without what an earlier run has left: the first step is the whole warm-up.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
        model.visual.compile()
    return our_step(device, model)


def our_step(device: torch.device, model: DualEncoder, captions: Captions = "name", precision: str = "float32") -> Step:
    """A step of `train`, from uint8 pictures and cut captions."""
    keep_freed_memory()
    model.to(device).train()
    optimizer = Optimizer(model, OptimConfig(lr=LR, warmup=0, weight_decay=WEIGHT_DECAY, clip_grad=0), ENDLESS)
    preprocess, batches = preprocess_of(model), shipped(captions).forever()

    def step() -> Tensor:
        batch = next(batches)
        images = preprocess.batch(batch.squares.to(device))
        loss, _, _ = train_step(model, images, batch.ids.to(device), None, "info_nce", precision)
        optimizer.step()
        model.temperature.update(0.0)
        return loss

    return step


def _in_float32(device: torch.device) -> list[Row]:
    longest = shipped("name").longest
    rivals = {
        "ours": Rival(same_step, (device,)),
        "open_clip": Rival(their_step, (device,)),
        "open_clip, keeping memory": Rival(their_step_keeping_memory, (device,)),
        f"open_clip, cut to {longest}": Rival(their_step, (device, "name", "float32", longest)),
        f"open_clip, cut to {longest}, keeping memory": Rival(
            their_step_keeping_memory, (device, "name", "float32", longest)
        ),
    }
    runs, losses = race(rivals, STEPS, device, warmup=0)
    return _against("float32", "name", runs, losses, ("", ">= 2.5", ">= 2.5", ">= 1.2", ">= 1.2"))


def _against(
    what: str, captions: Captions, runs: dict[str, list[float]], losses: dict[str, list[float]], aims: Sequence[str]
) -> list[Row]:
    """A row for each peer, none of which reaches its aim where the losses are not `SAME`."""
    pairs, own = shipped(captions), losses["ours"]
    apart = max(abs(a - b) for other in losses.values() for a, b in zip(own, other, strict=True))
    note = (
        f"losses of {len(own)} steps, from {own[0]:.3f} to {own[-1]:.3f}, apart by at most {apart:.1e} "
        f"(aim {SAME:.0e}); captions of {pairs.mean:.1f} tokens, the longest {pairs.longest}"
    )
    return [
        faster("step", what, runs, name, aim, note if name == "open_clip" else "", apart <= SAME)
        for name, aim in zip(runs, aims, strict=True)
        if name != "ours"
    ]


def _in_bfloat16(rounds: int, device: torch.device) -> list[Row]:
    longest = shipped("name").longest
    rivals = {
        "ours": Rival(same_step, (device, "name", "bf16")),
        "open_clip in float32": Rival(their_step, (device,)),
        "open_clip in float32, keeping memory": Rival(their_step_keeping_memory, (device,)),
        "open_clip in bf16": Rival(their_step, (device, "name", "bf16")),
        "open_clip in bf16, keeping memory": Rival(their_step_keeping_memory, (device, "name", "bf16")),
        f"open_clip in bf16, cut to {longest}": Rival(their_step, (device, "name", "bf16", longest)),
        f"open_clip in bf16, cut to {longest}, keeping memory": Rival(
            their_step_keeping_memory, (device, "name", "bf16", longest)
        ),
    }
    runs, losses = race(rivals, rounds, device, warmup=2)
    apart = max(abs(a - b) for a, b in zip(losses["ours"], losses["open_clip in float32"], strict=True))
    note = f"losses of steps 3 to {2 + rounds} apart from those of float32 by at most {apart:.1e}"
    aim = ">= 4" if multiplies_bf16(device) else ""
    return [
        faster("step", "bf16", runs, name, aim if "float32" in name else "", note if name.endswith("float32") else "")
        for name in rivals
        if name != "ours"
    ]


def _on_long_captions(captions: Captions, rounds: int, device: torch.device) -> list[Row]:
    longest = shipped(captions).longest
    rivals = {
        "ours": Rival(same_step, (device, captions)),
        "open_clip": Rival(their_step, (device, captions)),
        "open_clip, keeping memory": Rival(their_step_keeping_memory, (device, captions)),
    }
    if longest < CONTEXT:
        cut = (device, captions, "float32", longest)
        rivals[f"open_clip, cut to {longest}, keeping memory"] = Rival(their_step_keeping_memory, cut)
    runs, losses = race(rivals, rounds, device)
    what = {"keywords": "float32, names with keywords", "full": "float32, captions that fill the context"}[captions]
    return _against(what, captions, runs, losses, [""] * len(rivals))


@dataclass(frozen=True)
class _Positions:
    """Positions of a pair in both towers."""

    patches: int
    caption: float

    def __call__(self, tokens: int) -> float:
        return self.patches + tokens + self.caption + tokens


def _of_tokens(rounds: int, device: torch.device) -> list[Row]:
    """What sixteen tokens cost, beside what their number predicts, and what the head is of it."""
    sphere, oblique = (model_config("small", form) for form in ("sphere", "oblique"))
    rivals = {
        "sphere": Rival(preset_step, (device, sphere)),
        "oblique": Rival(preset_step, (device, oblique)),
        "head": Rival(head_step, (device,)),
    }
    runs, _ = race(rivals, 2 * rounds, device, warmup=2)
    one, sixteen, head = (statistics.median(runs[name]) for name in rivals)
    patches, pairs = (64 // 8) ** 2, shipped("name")
    positions, packed = _Positions(patches, pairs.cut), _Positions(patches, pairs.mean)
    predicted = positions(16) / positions(1)
    note = (
        f"measured {sixteen / one:.3f}; predicted {predicted:.3f} by {positions(16):.1f} and {positions(1):.1f} "
        f"positions a pair, {packed(16) / packed(1):.3f} where captions are packed without their padding, as here"
    )
    return [
        Row("step", "oblique(32,16)", sixteen, one * predicted, "s", "sphere(512) x ratio of positions",
            sixteen / (one * predicted), "<= 1.1", note, runs),
        Row("step", "project and similarity", head, sixteen, "s", "step of oblique(32,16)",
            head / sixteen, "<= 0.03", "forward and backward"),
    ]  # fmt: skip


def head_step(device: torch.device) -> Step:
    """Features of both towers to similarities and back, on oblique(32,16)."""
    topology = create_model(model_config("small", "oblique")).topology.to(device)
    features = [torch.randn(BATCH, 16, 32, device=device, requires_grad=True) for _ in range(2)]

    def step() -> Tensor:
        total = topology.similarity(*(topology.project(part) for part in features)).sum()
        torch.autograd.grad(total, features)
        return total.detach()

    return step
