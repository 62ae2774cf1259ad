"""Models on disk: one safetensors file with the weights and, in its header, the configuration that rebuilds them."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .config import DataConfig, ModelConfig, from_json, read_json, to_json
from .data.images import Preprocess
from .distributed import whole
from .errors import UserError
from .files import put_in_place
from .manifold import drift_of
from .model import DualEncoder, create_model, preprocess_of, tokenizer_of
from .tokenizer import Tokenizer
from .weights_file import first_bytes, is_torch, read_state_dict, why_unreadable


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
# Keys of what a file says beside its weights, each with JSON.
HEADER = ("config", "calibrated_scale", "data", "step")
# Addresses of what becomes a local file, by their beginning: a module in `interop`, and its function to the file.
FETCHED = {"hf:": ("hub", "model_file")}
BEST, LAST = "best.safetensors", "last.safetensors"
# In a folder of `hub.save_pretrained`; what torch saved beside a config.json is read as well.
WEIGHTS, PICKLED, SETTINGS = "model.safetensors", "pytorch_model.bin", "config.json"
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
    model: DualEncoder,
    config: ModelConfig,
    path: Path,
    data: DataConfig | None = None,
    half: bool = False,
    write: bool = True,
    step: int | None = None,
) -> None:
    """Write weights and configuration, complete or not at all: a temporary file, synced, then renamed.

    Args:
        data: what the model was trained on, so that it is never judged on that.
        half: store matrices in float16, half the size; the rest stays in float32.
        write: whether this process writes; every rank that has a part of the weights has to call.
        step: of training, that the weights are of; see `step_of`.

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
    weights = {name: _stored(whole(value), half) for name, value in model.state_dict().items()}
    if not write:
        return
    metadata = {"config": json.dumps(to_json(config))}
    if model.temperature.calibrated is not None:
        metadata["calibrated_scale"] = json.dumps(model.temperature.calibrated)
    if data is not None:
        metadata["data"] = json.dumps(to_json(data))
    if step is not None:
        metadata["step"] = json.dumps(step)
    write_tensors(path, weights, metadata)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file, complete or not at all: under another name, synced, then renamed.

    Raises:
        OSError: where it cannot be written, as on a full disk; a file that was there before is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, unfinished, header)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        put_in_place(unfinished, path)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        raise error if isinstance(error, OSError) else _os_error(error, path) from error


def _os_error(error: Exception, path: Path) -> OSError:
    """What safetensors says in words, "I/O error: No space left on device (os error 28)", as Python says it."""
    number = re.search(r"os error (\d+)", str(error))
    code = int(number[1]) if number else errno.EIO
    return OSError(code, os.strerror(code), str(path))


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
        loaded = _interop(source, prefix, ELSEWHERE[prefix].module, ELSEWHERE[prefix].load)
        return Loaded(loaded.model.to(device).eval(), loaded.preprocess, loaded.tokenizer)
    path = _find(Path(source))
    header = _header(path)
    config = _config_in(header, path)
    model, weights = create_model(config, pretrained=False), _weights(path)
    # One that came with the loss is not in the configuration.
    if "logit_bias" in weights and model.logit_bias is None:
        model.logit_bias = torch.nn.Parameter(torch.zeros(()))
    try:
        model.load_state_dict({name: value.float() for name, value in weights.items()})
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


def _interop(source: str | Path, prefix: str, module: str, function: str) -> Any:
    """What a function of a module in `interop` gives of the rest of an address."""
    return getattr(importlib.import_module(f".interop.{module}", __package__), function)(
        str(source).removeprefix(prefix)
    )


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
            raise UserError(
                f"{source} is of an architecture that no ModelConfig describes, so that no run or folder of ours could "
                "hold it: evaluate, embed, search and explain take it, to_open_clip takes its model"
            )
        config: ModelConfig = _interop(source, prefix, ELSEWHERE[prefix].module, function)
        return config
    path = _find(Path(source))
    return _config_in(_header(path), path)


def _config_in(header: dict[str, Any], path: Path) -> ModelConfig:
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


def step_of(source: str | Path) -> int | None:
    """The step of training that a checkpoint is of, named as for `load`; None where it does not say."""
    step: int | None = _header(_find(Path(source))).get("step")
    return step


def _header(path: Path) -> dict[str, Any]:
    """What stands beside the weights, at least a configuration.

    Raises:
        UserError: for a file that has none, so that it is not ours.
    """
    if path.name == PICKLED and (settings := path.with_name(SETTINGS)).is_file():
        return {"config": read_json(settings)}
    with _opened(path) as file:
        metadata = file.metadata() or {}
    try:
        header = {name: json.loads(metadata[name]) for name in HEADER if name in metadata}
    except ValueError:
        header = {}
    if not isinstance(header.get("config"), dict):
        raise _foreign(path)
    return header


def _foreign(path: Path) -> UserError:
    return UserError(
        f"{path} is no checkpoint of oblique_clip: load it as open_clip:NAME/{path}, clip-mtob:{path},VOCABULARY, or "
        f"(image tower) --pretrained {path}"
    )


def _weights(path: Path) -> dict[str, torch.Tensor]:
    if path.name == PICKLED:
        return read_state_dict(path)
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file to be read from."""
    start = first_bytes(path)
    if is_torch(start):
        raise _foreign(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} {why_unreadable(start, error)}") from error


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
            drift = drift_of(parameter)
            if not drift <= POINT_TOLERANCE:
                raise UserError(f"{where}: {name} is off its manifold by {drift:.1e} (at most {POINT_TOLERANCE:.0e})")


def _find(source: Path) -> Path:
    if source.is_file():
        return source
    for prefix, (module, function) in FETCHED.items():
        if str(source).startswith(prefix):
            path: Path = _interop(source, prefix, module, function)
            return path
    shipped = Path(str(resources.files("oblique_clip.data").joinpath(f"assets/{source.name}.safetensors")))
    if len(source.parts) == 1 and not source.exists() and shipped.is_file():
        return shipped
    for place in (f"checkpoints/{BEST}", f"checkpoints/{LAST}", WEIGHTS, PICKLED):
        if (source / place).is_file():
            return source / place
    if not source.exists():
        hint = f"; of the hub it would be hf:{source}" if len(source.parts) == 2 and not source.is_absolute() else ""
        raise UserError(f"no such checkpoint or run folder: {source}{hint}")
    raise UserError(f"{source} has no checkpoints/{BEST}, checkpoints/{LAST} or {WEIGHTS}")
