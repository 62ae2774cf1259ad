"""Models on disk: one safetensors file with the weights and, in its header, the configuration that rebuilds them."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .config import DataConfig, ModelConfig, from_json, to_json
from .data.images import Preprocess
from .errors import UserError
from .model import DualEncoder, create_model, preprocess_of, tokenizer_of
from .tokenizer import Tokenizer


class _Home(NamedTuple):
    """Functions of a module in `interop`, from the rest of an address."""

    module: str
    load: str
    """To `Loaded`."""
    config: str | None
    """To the `ModelConfig` that rebuilds the model, where there is one."""


# Models of other homes, by the beginning of their address.
ELSEWHERE = {
    "open_clip:": _Home("open_clip", "load_open_clip", "open_clip_config"),
    "clip-mtob:": _Home("clip_mtob", "load_address", None),
}
BEST, LAST = "best.safetensors", "last.safetensors"
POINT_TOLERANCE = 1e-4


class Loaded(NamedTuple):
    """A model with what its inputs go through.

    Examples:
        >>> from oblique_clip import load
        >>> loaded = load("tiny-sphere")
        >>> loaded.model.topology.spec, loaded.preprocess.image_size, loaded.tokenizer.context_length
        ('sphere(128)', 32, 32)
    """

    model: DualEncoder
    preprocess: Preprocess
    tokenizer: Tokenizer


def save_model(
    model: DualEncoder, config: ModelConfig, path: Path, data: DataConfig | None = None, half: bool = False
) -> None:
    """Write weights and configuration, complete or not at all: a temporary file, synced, then renamed.

    Args:
        data: what the model was trained on, so that it is never judged on that.
        half: store matrices in float16, half the size; the rest stays in float32.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip import create_model, load, model_config
        >>> from oblique_clip.checkpoint import save_model
        >>> config = model_config("tiny", "sphere", topology="sphere(128)/geodesic")
        >>> path = Path(tempfile.mkdtemp()) / "fresh.safetensors"
        >>> save_model(create_model(config), config, path)
        >>> load(path).model.topology.spec  # the file says how to rebuild the model
        'sphere(128)/geodesic'
    """
    weights = {name: _stored(value, half) for name, value in model.state_dict().items()}
    metadata = {"config": json.dumps(to_json(config)), "logit_bias": json.dumps(model.logit_bias is not None)}
    if model.temperature.calibrated is not None:
        metadata["calibrated_scale"] = json.dumps(model.temperature.calibrated)
    if data is not None:
        metadata["data"] = json.dumps(to_json(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file(weights, unfinished, metadata)
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)


def _stored(value: torch.Tensor, half: bool) -> torch.Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if half and value.ndim >= 2 else value


def load(source: str | Path, device: str | torch.device = "cpu") -> Loaded:
    """A model in evaluation mode, its preprocessing and its tokenizer.

    Args:
        source: a run folder (its best checkpoint, or the last where there is no best), a folder of
            `hub.save_pretrained`, a checkpoint file, or the name of a shipped model, `tiny-sphere` or `tiny-oblique`.
            Or from elsewhere: `open_clip:NAME/TAG` or `open_clip:NAME/FILE`, `clip-mtob:FILE,VOCABULARY`,
            `hf:USER/NAME`; see `interop`.

    Raises:
        UserError: where there is no checkpoint, it is damaged, or its configuration is not known here.

    Examples:
        >>> from oblique_clip import load
        >>> model, preprocess, tokenizer = load("tiny-oblique")
        >>> points = model.encode_text(tokenizer(["red apple", "green apple", "dog"]))
        >>> points.shape  # for each caption eight unit vectors of sixteen numbers
        torch.Size([3, 8, 16])
        >>> model.topology.similarity(points, points).double().round(decimals=1).tolist()  # in [-8, 8]
        [[8.0, 5.1, 0.5], [5.1, 8.0, 1.3], [0.5, 1.3, 8.0]]
    """
    if prefix := home_of(source):
        loaded = _from_home(source, prefix, ELSEWHERE[prefix].load)
        return Loaded(loaded.model.to(device).eval(), loaded.preprocess, loaded.tokenizer)
    path = _find(Path(source))
    header = _header(path)
    config = _config_in(header, path)
    model = create_model(config, pretrained=False)
    if header.get("logit_bias") and model.logit_bias is None:
        model.logit_bias = torch.nn.Parameter(torch.zeros(()))
    try:
        model.load_state_dict({name: value.float() for name, value in _weights(path).items()})
    except RuntimeError as error:
        raise UserError(
            f"{path}: weights do not fit the configuration: {str(error).splitlines()[-1].strip()}"
        ) from error
    check_points(model, path)
    model.temperature.calibrated = header.get("calibrated_scale")
    model.to(device).eval()
    return Loaded(model, preprocess_of(model), tokenizer_of(config))


def home_of(source: str | Path) -> str | None:
    """The beginning of an address in `ELSEWHERE`, or None."""
    return next((prefix for prefix in ELSEWHERE if str(source).startswith(prefix)), None)


def _from_home(source: str | Path, prefix: str, function: str) -> Any:
    module = importlib.import_module(f".interop.{ELSEWHERE[prefix].module}", __package__)
    return getattr(module, function)(str(source).removeprefix(prefix))


def config_of(source: str | Path) -> ModelConfig:
    """The settings in the header of a checkpoint, named as for `load`, or those that rebuild a model of open_clip.

    Raises:
        UserError: as `load`, or for a model from elsewhere that no settings of ours describe.

    Examples:
        >>> from oblique_clip.checkpoint import config_of
        >>> config = config_of("tiny-oblique")
        >>> config.topology, config.projection, config.arch.vision_layers
        ('oblique(16,8)', 'per_token', 6)
    """
    if prefix := home_of(source):
        if (function := ELSEWHERE[prefix].config) is None:
            raise UserError(f"{source} comes from elsewhere, without a ModelConfig of this library")
        config: ModelConfig = _from_home(source, prefix, function)
        return config
    path = _find(Path(source))
    return _config_in(_header(path), path)


def _config_in(header: dict[str, Any], path: Path) -> ModelConfig:
    if "config" not in header:
        raise UserError(f"{path} has no oblique_clip configuration in its header")
    return from_json(ModelConfig, header["config"], f"{path} (header)")


def data_of(source: str | Path) -> DataConfig:
    """What a checkpoint's model was trained on, and what was held out from it.

    A model from elsewhere was trained on none of the shipped set by us: the usual split says what it is judged on.

    Raises:
        UserError: as `load`, or where the checkpoint does not say.

    Examples:
        >>> from oblique_clip.checkpoint import data_of
        >>> data = data_of("tiny-oblique")
        >>> data.test_families, data.held_out_concepts  # never trained on
        (('emoji-fluent',), ('test',))
    """
    if home_of(source):
        return DataConfig()
    path = _find(Path(source))
    header = _header(path)
    if "data" not in header:
        raise UserError(f"{path} does not say what it was trained on, so nothing in the shipped set is known to be new")
    return from_json(DataConfig, header["data"], f"{path} (header)")


def _header(path: Path) -> dict[str, Any]:
    with _opened(path) as file:
        return {name: json.loads(value) for name, value in (file.metadata() or {}).items()}


def _weights(path: Path) -> dict[str, torch.Tensor]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file to be read from."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable checkpoint: {error}") from error


def fingerprint(model: torch.nn.Module) -> str:
    """A short digest of all weights, which tells two models of one name apart.

    Examples:
        >>> from oblique_clip import load
        >>> from oblique_clip.checkpoint import fingerprint
        >>> fingerprint(load("tiny-oblique").model) == fingerprint(load("tiny-sphere").model)
        False
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_points(model: torch.nn.Module, where: object) -> None:
    """Refuse parameters that should be points on a manifold and are not."""
    import geoopt

    for name, parameter in model.named_parameters():
        if isinstance(parameter, geoopt.ManifoldParameter):
            drift = (parameter.manifold.projx(parameter) - parameter).abs().max().item()
            if not drift <= POINT_TOLERANCE:
                raise UserError(f"{where}: {name} is off its manifold by {drift:.1e} (at most {POINT_TOLERANCE:.0e})")


def _find(source: Path) -> Path:
    if source.is_file():
        return source
    if str(source).startswith("hf:"):
        from .interop.hub import model_file

        return model_file(str(source))
    shipped = Path(str(resources.files("oblique_clip.data").joinpath(f"assets/{source.name}.safetensors")))
    if len(source.parts) == 1 and not source.exists() and shipped.is_file():
        return shipped
    for place in (f"checkpoints/{BEST}", f"checkpoints/{LAST}", "model.safetensors"):
        if (source / place).is_file():
            return source / place
    if not source.exists():
        hint = f"; of the hub it would be hf:{source}" if len(source.parts) == 2 and not source.is_absolute() else ""
        raise UserError(f"no such checkpoint or run folder: {source}{hint}")
    raise UserError(f"{source} has no checkpoints/{BEST}, checkpoints/{LAST} or model.safetensors")
