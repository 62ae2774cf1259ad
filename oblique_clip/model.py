"""DualEncoder: two towers, a topology and a temperature, behind open_clip's interface."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .config import ModelConfig, check_ranges
from .data.images import Preprocess
from .errors import UserError
from .temperature import Temperature, make_temperature
from .tokenizer import get_tokenizer
from .topology import Topology, parse_topology


class DualEncoder(nn.Module):
    """An image tower and a text tower whose features meet on a topology.

    Args:
        visual, text: towers giving features (B, m, n).
        topology: where the features are projected to and compared.
        temperature: the scale of the logits.
        logit_bias: start of a learned bias; None for no bias.
        output_dict: whether `forward` gives a dict, as open_clip's models do on request.
    """

    def __init__(
        self,
        visual: Any,
        text: Any,
        topology: Topology,
        temperature: Temperature,
        logit_bias: float | None = None,
        output_dict: bool = False,
    ) -> None:
        super().__init__()
        self.visual, self.text = visual, text
        self.topology, self.temperature = topology, temperature
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor(float(logit_bias)))
        self.output_dict = output_dict

    @property
    def logit_scale(self) -> Tensor:
        """Logarithm of the scale, as in open_clip: logits = exp(logit_scale) * similarity."""
        return self.temperature.log_scale

    @property
    def context_length(self) -> int:
        return int(self.text.context_length)

    def encode_image(self, images: Tensor, normalize: bool = True, flat: bool = False) -> Tensor:
        """Images (B, 3, H, W), normalised, to points (B, m, n); to features with `normalize=False`; to unit vectors
        (B, m*n) with `flat=True`.

        Raises:
            UserError: for a batch of another shape, or `flat` on a topology that has no flat form.
        """
        size = self.visual.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, *size):
            raise UserError(f"images must be (B, 3, {size[0]}, {size[1]}), not {tuple(images.shape)}")
        return self._finish(self.visual(images), normalize, flat)

    def encode_text(self, ids: Tensor, normalize: bool = True, flat: bool = False) -> Tensor:
        """Token ids (B, L), L up to the context length, to points (B, m, n); see `encode_image`."""
        if ids.ndim != 2 or ids.shape[1] > self.context_length:
            raise UserError(f"token ids must be (B, L) with L up to {self.context_length}, not {tuple(ids.shape)}")
        return self._finish(self.text(ids), normalize, flat)

    def _finish(self, features: Tensor, normalize: bool, flat: bool) -> Tensor:
        if not (normalize or flat):
            return features
        points = self.topology.project(features)
        return self.topology.flat(points) if flat else points

    def get_logits(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of every image with every text, (B1, B2), and their transpose."""
        similarity = self.topology.similarity(self.encode_image(images), self.encode_text(ids))
        logits = self.temperature.scale * similarity
        if self.logit_bias is not None:
            logits = logits + self.logit_bias
        return logits, logits.T

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        """Points of both and the scale; a tuple, or a dict with open_clip's keys where `output_dict` is set."""
        image_points = None if image is None else self.encode_image(image)
        text_points = None if text is None else self.encode_text(text)
        if not self.output_dict:
            outputs = (image_points, text_points, self.temperature.scale)
            return outputs if self.logit_bias is None else (*outputs, self.logit_bias)
        named = {"image_features": image_points, "text_features": text_points, "logit_scale": self.temperature.scale}
        return named if self.logit_bias is None else {**named, "logit_bias": self.logit_bias}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.visual.set_grad_checkpointing(enable)
        self.text.set_grad_checkpointing(enable)

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freeze the image tower but for its last groups; `freeze_bn_stats` is open_clip's, ViTs have none."""
        self.visual.lock(unlocked_groups)

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freeze the text tower but for its last groups; norms freeze with their block, as in open_clip."""
        self.text.lock(unlocked_layers)


def create_model(config: ModelConfig, loss: str = "info_nce") -> DualEncoder:
    """Build the model that a configuration describes, with fresh weights from torch's global generator.

    Args:
        config: see `model_config` for the named presets.
        loss: the loss it will be trained with, which sets the usual start of scale and bias.

    Raises:
        UserError: for an unknown topology, one off the budget, or a form that does not fit it.
    """
    if loss not in ("info_nce", "sigmoid"):
        raise UserError(f"unknown loss {loss!r}; there is info_nce, sigmoid")
    check_ranges(config)
    topology = parse_topology(config.topology)
    _check_fit(config, topology)
    # open_clip takes seconds to import: a mistake above is told before.
    from .towers import ImageTower, OpenClipImageTower, OpenClipTextTower, TextTower

    arch, n, m = config.arch, topology.n, topology.m
    vocab_size = get_tokenizer(arch.tokenizer, arch.context_length).vocab_size
    if config.form == "clip":
        towers: tuple[nn.Module, nn.Module] = (
            OpenClipImageTower(arch, topology.embed_dim),
            OpenClipTextTower(arch, vocab_size, topology.embed_dim),
        )
    else:
        head = (n, m, config.projection, config.class_tokens)
        towers = ImageTower(arch, *head), TextTower(arch, vocab_size, *head)
    start = topology.initial_scale("sigmoid" if loss == "sigmoid" else "info_nce")
    temperature = make_temperature(config.temperature, start, topology.max_scale)
    bias = topology.initial_bias() if config.logit_bias or loss == "sigmoid" else None
    return DualEncoder(*towers, topology, temperature, bias)


def from_open_clip(model: Any) -> DualEncoder:
    """The form `clip` with the weights of an `open_clip.CLIP`: the same embeddings, logits and losses.

    Raises:
        UserError: for towers other than open_clip's plain transformers, as of its "ViT-B-32".
    """
    import open_clip
    from open_clip.transformer import Transformer, VisionTransformer

    from .config import Architecture
    from .temperature import LearnedTemperature
    from .towers import OpenClipImageTower, OpenClipTextTower

    unfit = UserError("only open_clip.CLIP models of open_clip's plain transformers can be taken over")
    if not (isinstance(model, open_clip.CLIP) and isinstance(model.visual, VisionTransformer)):
        raise unfit
    vision, text = model.visual.transformer, model.transformer
    if not (isinstance(vision, Transformer) and isinstance(text, Transformer)):
        raise unfit
    arch = Architecture(
        image_size=model.visual.image_size[0], patch_size=model.visual.patch_size[0],
        vision_width=vision.width, vision_layers=vision.layers, vision_heads=vision.resblocks[0].attn.num_heads,
        text_width=text.width, text_layers=text.layers, text_heads=text.resblocks[0].attn.num_heads,
        context_length=model.context_length, tokenizer="clip",
    )  # fmt: skip
    topology = parse_topology(f"sphere({model.visual.output_dim})")
    image_tower = OpenClipImageTower(arch, topology.embed_dim)
    text_tower = OpenClipTextTower(arch, model.vocab_size, topology.embed_dim)
    # The text form of a module also tells apart what has no weights, such as the activation.
    alike = repr(model.visual) == repr(image_tower.trunk) and repr(text) == repr(text_tower.trunk.transformer)
    if not alike or (model.visual.pool_type, model.text_pool_type) != ("tok", "argmax") or model.attn_mask is None:
        raise unfit
    weights = {_name_of(name): value for name, value in model.state_dict().items()}
    temperature = LearnedTemperature(topology.initial_scale(), topology.max_scale)
    encoder = DualEncoder(image_tower, text_tower, topology, temperature, 0.0 if "logit_bias" in weights else None)
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise unfit from error
    return encoder


def _name_of(open_clip_name: str) -> str:
    """The name that a weight of `open_clip.CLIP` has in the form `clip`."""
    if open_clip_name == "logit_scale":
        return "temperature.log_scale"
    if open_clip_name == "logit_bias":
        return open_clip_name
    if open_clip_name.startswith("visual."):
        return f"visual.trunk.{open_clip_name.removeprefix('visual.')}"
    return f"text.trunk.{open_clip_name}"


def _check_fit(config: ModelConfig, topology: Topology) -> None:
    if topology.embed_dim != config.embed_dim:
        n, m = max(2, config.embed_dim // topology.m), topology.m
        fit = (
            f"{topology.family}({n},{m})" if topology.family == "oblique" else f"{topology.family}({config.embed_dim})"
        )
        raise UserError(
            f"topology {topology.spec} has {topology.embed_dim} numbers, size {config.size!r} compares at "
            f"{config.embed_dim}: take {fit}, or set --embed-dim {topology.embed_dim}"
        )
    if config.form != "oblique" and topology.m != 1:
        raise UserError(f"form {config.form!r} has one class token; topology {topology.spec} wants form 'oblique'")
    if config.form == "clip" and config.class_tokens != "free":
        raise UserError("form 'clip' is open_clip's own model: its class tokens cannot be points; take form 'sphere'")
    arch = config.arch
    if arch.image_size % arch.patch_size:
        raise UserError(f"patch size {arch.patch_size} does not divide image size {arch.image_size}")
    for tower, width, heads in (
        ("vision", arch.vision_width, arch.vision_heads),
        ("text", arch.text_width, arch.text_heads),
    ):
        if width % heads:
            raise UserError(f"{heads} {tower} heads do not divide {tower} width {width}")


def preprocess_of(model: DualEncoder) -> Preprocess:
    """The evaluation transform that the image tower wants."""
    return Preprocess(model.visual.image_size[0], model.visual.image_mean, model.visual.image_std)
