"""Every setting of a run, as frozen dataclasses: read at the edge, saved with the run, never passed around whole.

Flags of the command line are the field names; the strings below the fields are their help texts.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from .errors import UserError
from .files import write_whole

FORMAT_VERSION = 1
Form = Literal["clip", "sphere", "oblique"]


@dataclass(frozen=True)
class Architecture:
    """Sizes of the two towers; the named ones are in `SIZES`.

    Examples:
        >>> from oblique_clip import create_model, model_config
        >>> from oblique_clip.config import Architecture
        >>> arch = Architecture(patch_size=16, vision_layers=2, text_layers=1)
        >>> model = create_model(model_config("tiny", "oblique", arch=arch))
        >>> model.visual.grid, len(model.visual.blocks)
        ((2, 2), 2)
    """

    image_size: int = 32
    """Height and width of an image in pixels."""
    patch_size: int = 8
    """Side of a patch in pixels."""
    vision_width: int = 128
    """Channels of the image tower."""
    vision_layers: int = 6
    """Blocks of the image tower."""
    vision_heads: int = 4
    """Attention heads of the image tower."""
    timm_name: str = "vit_base_patch16_clip_224"
    """Any timm ViT; the sizes above replace its own (the default is open_clip's layout). Or a convnet, as it is."""
    pretrained: str | None = None
    """Weights of the image tower to start from: `timm` for those that timm names, or a file in timm's own layout."""
    patch_dropout: float = 0.0
    """Share of its patches that each training picture loses at random, as in FLIP; evaluation sees them all."""
    shared_attention: bool = False
    """The m class tokens together draw the attention of one, as `to_oblique` wants it; not for the form `clip`."""
    text_width: int = 128
    """Channels of the text tower."""
    text_layers: int = 3
    """Blocks of the text tower."""
    text_heads: int = 4
    """Attention heads of the text tower."""
    context_length: int = 32
    """Longest caption in tokens; longer ones are cut."""
    tokenizer: Literal["tiny", "clip"] = "tiny"
    """`tiny`: a vocabulary of 4,096 word pieces made from the shipped captions; `clip`: open_clip's, of 49,408."""


@dataclass(frozen=True)
class TemperatureConfig:
    """Scale of the logits. Unset values follow the rule of `Topology.initial_scale` and `Topology.max_scale`.

    Examples:
        >>> from oblique_clip import create_model, model_config
        >>> from oblique_clip.config import TemperatureConfig
        >>> annealed = TemperatureConfig("cosine", init_scale=1.0, final_scale=4.0)
        >>> model = create_model(model_config("tiny", "oblique", temperature=annealed))
        >>> model.temperature.update(0.5)  # halfway through training
        >>> round(model.temperature.scale.item(), 3)
        2.5
    """

    temperature: Literal["learned", "constant", "linear", "cosine", "exponential"] = "learned"
    """`learned` as CLIP does, `constant`, or annealed from --init-scale to --final-scale."""
    init_scale: float | None = None
    """Scale (1/tau) at the first step."""
    final_scale: float | None = None
    """Scale at the last step of an annealed temperature."""
    max_scale: float | None = None
    """Clamp of a learned scale; `inf` removes it."""


@dataclass(frozen=True)
class ModelConfig:
    """A model: two towers, a topology and a temperature.

    Examples:
        >>> from dataclasses import replace
        >>> from oblique_clip.config import ModelConfig
        >>> config = ModelConfig()
        >>> config.size, config.topology, config.projection
        ('tiny', 'oblique(16,8)', 'per_token')
        >>> official = replace(config, projection="shared")  # one matrix for all class tokens
    """

    size: str = "tiny"
    """A name in the table of sizes; it sets the defaults below."""
    form: Form = "oblique"
    """`clip`: open_clip's own towers; `sphere`: ours, one class token; `oblique`: ours, one class token a sphere."""
    topology: str = "oblique(16,8)"
    """Where embeddings live: sphere(d), oblique(n,m), euclidean(d) or lorentz(d); a distance may follow a slash."""
    projection: Literal["per_token", "shared", "reshaped"] = "per_token"
    """From width to n: one matrix for each class token, one for all (official), or one token reshaped to (m, n)."""
    class_tokens: Literal["free", "oblique"] = "free"
    """Class tokens as free parameters, or as points on an oblique manifold stepped by RiemannianAdam."""
    tokens: int = 0
    """Class tokens that a tower is read at, whose numbers are joined and cut into the rows that the topology wants; 0
    takes one a sphere. Form `oblique` alone takes more than one."""
    registers: int = 0
    """Class tokens behind these that take part in attention and are never read."""
    token_start: Literal["apart", "together"] = "apart"
    """Class tokens drawn apart, or all equal and told apart by their positions, as in the official code."""
    token_positions: bool = True
    """Whether class tokens have positions of their own."""
    embed_dim: int = 128
    """The budget D = n*m that forms are compared at; a topology of another size is refused."""
    logit_bias: bool = False
    """A learned bias on the logits, as the sigmoid loss wants (switched on with it)."""
    open_clip: str | None = None
    """Towers of open_clip's model NAME, or NAME/TAG, in place of the sizes below; set by --start-from."""
    arch: Architecture = field(default_factory=Architecture)
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)


@dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    Examples:
        >>> from oblique_clip.config import DataConfig
        >>> from oblique_clip.data.splits import split_emoji
        >>> for config in (DataConfig(), DataConfig(test_families=("emoji-noto",), held_out_concepts=())):
        ...     splits = split_emoji(config)
        ...     print(len(splits.train), len(splits.test), len(splits.concepts))
        9662 4793 1024
        12540 2939 0
    """

    data: str = "emoji"
    """`emoji` (the shipped set), WebDataset shards ("shards/x-{000..012}.tar"), or a CSV, TSV or Parquet file."""
    image_column: str = "image"
    """Column with the image path (CSV, TSV, Parquet)."""
    caption_column: str = "caption"
    """Column with the caption (CSV, TSV, Parquet)."""
    image_root: Path | None = None
    """Folder that image paths start at and may not lead out of; the folder of the table where it is not given."""
    captions: Literal["name", "keywords", "mixed"] = "name"
    """For the shipped set: the CLDR name, the name with its keywords, or either at random."""
    test_families: tuple[str, ...] = ("emoji-fluent",)
    """Families of the shipped set kept for the test; never trained on."""
    val_families: tuple[str, ...] = ("emoji-fxemoji",)
    """Families of the shipped set kept for choosing a checkpoint or a setting; never trained on."""
    held_out_concepts: tuple[str, ...] = ("test",)
    """Concepts never trained on in any family: of the fixed 80/10/10 split by hash, `test`, `val`, both or neither."""
    train_families: tuple[str, ...] = ()
    """Families of the shipped set to train on; all that are not kept for validation and test where none is named."""
    train_share: float = 1.0
    """Share of the training pairs, drawn by --seed; a smaller one is a part of a larger one. Not for shards."""
    caption_noise: float = 0.0
    """Share of training captions shuffled among themselves, from 0 to 1."""
    twins: Literal["avoid", "allow"] = "avoid"
    """Pictures of one caption in one batch: `avoid` takes one picture a caption and batch, `allow` draws at random."""
    augment: bool = True
    """Random resized crop, small rotation and colour jitter; never a flip."""
    workers: int = 2
    """Threads that decode the pictures of a table or of shards (the shipped set is decoded once for all)."""
    max_bad_fraction: float = 0.05
    """Share of samples that may be lost before a run stops, from 0 to 1."""


@dataclass(frozen=True)
class LossConfig:
    """What is minimised.

    Examples:
        >>> from oblique_clip.config import LossConfig
        >>> LossConfig(loss="sigmoid", positives="caption")
        LossConfig(loss='sigmoid', positives='caption', nested=(), distill_from=None, distill_temperature=2.0,
        distill_weight=0.5)
    """

    loss: Literal["info_nce", "sigmoid"] = "info_nce"
    """Symmetric InfoNCE (CLIP) or the pairwise sigmoid loss (SigLIP)."""
    positives: Literal["index", "caption"] = "index"
    """`index`: only the own pair is positive, as in CLIP; `caption`: every pair with the same caption is."""
    nested: tuple[int, ...] = ()
    """Sizes, in numbers of the embedding: the first so many are trained as an embedding of their own (Matryoshka), and
    the loss is the mean over sizes."""
    distill_from: str | None = None
    """A trained teacher: a run folder, a checkpoint or a shipped model; it must read the same tokens."""
    distill_temperature: float = 2.0
    """What both models' logits are divided by before they are compared."""
    distill_weight: float = 0.5
    """Weight of the divergence from the teacher, from 0 to 1; the contrastive loss has the rest."""


@dataclass(frozen=True)
class OptimConfig:
    """How it is minimised.

    Examples:
        >>> from oblique_clip.config import OptimConfig, check_ranges
        >>> check_ranges(OptimConfig(epochs=40, lr=3e-4, batch_size=1024, micro_batch=64))
        >>> check_ranges(OptimConfig(lr=-1.0))
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: --lr must lie in (0, inf), not be -1.0
    """

    epochs: float = 10.0
    """Passes over the training pairs (ignored where --steps is given)."""
    steps: int | None = None
    """Optimiser steps; needed for shards of unknown length."""
    batch_size: int = 128
    """Pairs a step."""
    micro_batch: int | None = None
    """Pairs the towers take at a time: less memory, the towers run twice; the loss still sees the whole batch."""
    grad_checkpointing: bool = False
    """Keep only the inputs of each block for the backward pass and compute the rest again: less memory, more time."""
    lr: float = 1e-3
    """Highest learning rate."""
    point_lr: float = 1e-2
    """Highest learning rate of class tokens that are points (RiemannianAdam)."""
    scale_lr: float | None = None
    """Highest learning rate of the learned scale; --lr where it is not given."""
    warmup: float = 0.1
    """Share of the steps with a rising learning rate; a cosine to 0 follows."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; tokens, positions, norms, biases and the scale are exempt."""
    beta2: float = 0.98
    """Second-moment decay of AdamW."""
    clip_grad: float = 1.0
    """Largest norm of the whole gradient; 0 leaves it."""
    precision: Literal["float32", "bf16"] = "float32"
    """`bf16` runs the towers under autocast; points and loss stay in float32."""
    max_bad_steps: int = 10
    """Steps in a row with a loss or gradient that is not finite before a run stops; each is skipped and counted. 0 for
    any number."""
    ema: float = 0.0
    """Decay of an average of the weights (such as 0.999), which is validated and saved as the model; 0 for none."""
    fsdp: bool = False
    """Under torchrun: each process keeps a part of every tower's weights, gradients and moments (FSDP2), not all."""
    ring: bool = False
    """Under torchrun: captions travel around a ring of processes, so that none holds those of the whole batch."""
    compile: bool = False
    """Compile the image tower with torch.compile: the first step takes a minute or more; see `oblique-clip bench`."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Examples:
        >>> from pathlib import Path
        >>> from oblique_clip import model_config
        >>> from oblique_clip.config import DataConfig, OptimConfig, TrainConfig
        >>> config = TrainConfig(
        ...     model=model_config("tiny", "sphere"),
        ...     data=DataConfig(data="pairs.csv"),
        ...     optim=OptimConfig(epochs=40),
        ...     out=Path("runs/mine"),
        ... )
        >>> config.model.topology, config.optim.batch_size, config.seed
        ('sphere(128)', 128, 0)
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    out: Path = Path("runs/train")
    """Folder of the run: config.json, metrics.jsonl, checkpoints/ and result.json."""
    seed: int = 0
    """Seed of weights, data order, augmentation and noise."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    log: str = "tensorboard"
    """Where these lines also go, separated by commas: tensorboard, wandb, trackio; "" for nowhere else."""
    eval_every: int = 0
    """Steps between two validations; 0 validates ten times a run."""
    save_every: int = 0
    """Steps between two states that --resume can go on from; 0 takes as many as cost no more than 2 % of the time."""
    keep: int = 3
    """States that are kept, the newest ones."""
    test: bool = True
    """Judge the finished model on the parts that are kept for the test; off in trials of settings."""
    start_from: str | None = None
    """A model to go on from, with its sizes: a run folder, a checkpoint, a shipped model or open_clip:NAME/TAG. One on
    sphere(n*m) becomes oblique(n,m) where --topology says so."""


@dataclass(frozen=True)
class _Size:
    arch: Architecture
    embed_dim: int
    spheres: tuple[int, int]
    projection: Literal["per_token", "shared"]


def _standard(image_size: int, patch: int, vision: tuple[int, int, int], text: tuple[int, int, int]) -> Architecture:
    return Architecture(
        image_size=image_size, patch_size=patch,
        vision_width=vision[0], vision_layers=vision[1], vision_heads=vision[2],
        text_width=text[0], text_layers=text[1], text_heads=text[2], context_length=77, tokenizer="clip",
    )  # fmt: skip


# Widths, layers and heads of the ViT sizes are open_clip's model_configs.
SIZES: dict[str, _Size] = {
    "tiny": _Size(Architecture(), 128, (16, 8), "per_token"),
    "small": _Size(_standard(64, 8, (192, 6, 3), (192, 6, 3)), 512, (32, 16), "per_token"),
    "ViT-S-16": _Size(_standard(224, 16, (384, 12, 6), (384, 12, 6)), 512, (32, 16), "shared"),
    "ViT-B-32": _Size(_standard(224, 32, (768, 12, 12), (512, 12, 8)), 512, (32, 16), "shared"),
    "ViT-B-16": _Size(_standard(224, 16, (768, 12, 12), (512, 12, 8)), 512, (32, 16), "shared"),
}
FORMS: tuple[Form, ...] = ("clip", "sphere", "oblique")


def model_config(size: str = "tiny", form: Form = "oblique", **changes: Any) -> ModelConfig:
    """The named preset: one of `SIZES` in one of the three `FORMS`; `changes` replace single fields.

    Raises:
        UserError: for an unknown size or form.

    Examples:
        >>> from oblique_clip import model_config
        >>> config = model_config("ViT-B-16", "oblique")
        >>> config.topology, config.embed_dim, config.arch.image_size
        ('oblique(32,16)', 512, 224)
        >>> model_config("tiny", "sphere", topology="euclidean(128)").topology
        'euclidean(128)'
    """
    if size not in SIZES:
        raise UserError(f"unknown size {size!r}; there is {', '.join(SIZES)}")
    if form not in FORMS:
        raise UserError(f"unknown form {form!r}; there is {', '.join(FORMS)}")
    chosen = SIZES[size]
    n, m = chosen.spheres
    topology = f"oblique({n},{m})" if form == "oblique" else f"sphere({chosen.embed_dim})"
    config = ModelConfig(
        size=size, form=form, topology=topology, projection=chosen.projection,
        embed_dim=chosen.embed_dim, arch=chosen.arch,
    )  # fmt: skip
    return replace(config, **changes)


def to_json(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values; at the top of a run's config.json stands `format_version`.

    Examples:
        >>> from oblique_clip.config import TemperatureConfig, to_json
        >>> to_json(TemperatureConfig("constant", init_scale=1.0))
        {'format_version': 1, 'temperature': 'constant', 'init_scale': 1.0, 'final_scale': None, 'max_scale': None}
    """
    plain = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return {"format_version": FORMAT_VERSION, **plain}


def write_json(path: Path, value: Any) -> None:
    """Write plain values as JSON, complete or not at all.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip.config import write_json
        >>> path = Path(tempfile.mkdtemp()) / "figures.json"
        >>> write_json(path, {"top1": 0.5})
        >>> print(path.read_text())
        {
          "top1": 0.5
        }
    """
    write_whole(path, json.dumps(value, indent=2) + "\n")


def check_folder(out: Path | None) -> None:
    """Refuse a file as `--out` where a folder is written.

    Raises:
        UserError: for one.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")


def check_file(out: Path | None) -> None:
    """Refuse a folder as `--out` where a file is written.

    Raises:
        UserError: for one.
    """
    if out is not None and out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file in it")


# Where numbers must lie, by field name, in any of the dataclasses above.
RANGES: dict[str, str] = {
    **dict.fromkeys(("image_size", "patch_size", "embed_dim", "workers", "steps", "log_every"), "[1, inf)"),
    **dict.fromkeys(("rounds", "ranks", "caption_tokens", "keep"), "[1, inf)"),
    **dict.fromkeys(("vision_width", "vision_layers", "vision_heads"), "[1, inf)"),
    **dict.fromkeys(("text_width", "text_layers", "text_heads"), "[1, inf)"),
    **dict.fromkeys(("context_length", "batch_size"), "[2, inf)"),
    **dict.fromkeys(
        ("epochs", "lr", "point_lr", "scale_lr", "init_scale", "final_scale", "distill_temperature"), "(0, inf)"
    ),
    **dict.fromkeys(("weight_decay", "clip_grad", "seed", "threads", "eval_every", "save_every"), "[0, inf)"),
    **dict.fromkeys(("max_bad_steps", "tokens", "registers"), "[0, inf)"),
    "train_share": "(0, 1]",
    **dict.fromkeys(("caption_noise", "warmup", "distill_weight", "max_bad_fraction"), "[0, 1]"),
    **dict.fromkeys(("tflops", "loss_tflops", "gbytes"), "(0, inf)"),
    **dict.fromkeys(("seeds", "micro_batch"), "[1, inf)"),
    "length": "(0, inf)",
    "jobs": "[0, inf)",
    **dict.fromkeys(("beta2", "patch_dropout", "ema"), "[0, 1)"),
    "max_scale": "(0, inf]",
}


def check_ranges(config: Any) -> None:
    """Refuse numbers outside their range, in a dataclass and in those within it.

    Raises:
        UserError: for the first one, named as its flag.

    Examples:
        >>> from oblique_clip.config import OptimConfig, TrainConfig, check_ranges
        >>> check_ranges(TrainConfig(optim=OptimConfig(batch_size=1)))
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: --batch-size must lie in [2, inf), not be 1
    """
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        if dataclasses.is_dataclass(value):
            check_ranges(value)
        elif part.name in RANGES and value is not None and not _inside(value, RANGES[part.name]):
            raise UserError(f"--{part.name.replace('_', '-')} must lie in {RANGES[part.name]}, not be {value}")


def _inside(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


T = TypeVar("T")


def from_json(kind: type[T], values: dict[str, Any], where: str = "config.json") -> T:
    """The inverse of `to_json`; keys that no field bears are refused.

    Raises:
        UserError: for an unknown key, a value of the wrong type, or another format version.

    Examples:
        >>> from oblique_clip import model_config
        >>> from oblique_clip.config import ModelConfig, TemperatureConfig, from_json, to_json
        >>> config = model_config("small", "clip")
        >>> from_json(ModelConfig, to_json(config)) == config
        True
        >>> from_json(TemperatureConfig, {"tau": 0.07})
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: config.json: unknown setting 'tau'; there is final_scale, init_scale,
        max_scale, temperature
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a table of settings, found {values!r}")
    values = dict(values)
    version = values.pop("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UserError(f"{where}: format_version {version!r} is not known here; this version reads {FORMAT_VERSION}")
    return _build(kind, values, where)


def read_run_config(run: Path) -> TrainConfig:
    """The configuration that a run folder was trained with.

    Raises:
        UserError: where its config.json is missing or no JSON, or see `from_json`.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip.config import TrainConfig, read_run_config, to_json, write_json
        >>> run = Path(tempfile.mkdtemp())
        >>> write_json(run / "config.json", to_json(TrainConfig(seed=7)))  # as `train` does
        >>> read_run_config(run).seed
        7
    """
    path = run / "config.json"
    return from_json(TrainConfig, read_json(path), str(path))


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
        UserError: for a file that is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable configuration: {error}") from error


def _build(kind: type[T], values: Any, where: str) -> T:
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a table of settings, found {values!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"{where}: unknown setting {unknown[0]!r}; there is {', '.join(sorted(hints))}")
    return kind(**{name: _value(hints[name], value, f"{where}: {name}") for name, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in options:
            raise UserError(f"{where}: {value!r} is not one of {', '.join(map(str, options))}")
        return value
    if origin is types.UnionType:
        return None if value is None else _value(next(o for o in options if o is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: expected a list, found {value!r}")
        return tuple(_value(options[0], item, where) for item in value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"{where}: {str(value)[:20]}... is larger than any number of ours") from None
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value
