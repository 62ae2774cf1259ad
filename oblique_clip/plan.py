"""What a training step will take on each rank, before a machine is rented: parameters, memory, traffic and time.

Units: bytes, FLOP (a multiplication and its addition are two), seconds; of one rank and one step, unless it says more.
W ranks have b = B/W pairs each. Activations are counted per position, in units of the tower's width w, by what autograd
keeps of a block (as Korthikanti et al. 2022, arXiv 2205.05198, count; without dropout, with fused attention):

    input 1, norm 1, query key value 3, attention 1, input of the MLP 1, norm 1, MLP 4, GELU 4: 16 numbers

and 4 in the last block (input, norm, key, value), which is otherwise run where it is read alone. Traffic is that of
ring algorithms, which no other undercuts: a gathering or a scattered sum of n bytes sends n (W - 1)/W, a sum for all
2 n (W - 1)/W (Patarasuk and Yuan 2009).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from .config import Form, ModelConfig, check_ranges, model_config
from .errors import UserError
from .loss import GPU_TILE
from .model import create_model
from .topology import Topology, parse_topology

FLOAT = 4
"""Bytes of float32, in which weights, gradients, moments and points are."""
GROUP = 8
"""Bytes of a caption's group."""
TILES = 5
"""Matrices of a tile's size that the loss holds at once: logits, an exponential, a mask or slope, their gradient."""


class Kept(NamedTuple):
    """Bytes that autograd keeps of a position of a block, over the width; `whole` of a block, `last` of the last."""

    whole: int
    last: int
    input: int


# Under autocast the residual stream (both inputs of a block) stays in float32, all else is in bfloat16.
KEPT = {"float32": Kept(16 * 4, 4 * 4, 4), "bf16": Kept(2 * 4 + 14 * 2, 4 + 3 * 2, 4)}


@dataclass(frozen=True)
class PlanConfig:
    """A step that may be planned.

    Examples:
        >>> from oblique_clip.plan import PlanConfig
        >>> config = PlanConfig(size="ViT-B-16", batch_size=32_768, ranks=64)
        >>> config.batch_size // config.ranks
        512
    """

    size: str = "ViT-B-16"
    """A named size, see `train --size`."""
    form: Form = "oblique"
    """clip, sphere or oblique."""
    topology: str | None = None
    """Another topology than that of the size and form."""
    batch_size: int = 32_768
    """Pairs a step, of all ranks."""
    ranks: int = 8
    """Processes, one a GPU."""
    micro_batch: int | None = None
    """Pairs the towers of a rank take at a time; None for all of them."""
    caption_tokens: int | None = None
    """Positions of a caption, cut to the longest of its batch; None for the whole context."""
    grad_checkpointing: bool = False
    """See `train`."""
    precision: Literal["float32", "bf16"] = "bf16"
    """See `train`."""
    fsdp: bool = False
    """Weights, gradients and moments in parts."""
    ring: bool = False
    """Captions go round the ranks instead of being gathered."""
    tflops: float = 400.0
    """10^12 FLOP a second that a GPU sustains: two fifths of an H100's 989 in bfloat16 (NVIDIA's data sheet)."""
    loss_tflops: float = 40.0
    """The same for the loss, in float32: three fifths of an H100's 67."""
    gbytes: float = 40.0
    """10^9 bytes a second that a GPU sends: four fifths of one 400 Gbit/s port each, as a DGX H100 has."""


class Line(NamedTuple):
    """One quantity of a plan."""

    what: str
    value: float
    unit: Literal["", "B", "FLOP", "s"]
    note: str = ""


class _Tower(NamedTuple):
    width: int
    layers: int
    positions: int
    read: int
    """Positions that the last block is run at."""
    pixels: int
    """Numbers of a picture; 0 for the text tower."""

    def activations(self, kept: Kept, checkpointing: bool) -> int:
        """Bytes a pair; with `checkpointing` those of the inputs of blocks alone."""
        head = 2 * self.read * self.width * FLOAT + self.pixels * FLOAT
        if checkpointing:
            return head + self.layers * self.width * self.positions * kept.input
        last = self.width * (self.positions * kept.last + self.read * (kept.whole - kept.last))
        return head + (self.layers - 1) * self.inside(kept) + last

    def inside(self, kept: Kept) -> int:
        """Bytes a pair of one block."""
        return self.width * self.positions * kept.whole

    def forward_flop(self) -> int:
        """Matrix products of a forward pass, a pair."""
        w, t = self.width, self.positions
        inside = 2 * t * 12 * w * w + 4 * t * t * w
        last = 2 * t * 2 * w * w + self.read * (2 * 10 * w * w + 4 * t * w)
        return (self.layers - 1) * inside + last + 2 * self.pixels * w


def towers_of(config: ModelConfig, topology: Topology, caption_tokens: int | None) -> tuple[_Tower, _Tower]:
    """Sizes of the image and the text tower."""
    arch, tokens = config.arch, 1 if config.form == "clip" or config.projection == "reshaped" else topology.m
    patches = round((arch.image_size // arch.patch_size) ** 2 * (1 - arch.patch_dropout))
    words = arch.context_length if caption_tokens is None else caption_tokens
    if not 1 <= words <= arch.context_length:
        raise UserError(f"--caption-tokens must lie in [1, {arch.context_length}], not be {words}")
    own = 0 if config.form == "clip" else tokens
    return (
        _Tower(arch.vision_width, arch.vision_layers, patches + tokens, tokens, 3 * arch.image_size**2),
        _Tower(arch.text_width, arch.text_layers, words + own, tokens, pixels=0),
    )


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """Of the whole model, and of the larger tower; nothing is allocated.

    Examples:
        >>> from oblique_clip import model_config
        >>> from oblique_clip.plan import count_parameters
        >>> count_parameters(model_config("tiny", "oblique"))
        (2377089, 1235200)
    """
    with torch.device("meta"):
        model = create_model(config, pretrained=False)
    whole, image, text = (sum(p.numel() for p in part.parameters()) for part in (model, model.visual, model.text))
    return whole, max(image, text)


@dataclass(frozen=True)
class _Sizes:
    """What the formulas read."""

    config: PlanConfig
    topology: Topology
    image: _Tower
    text: _Tower
    parameters: int
    largest_tower: int
    points: int = field(init=False)
    """Bytes of a point."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", math.prod(self.topology.point_shape) * FLOAT)

    @property
    def own(self) -> int:
        """b, rounded up."""
        return -(-self.config.batch_size // self.config.ranks)

    @property
    def at_once(self) -> int:
        """Pairs the towers take at a time."""
        return min(self.own, self.config.micro_batch or self.own)

    @property
    def sent(self) -> float:
        """Share of a gathered whole that a rank sends, (W - 1)/W."""
        return (self.config.ranks - 1) / self.config.ranks


def plan(config: PlanConfig, tile: int = GPU_TILE) -> list[Line]:
    """Every quantity of a step, in the order of the table; `tile` is as `GPU_TILE` in loss.py.

    Raises:
        UserError: for an unknown size, form or topology, or a number out of range.

    Examples:
        >>> from oblique_clip.plan import PlanConfig, plan
        >>> lines = {line.what: line.value for line in plan(PlanConfig(size="tiny", batch_size=4096, ranks=4))}
        >>> f"{lines['parameters']:,.0f}", f"{lines['traffic: captions gathered']:,.0f}"  # 3 * 1,024 * 512 bytes
        ('2,377,089', '1,572,864')
    """
    check_ranges(config)
    if config.batch_size < config.ranks:
        raise UserError(f"--batch-size {config.batch_size} leaves some of {config.ranks} ranks without a pair")
    changes = {} if config.topology is None else {"topology": config.topology}
    model = model_config(config.size, config.form, **changes)
    topology = parse_topology(model.topology)
    sizes = _Sizes(config, topology, *towers_of(model, topology, config.caption_tokens), *count_parameters(model))
    memory, traffic, work = _memory(sizes, tile), _traffic(sizes), _work(sizes)
    return [
        Line("parameters", sizes.parameters, ""),
        *memory,
        Line("memory: sum", sum(line.value for line in memory), "B", "beside the libraries' own"),
        *traffic,
        Line("traffic: sum", sum(line.value for line in traffic), "B"),
        *work,
        *_time(config, work, traffic),
    ]


def _memory(sizes: _Sizes, tile: int) -> list[Line]:
    config, weights = sizes.config, sizes.parameters * FLOAT
    share = config.ranks if config.fsdp else 1
    copies = sizes.parameters * 2 if config.precision == "bf16" else 0
    together = sizes.largest_tower * 2 * FLOAT if config.fsdp else 0
    kept, both = KEPT[config.precision], (sizes.image, sizes.text)
    towers = [tower.activations(kept, config.grad_checkpointing) for tower in both]
    # One piece keeps the graphs of both towers, micro-batches that of one.
    graph = sizes.at_once * (sum(towers) if sizes.at_once == sizes.own else max(towers))
    again = sizes.at_once * max(tower.inside(kept) for tower in both) * config.grad_checkpointing
    return [
        Line("memory: weights", weights / share + copies, "B", "with bfloat16 copies" if copies else ""),
        Line("memory: gradients", weights / share, "B"),
        Line("memory: moments", 2 * weights / share, "B", "AdamW's two"),
        *([Line("memory: a whole tower", together, "B", "weights and gradient, while it runs")] if config.fsdp else []),
        Line("memory: activations", graph, "B", f"{sizes.at_once:,} pairs at a time"),
        *([Line("memory: a block again", again, "B", "computed anew for its gradient")] if again else []),
        Line("memory: points", 4 * sizes.own * sizes.points, "B", "own images and captions, with gradients"),
        Line("memory: loss", _loss_memory(sizes, tile), "B", "captions of all, sums and a tile"),
    ]  # fmt: skip


def _loss_memory(sizes: _Sizes, tile: int) -> int:
    config, pairs = sizes.config, sizes.config.batch_size
    # The ring has a block that is scored, one that comes and one that leaves, and two gradients.
    held = 5 * sizes.own if config.ring else 2 * pairs
    captions = held * sizes.points if config.ranks > 1 else 0
    tile = min(sizes.topology.held_a_pair * sizes.own * (sizes.own if config.ring else pairs), tile)
    return captions + 3 * pairs * FLOAT + TILES * tile * FLOAT


def _traffic(sizes: _Sizes) -> list[Line]:
    config, block, weights = sizes.config, sizes.own * sizes.points, sizes.parameters * FLOAT
    others, pairs = config.ranks - 1, config.batch_size
    sums = Line("traffic: column sums", 2 * 2 * sizes.sent * pairs * FLOAT, "B", "largest logit and sum of each column")
    if config.ring:
        captions = [
            Line("traffic: captions in the ring", 2 * others * block, "B", "twice round"),
            Line("traffic: their gradient in the ring", config.ranks * block * (others > 0), "B", "once round"),
        ]  # fmt: skip
    else:
        captions = [
            Line("traffic: captions gathered", others * block, "B"),
            Line("traffic: their gradient", others * block, "B"),
        ]
    if not config.fsdp:
        return [*captions, sums, Line("traffic: gradients", 2 * sizes.sent * weights, "B", "summed for all")]
    # Weights come together for each run forward and backward; micro-batches run forward once more.
    runs = -(-sizes.own // sizes.at_once)
    gatherings = 2 if runs == 1 else 3 * runs
    return [
        *captions,
        sums,
        Line("traffic: weights", gatherings * sizes.sent * weights, "B", f"gathered {gatherings} times"),
        Line("traffic: gradients", sizes.sent * weights, "B", "a part for each"),
    ]


def _work(sizes: _Sizes) -> list[Line]:
    config = sizes.config
    passes = 3 + (sizes.at_once < sizes.own) + config.grad_checkpointing
    towers = sizes.own * passes * (sizes.image.forward_flop() + sizes.text.forward_flop())
    # Each tile is scored twice and has a product for each of the gradients of its images and captions.
    loss = 4 * 2 * sizes.own * config.batch_size * sizes.points // FLOAT
    return [
        Line("work: towers", towers, "FLOP", f"{passes} times a forward pass"),
        Line("work: loss", loss, "FLOP", "InfoNCE, four products a tile"),
    ]


def _time(config: PlanConfig, work: list[Line], traffic: list[Line]) -> list[Line]:
    towers, loss = (line.value for line in work)
    sent = sum(line.value for line in traffic)
    parts = (towers / (config.tflops * 1e12), loss / (config.loss_tflops * 1e12), sent / (config.gbytes * 1e9))
    return [
        Line("time: towers", parts[0], "s", f"at {config.tflops:g} TFLOP/s"),
        Line("time: loss", parts[1], "s", f"at {config.loss_tflops:g} TFLOP/s"),
        Line("time: traffic", parts[2], "s", f"at {config.gbytes:g} GB/s"),
        Line("time: step, nothing at once", sum(parts), "s"),
        Line("time: step, all traffic hidden", max(parts[0] + parts[1], parts[2]), "s"),
    ]


UNITS: dict[str, tuple[tuple[float, str], ...]] = {
    "": ((1, ""),),
    "B": ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (0, "B")),
    "FLOP": ((1e15, "PFLOP"), (1e12, "TFLOP"), (0, "GFLOP")),
    "s": ((1, "s"), (0, "ms")),
}


def shown(line: Line) -> str:
    """A value in the largest unit that it fills.

    Examples:
        >>> from oblique_clip.plan import Line, shown
        >>> shown(Line("memory: points", 3 * 2**30, "B")), shown(Line("time: loss", 0.0421, "s"))
        ('3.0 GiB', '42.1 ms')
    """
    if not line.unit:
        return f"{line.value:,.0f}"
    size, name = next((least, name) for least, name in UNITS[line.unit] if line.value >= least)
    smallest = {"B": 1.0, "FLOP": 1e9, "s": 1e-3}[line.unit]
    return f"{line.value / (size or smallest):,.1f} {name}"


def print_plan(config: PlanConfig) -> None:
    """The table of a plan."""
    from rich.console import Console
    from rich.table import Table

    model = f"{config.size} {config.form}"
    title = f"One step of {model}: {config.batch_size:,} pairs on {config.ranks:,} ranks, each of them"
    table = Table(title=title, title_justify="left")
    for heading, side in (("what", "left"), ("estimate", "right"), ("", "left")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for line in plan(config):
        table.add_row(line.what, shown(line), line.note)
    Console().print(table)
