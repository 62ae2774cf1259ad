"""open_clip's models as ours, and ours as open_clip's.

`from_open_clip` takes over the weights of any two-tower model, `load_open_clip` finds it by its name in open_clip's
registry with a pretrained tag or a local checkpoint, `to_open_clip` gives what open_clip's trainer, evaluators and
transforms take. `to_oblique` (in `surgery`) goes from a sphere to an oblique manifold.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoint import Loaded
from ..config import Architecture, ModelConfig
from ..data.images import Preprocess, Side
from ..errors import UserError
from ..model import DualEncoder, ImageEncoder, TextEncoder, preprocess_of
from ..optim import is_decayed
from ..temperature import LearnedTemperature
from ..topology import Topology, parse_topology
from ..weights_file import WEIGHTS_ALONE, first_bytes, is_safetensors, read_state_dict

REASON = 300
"""Characters of another library's message that are passed on."""
QUICK = "-quickgelu"
"""End of the name of an architecture that is another with QuickGELU in place of GELU."""
# Our words for what does not fit, and torch's.
MISFITS = {
    "lacks {count} keys, first `{first}`": r"Missing key\(s\) in state_dict: ([^\n]+)",
    "has {count} keys too many, first `{first}`": r"Unexpected key\(s\) in state_dict: ([^\n]+)",
    "has other shapes of {count} keys, first `{first}`": r"size mismatch for ([\w.]+)",
}


def from_open_clip(model: Any, context_length: int | None = None) -> DualEncoder:
    """A copy of an `open_clip.CLIP` or `CustomTextCLIP` on `sphere(d)`: the same embeddings, logits and losses.

    Towers of open_clip's plain transformers run as those of the form `clip` do, others as open_clip's own modules.

    Args:
        context_length: the tokenizer's, for a text tower of Hugging Face that does not say its own.

    Raises:
        UserError: for another class of models, such as CoCa, or pictures that are not square.

    Examples:
        >>> import open_clip
        >>> import torch
        >>> from oblique_clip.interop.open_clip import from_open_clip
        >>> vision = {"layers": 1, "width": 64, "image_size": 32, "patch_size": 16}
        >>> text = {"layers": 1, "width": 32, "heads": 2, "context_length": 16, "vocab_size": 100}
        >>> theirs = open_clip.CLIP(32, vision, text).eval()
        >>> ours, images = from_open_clip(theirs), torch.randn(2, 3, 32, 32)
        >>> ours.topology.spec
        'sphere(32)'
        >>> torch.allclose(ours.encode_image(images, flat=True), theirs.encode_image(images, normalize=True), atol=1e-5)
        True
    """
    import open_clip

    from .open_clip_towers import take_image_tower, take_text_tower, width_of_text

    if not isinstance(model, open_clip.CLIP | open_clip.CustomTextCLIP):
        raise UserError(
            f"only models of open_clip.CLIP and CustomTextCLIP can be taken over, not {type(model).__name__}"
        )
    visual, text = take_image_tower(model.visual, _preprocess_of(model)), take_text_tower(model, context_length)
    topology = parse_topology(f"sphere({width_of_text(text)})")
    temperature = LearnedTemperature(topology.initial_scale(), topology.max_scale)
    temperature.log_scale = nn.Parameter(model.logit_scale.detach().clone().reshape(()))
    encoder = DualEncoder(visual, text, topology, temperature)
    if model.logit_bias is not None:
        encoder.logit_bias = nn.Parameter(model.logit_bias.detach().clone().reshape(()))
    return encoder.train(model.training)


def _preprocess_of(model: Any) -> Preprocess:
    """open_clip's evaluation transform of a model; its defaults where the model bears none."""
    import open_clip
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    settings = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), open_clip.get_model_preprocess_cfg(model)))
    sides = settings.size if isinstance(settings.size, tuple | list) else (settings.size, settings.size)
    if len(set(sides)) != 1:
        raise UserError(f"pictures here are square; this model wants {' x '.join(map(str, sides))}")
    side = Side(sides[0], Cut(settings.interpolation, settings.resize_mode, settings.fill_color))
    return Preprocess(
        side, _three(settings.mean), _three(settings.std),
        "bilinear" if settings.interpolation == "bilinear" else "bicubic",
    )  # fmt: skip


def _three(value: Any) -> tuple[float, float, float]:
    first, second, third = value if isinstance(value, tuple | list) else (value,) * 3
    return float(first), float(second), float(third)


@dataclass(frozen=True)
class Cut:
    """open_clip's way from a picture to a square, by its own transform."""

    interpolation: str
    resize_mode: str
    fill_color: int

    def __call__(self, image: Image.Image, side: int) -> Image.Image:
        import open_clip

        transform = open_clip.image_transform(
            side, is_train=False, interpolation=self.interpolation, resize_mode=self.resize_mode,
            fill_color=self.fill_color,
        )  # fmt: skip
        # The last two make a tensor and normalise it.
        for step in transform.transforms[:-2]:
            image = step(image)
        return image


def cut_of(preprocess: Preprocess) -> Cut:
    """What a picture goes through to a square, in open_clip's words; `middle_square` is the nearest to `shortest`."""
    side = preprocess.image_size
    return side.cut if isinstance(side, Side) and isinstance(side.cut, Cut) else Cut("bilinear", "shortest", 0)


def load_open_clip(address: str) -> Loaded:
    """A pretrained model of open_clip, found and read by its own loaders.

    Args:
        address: NAME/TAG (`ViT-B-32/laion2b_s34b_b79k`), NAME/FILE with a local checkpoint (an absolute one may have
            lost its first slash to a Path), `hf-hub:ORG/REPOSITORY` or `local-dir:FOLDER`.

    Raises:
        UserError: for a name or tag that open_clip does not know, a file that is missing or does not fit, or weights
            that cannot be downloaded.

    Examples:
        >>> import json
        >>> import tempfile
        >>> from pathlib import Path
        >>> import open_clip
        >>> import torch
        >>> from oblique_clip import load
        >>> folder = Path(tempfile.mkdtemp())
        >>> sizes = {
        ...     "embed_dim": 32,
        ...     "vision_cfg": {"layers": 1, "width": 64, "image_size": 32, "patch_size": 16},
        ...     "text_cfg": {"layers": 1, "width": 32, "heads": 2},
        ... }
        >>> _ = (folder / "mini.json").write_text(json.dumps(sizes))
        >>> open_clip.add_model_config(folder / "mini.json")
        >>> torch.save(open_clip.create_model("mini").state_dict(), folder / "mini.pt")
        >>> model, preprocess, tokenizer = load(f"open_clip:mini/{folder / 'mini.pt'}")
        >>> model.topology.spec, preprocess.image_size
        ('sphere(32)', 32)
    """
    import open_clip

    name, pretrained = _parse(address)
    if pretrained is not None and Path(pretrained).is_file():
        _check_file(Path(pretrained))
    try:
        with _without_logging():
            model = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True)
            tokenizer = open_clip.get_tokenizer(name)
    # Whatever a missing network or weights of another kind make torch, safetensors and huggingface_hub raise.
    except Exception as error:
        if pretrained and (misfit := _misfit(str(error))):
            raise UserError(
                f"{pretrained} is not a {name} ({misfit}): name the architecture it was trained as"
            ) from error
        what = f"{pretrained} as open_clip's {name}" if pretrained else name
        raise UserError(f"cannot load {what}: {_reason(error)}") from error
    taken = from_open_clip(model.eval(), tokenizer.context_length)
    return Loaded(taken, preprocess_of(taken), tokenizer)


def _check_file(path: Path) -> None:
    """Refuse, in our words, what holds no weights or more than these; open_clip goes by the ending of the name.

    Raises:
        UserError: as `read_state_dict`, or for a file of safetensors under another name than `.safetensors`.
    """
    # Arrays of big_vision, which are no pickles.
    if path.suffix in (".npz", ".npy"):
        return
    read_state_dict(path)
    if (path.suffix == ".safetensors") != is_safetensors(first_bytes(path)):
        raise UserError(f"{path}: open_clip takes a file for one of safetensors just where its name ends so: rename it")


def _reason(error: Exception) -> str:
    # torch's own message for a pickle that it refuses tells how to run it all the same.
    if "weights_only" in str(error):
        return f"its file holds more than tensors, which could run code, so it was not unpickled: {WEIGHTS_ALONE}"
    reason = str(error).strip() or type(error).__name__
    return reason if len(reason) <= REASON else f"{reason[:REASON]}..."


def _misfit(message: str) -> str | None:
    """What torch's message says of weights that do not fit a model; None for another message."""
    for words, pattern in MISFITS.items():
        if lists := re.findall(pattern, message):
            names = re.findall(r"\w[\w.]*", ", ".join(lists))
            return words.format(count=len(names), first=names[0])
    return None


def open_clip_config(address: str) -> ModelConfig:
    """The configuration of the model that `load_open_clip` gives: form `clip`, towers by name.

    Raises:
        UserError: as `load_open_clip`; for a schema, which names no architecture of open_clip's registry.
    """
    import open_clip

    name, pretrained = _parse(address)
    if pretrained is None:
        raise UserError(f"{name} has no name in open_clip's registry, so that no run could be loaded again")
    tag = pretrained in open_clip.list_pretrained_tags_by_model(name)
    named = f"{name}/{pretrained}" if tag else name
    settings = open_clip.get_model_config(name)
    vision, text, dimension = settings["vision_cfg"], settings["text_cfg"], settings["embed_dim"]
    arch = Architecture(
        image_size=vision.get("image_size", open_clip.CLIPVisionCfg.image_size),
        context_length=text.get("context_length", open_clip.CLIPTextCfg.context_length), tokenizer="clip",
    )  # fmt: skip
    return ModelConfig(
        size=name, form="clip", topology=f"sphere({dimension})", embed_dim=dimension, open_clip=named, arch=arch,
        logit_bias=settings.get("init_logit_bias") is not None,
    )  # fmt: skip


def build_towers(config: ModelConfig, topology: Topology) -> tuple[ImageEncoder, TextEncoder]:
    """The towers that `config.open_clip` names, with fresh weights; cut by `to_oblique` for the form `oblique`.

    Raises:
        UserError: for a name that open_clip does not know, or another image size than its own.
    """
    import open_clip

    from .surgery import to_oblique

    name = str(config.open_clip).partition("/")[0]
    if name not in open_clip.list_models():
        raise UserError(f"open_clip has no model {name!r}; see open_clip.list_models()")
    with _without_logging():
        theirs = _unloaded(str(config.open_clip), config.arch.patch_dropout)
        model = from_open_clip(theirs, config.arch.context_length)
    size = model.visual.image_size[0]
    if size != config.arch.image_size:
        raise UserError(f"open_clip's {name} takes pictures of {size} pixels: set --image-size {size}")
    if config.form == "oblique":
        model = to_oblique(model, topology.n, topology.m)
    return model.visual, model.text


def _unloaded(named: str, patch_dropout: float = 0.0) -> Any:
    """A model of open_clip by NAME or NAME/TAG, without its weights: a tag says how its pixels are made."""
    import open_clip

    name, _, tag = named.partition("/")
    pixels = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    if tag and not pixels:
        raise UserError(f"open_clip's {name} has no tag {tag!r}, which says what its pictures go through")
    # Given the tag, open_clip would download the weights even so.
    return open_clip.create_model(
        name, load_weights=False, pretrained_text=False, force_patch_dropout=patch_dropout or None,
        force_preprocess_cfg=pixels,
    )  # fmt: skip


def _parse(rest: str) -> tuple[str, str | None]:
    """Name and pretrained tag or file, both of which exist."""
    import open_clip

    if rest.startswith(("hf-hub:", "local-dir:")):
        return rest, None
    name, _, pretrained = rest.partition("/")
    names = open_clip.list_models()
    if name not in names:
        close = difflib.get_close_matches(name, names, 5, 0) or names[:5]
        raise UserError(f"open_clip has no model {name!r}; of its {len(names)}, {', '.join(close)} come closest")
    if "multimodal_cfg" in open_clip.get_model_config(name):
        raise UserError(f"open_clip's {name} is a CoCa, which has a decoder beside its two towers: not supported here")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained in tags:
        _check_activation(name, pretrained)
        return name, pretrained
    # A Path made of the source has lost the second of the slashes before an absolute one.
    for file in (Path(pretrained), Path("/", pretrained)):
        if pretrained and file.is_file():
            return name, str(file)
    what = f"has no tag {pretrained!r}, nor is there such a file" if pretrained else "needs its weights named"
    raise UserError(
        f"open_clip's {name} {what}: take open_clip:{name}/FILE, or of its tags {', '.join(tags) or 'none'}"
    )


def _check_activation(name: str, tag: str) -> None:
    """Refuse weights trained with another GELU than the architecture has, of which open_clip only warns."""
    import open_clip

    twin = name.removesuffix(QUICK) if name.endswith(QUICK) else name + QUICK
    quick = bool(open_clip.get_model_config(name).get("quick_gelu"))
    trained = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    # Where there is no twin, the tag leaves unsaid what its one architecture says.
    if trained != quick and tag in open_clip.list_pretrained_tags_by_model(twin):
        which = "with" if trained else "without"
        raise UserError(f"{tag} was trained {which} QuickGELU, {name} is not: take open_clip:{twin}/{tag}")


@contextmanager
def _without_logging() -> Iterator[None]:
    """open_clip logs to the root logger what it then raises."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


class OpenClipModel(nn.Module):
    """A `DualEncoder` with open_clip's interface: flat unit vectors, cosine logits. See `to_open_clip`.

    Examples:
        >>> import math
        >>> import torch
        >>> from oblique_clip import load
        >>> from oblique_clip.interop.open_clip import to_open_clip
        >>> model, _, tokenizer = load("tiny-oblique")
        >>> exported = to_open_clip(model)
        >>> outputs = exported(torch.zeros(1, 3, 32, 32), tokenizer(["dog"]))
        >>> sorted(outputs), outputs["image_features"].shape
        (['image_features', 'logit_scale', 'text_features'], torch.Size([1, 128]))
        >>> round((exported.logit_scale - model.logit_scale).item(), 4) == round(math.log(8), 4)  # eight spheres
        True
    """

    def __init__(self, encoder: DualEncoder, output_dict: bool) -> None:
        super().__init__()
        self.encoder, self.output_dict = encoder, output_dict
        temperature: Any = encoder.temperature
        offset = math.log(encoder.topology.m)
        if isinstance(temperature, LearnedTemperature):
            shared = nn.Parameter(temperature.log_scale.detach() + offset, temperature.log_scale.requires_grad)
            calibrated = temperature.calibrated
            temperature = encoder.temperature = SharedTemperature(shared, offset, temperature.maximum)  # type: ignore[assignment]
            temperature.calibrated = calibrated
        self.logit_scale = (
            temperature.source
            if isinstance(temperature, SharedTemperature)
            else nn.Parameter(temperature.log_scale + offset, requires_grad=False)
        )

    @property
    def visual(self) -> Any:
        return self.encoder.visual

    @property
    def text(self) -> Any:
        return self.encoder.text

    @property
    def logit_bias(self) -> Tensor | None:
        return self.encoder.logit_bias

    @property
    def context_length(self) -> int:
        return self.encoder.context_length

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Unit vectors (B, D), normalised or not: one norm over them all in place of m would leave the manifold."""
        return self.encoder.encode_image(image, flat=True)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        return self.encoder.encode_text(text, flat=True)

    def get_logits(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder.get_logits(image, text)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        named = {
            "image_features": None if image is None else self.encode_image(image, normalize=True),
            "text_features": None if text is None else self.encode_text(text, normalize=True),
            "logit_scale": self.logit_scale.exp(),
        }
        if self.logit_bias is not None:
            named["logit_bias"] = self.logit_bias
        return named if self.output_dict else tuple(named.values())

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.encoder.set_grad_checkpointing(enable)

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        self.encoder.lock_image_tower(unlocked_groups, freeze_bn_stats)

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        self.encoder.lock_text_tower(unlocked_layers, freeze_layer_norm)

    def no_weight_decay(self) -> set[str]:
        """Matrices that our own optimiser does not decay, for timm's optimisers; open_clip's AdamW does not ask."""
        return {name for name, value in self.named_parameters() if value.ndim >= 2 and not is_decayed(name, value)}


def to_open_clip(model: DualEncoder, output_dict: bool = True) -> OpenClipModel:
    """The model as open_clip's trainer, `build_zero_shot_classifier`, evaluators and transforms take it.

    Nothing is copied: training the one trains the other. A flat vector is the point over sqrt(m), so its `logit_scale`
    is `log_scale + ln m` (one parameter, read by both); the trainer's clamp to [0, ln 100] is our clamp from above, and
    one from below that we have not. A scale that is no parameter (constant or annealed) stays as it is.

    Raises:
        UserError: where logits are not a scale times the cosine of flat vectors: any distance but the inner one.

    Examples:
        >>> import open_clip
        >>> from oblique_clip import load
        >>> from oblique_clip.interop.open_clip import to_open_clip
        >>> model, _, tokenizer = load("tiny-oblique")
        >>> templates = (lambda name: f"a photo of a {name}.", lambda name: f"a drawing of a {name}.")
        >>> weights = open_clip.build_zero_shot_classifier(to_open_clip(model), tokenizer, ["dog", "cat"], templates)
        >>> weights.shape
        torch.Size([128, 2])
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    topology = model.topology
    if topology.family not in ("sphere", "oblique") or topology.distance != "inner":
        raise UserError(
            f"{topology.spec} cannot go to open_clip, which compares by cosine: sphere(d) and oblique(n,m) can"
        )
    exported = OpenClipModel(model, output_dict)
    preprocess = preprocess_of(model)
    side = preprocess.image_size
    ours = {
        "size": (int(side), int(side)),
        "mean": preprocess.mean,
        "std": preprocess.std,
        **asdict(cut_of(preprocess)),
    }
    open_clip.set_model_preprocess_cfg(exported, merge_preprocess_dict(PreprocessCfg(), ours))
    return exported


class SharedTemperature(nn.Module):
    """A `LearnedTemperature` whose parameter is another module's: that one, less `offset`.

    It is saved as a learned one is, and belongs to no optimiser of its own module.
    """

    calibrated: float | None = None

    def __init__(self, source: nn.Parameter, offset: float, maximum: float) -> None:
        super().__init__()
        # In a tuple, a parameter is not registered.
        self._held, self.offset, self.maximum = (source,), offset, maximum

    @property
    def source(self) -> nn.Parameter:
        return self._held[0]

    @property
    def log_scale(self) -> Tensor:
        return self.source - self.offset

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    @torch.no_grad()
    def update(self, progress: float) -> None:
        self.source.clamp_(max=math.log(self.maximum) + self.offset)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}log_scale"] = self.log_scale.detach()

    @torch.no_grad()
    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing_keys: list[str], *rest: Any
    ) -> None:
        if f"{prefix}log_scale" in state_dict:
            self.source.copy_(state_dict[f"{prefix}log_scale"] + self.offset)
        else:
            missing_keys.append(f"{prefix}log_scale")
