"""DualEncoder: two towers, a topology and a temperature, behind open_clip's interface."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .config import ModelConfig, check_ranges
from .data.images import Preprocess
from .errors import UserError
from .temperature import Temperature, make_temperature
from .tokenizer import Tokenizer, get_tokenizer
from .topology import Topology, parse_topology


class Encoder(Protocol):
    """What `DualEncoder` wants of either tower, an `nn.Module`: a batch to features (B, m, n), which can be frozen."""

    def __call__(self, batch: Tensor, /) -> Tensor: ...

    def set_grad_checkpointing(self, enable: bool = True) -> None: ...


class ImageEncoder(Encoder, Protocol):
    """An image tower: pictures (B, 3, H, W), normalised by `image_mean` and `image_std`, to features."""

    image_size: tuple[int, int]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None: ...


class TextEncoder(Encoder, Protocol):
    """A text tower: token ids (B, L), L up to `context_length`, to features."""

    context_length: int
    vocab_size: int

    def lock(self, unlocked_groups: int = 0) -> None: ...


class DualEncoder(nn.Module):
    """An image tower and a text tower whose features meet on a topology.

    Args:
        visual: tower from images to features (B, m, n).
        text: tower from token ids to features (B, m, n).
        topology: where the features are projected to and compared.
        temperature: the scale of the logits.
        logit_bias: start of a learned bias; None for no bias.
        output_dict: whether `forward` gives a dict, as open_clip's models do on request.

    Examples:
        >>> import torch
        >>> from oblique_clip import load
        >>> model, preprocess, tokenizer = load("tiny-oblique")
        >>> images, ids = torch.zeros(2, 3, 32, 32), tokenizer(["red apple", "dog", "house"])
        >>> model.encode_image(images).shape, model.encode_image(images, flat=True).shape
        (torch.Size([2, 8, 16]), torch.Size([2, 128]))
        >>> logits, transposed = model.get_logits(images, ids)
        >>> logits.shape, transposed.shape
        (torch.Size([2, 3]), torch.Size([3, 2]))
        >>> model.lock_image_tower()  # the text tower alone will be trained
        >>> any(parameter.requires_grad for parameter in model.visual.parameters())
        False
    """

    def __init__(
        self,
        visual: ImageEncoder,
        text: TextEncoder,
        topology: Topology,
        temperature: Temperature,
        logit_bias: float | None = None,
        output_dict: bool = False,
    ) -> None:
        super().__init__()
        # Who looks into a tower knows which one it is.
        self.visual: Any = visual
        self.text: Any = text
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
        self.check_images(images)
        return self._finish(self.visual(images), normalize, flat)

    def check_images(self, images: Tensor) -> None:
        """Refuse a batch that is not (B, 3, H, W) of the image tower's size."""
        size = self.visual.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, *size):
            raise UserError(f"images must be (B, 3, {size[0]}, {size[1]}), not {tuple(images.shape)}")

    def token_attention(self, images: Tensor, rollout: bool = False) -> Tensor:
        """What each class token looks at, (B, tokens, h, w): see `oblique_clip.attention.token_attention`."""
        from .attention import token_attention

        return token_attention(self, images, rollout)

    def encode_text(self, ids: Tensor, normalize: bool = True, flat: bool = False) -> Tensor:
        """Token ids (B, L), L up to the context length, to points (B, m, n); see `encode_image`."""
        if ids.ndim != 2 or ids.shape[1] > self.context_length:
            raise UserError(f"token ids must be (B, L) with L up to {self.context_length}, not {tuple(ids.shape)}")
        return self._finish(self.text(ids), normalize, flat)

    def _finish(self, features: Tensor, normalize: bool, flat: bool) -> Tensor:
        rows = (self.topology.m, self.topology.n)
        # Towers may have another number of tokens than there are spheres.
        features = features if features.shape[1:] == rows else features.flatten(1).unflatten(1, rows)
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
        """Freeze the image tower but for its last groups; `freeze_bn_stats` holds a convnet's batch norms still."""
        self.visual.lock(unlocked_groups, freeze_bn_stats)

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freeze the text tower but for its last groups; norms freeze with their block, as in open_clip."""
        self.text.lock(unlocked_layers)


def create_model(config: ModelConfig, loss: str = "info_nce", pretrained: bool = True) -> DualEncoder:
    """Build the model that a configuration describes, with fresh weights from torch's global generator.

    Args:
        config: see `model_config` for the named presets.
        loss: the loss it will be trained with, which sets the usual start of scale and bias.
        pretrained: whether to read the weights that `arch.pretrained` names; not where others are loaded anyway.

    Raises:
        UserError: for an unknown topology, one off the budget, or a form that does not fit it.

    Examples:
        >>> from oblique_clip import create_model, model_config
        >>> model = create_model(model_config("tiny", "oblique"))
        >>> sum(parameter.numel() for parameter in model.parameters())
        2377089
        >>> create_model(model_config("tiny", "oblique", topology="oblique(16,4)"))
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: topology oblique(16,4) has 64 numbers, size 'tiny' compares at 128: take
        oblique(32,4), or set --embed-dim 64
    """
    if loss not in ("info_nce", "sigmoid"):
        raise UserError(f"unknown loss {loss!r}; there is info_nce, sigmoid")
    check_ranges(config)
    topology = parse_topology(config.topology)
    _check_fit(config, topology)
    towers = _towers(config, topology, pretrained)
    start = topology.initial_scale("sigmoid" if loss == "sigmoid" else "info_nce")
    temperature = make_temperature(config.temperature, start, topology.max_scale)
    bias = topology.initial_bias() if config.logit_bias or loss == "sigmoid" else None
    return DualEncoder(*towers, topology, temperature, bias)


def _towers(config: ModelConfig, topology: Topology, pretrained: bool) -> tuple[ImageEncoder, TextEncoder]:
    # open_clip takes seconds to import: a mistake in the configuration is told before.
    if config.open_clip is not None:
        from .interop.open_clip import build_towers

        return build_towers(config, topology)
    from .towers import OpenClipImageTower, OpenClipTextTower, TextTower, make_image_tower

    arch = config.arch
    vocab_size = get_tokenizer(arch.tokenizer, arch.context_length).vocab_size
    if config.form == "clip":
        dimension = topology.embed_dim
        return OpenClipImageTower.fresh(arch, dimension), OpenClipTextTower.fresh(arch, vocab_size, dimension)
    count = config.tokens or topology.m
    head = (topology.embed_dim // count, count, config.projection, config.class_tokens)
    tokens: dict[str, Any] = {
        "registers": config.registers,
        "start": config.token_start,
        "positions": config.token_positions,
    }
    image_tower = make_image_tower(arch, *head, weights=pretrained, **tokens)
    return image_tower, TextTower(arch, vocab_size, *head, **tokens)


def tokenizer_of(config: ModelConfig) -> Tokenizer:
    """What turns texts into the token ids that a model of this configuration reads.

    Examples:
        >>> from oblique_clip import model_config
        >>> from oblique_clip.model import tokenizer_of
        >>> tokenizer_of(model_config("tiny"))(["red apple", "dog"]).shape  # padded to its context
        torch.Size([2, 32])
    """
    if config.open_clip is None:
        return get_tokenizer(config.arch.tokenizer, config.arch.context_length)
    import open_clip

    tokenizer: Tokenizer = open_clip.get_tokenizer(config.open_clip.partition("/")[0])
    return tokenizer


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
    _check_tokens(config, topology)
    if config.form == "clip" and config.class_tokens != "free":
        raise UserError("form 'clip' is open_clip's own model: its class tokens cannot be points; take form 'sphere'")
    if config.open_clip is not None:
        if config.form == "sphere":
            raise UserError("open_clip's towers go with the forms 'clip' and 'oblique'; 'sphere' has towers of ours")
        return
    arch = config.arch
    if arch.image_size % arch.patch_size:
        raise UserError(f"patch size {arch.patch_size} does not divide image size {arch.image_size}")
    for tower, width, heads in (
        ("vision", arch.vision_width, arch.vision_heads),
        ("text", arch.text_width, arch.text_heads),
    ):
        if width % heads:
            raise UserError(f"{heads} {tower} heads do not divide {tower} width {width}")


def _check_tokens(config: ModelConfig, topology: Topology) -> None:
    count = config.tokens or topology.m
    if topology.embed_dim % count:
        raise UserError(f"--tokens {count} does not divide the {topology.embed_dim} numbers of {topology.spec}")
    if config.tokens > 1 and (config.form != "oblique" or config.projection == "reshaped"):
        one = "projection 'reshaped' reads" if config.form == "oblique" else f"form {config.form!r} has"
        raise UserError(f"{one} one class token, not --tokens {config.tokens}")
    if config.tokens == 1 and topology.m > 1 and config.projection != "reshaped":
        raise UserError(f"one class token gives the {topology.m} rows of {topology.spec} by --projection reshaped")
    own = config.registers or config.token_start != "apart" or not config.token_positions
    if own and (config.form == "clip" or config.open_clip is not None):
        raise UserError("open_clip's own towers have no registers, and one start and position of their class token")


def preprocess_of(model: DualEncoder) -> Preprocess:
    """The evaluation transform that the image tower wants; one taken over from another library brings its own.

    Examples:
        >>> from PIL import Image
        >>> from oblique_clip import create_model, model_config
        >>> from oblique_clip.model import preprocess_of
        >>> preprocess = preprocess_of(create_model(model_config("tiny", "sphere")))
        >>> preprocess(Image.new("RGB", (640, 480), "red")).shape
        torch.Size([3, 32, 32])
    """
    own: Preprocess | None = getattr(model.visual, "preprocess", None)
    return own or Preprocess(model.visual.image_size[0], model.visual.image_mean, model.visual.image_std)
