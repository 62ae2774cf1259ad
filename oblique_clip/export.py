"""`oblique-clip export`: both towers as files that run without this library, by ONNX runtimes or by torch.export.

`image.onnx` takes `images` (B, 3, H, H), normalised, `text.onnx` token `ids` (B, L), padded with 0; both give `points`
(B, m, n), for any B and any L from 2 up to the context. What else is needed to use them, from the tokenizer to the
scale of the logits, stands as JSON under `oblique_clip` in the metadata of each file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .checkpoint import Loaded, config_of, load
from .config import ModelConfig, check_folder, to_json, write_json
from .device import pick_device
from .errors import UserError
from .interop.open_clip import cut_of
from .model import DualEncoder
from .tokenizer import PAD_ID
from .topology import Topology

OPSET = 18
KEY = "oblique_clip"
TOLERANCE = 1e-4
"""Largest relative Frobenius difference between an exported tower and the model."""
TWO_GIB = 2**31
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExportConfig:
    """Write both towers as ONNX or torch.export files, with a batch of any size.

    Examples:
        >>> from pathlib import Path
        >>> from oblique_clip.export import ExportConfig
        >>> ExportConfig("runs/mine", out=Path("exported")).format
        'onnx'
    """

    model: Annotated[str, tyro.conf.Positional]
    """A run folder, a checkpoint file, a shipped model, or from elsewhere open_clip:NAME/TAG or hf:USER/NAME."""
    out: Path = Path("export")
    """Folder for image and text as .onnx or .pt2 files, config.json, and the vocabulary where it is the library's."""
    format: Literal["onnx", "torch"] = "onnx"
    """`onnx` (operator set 18) for ONNX runtimes, or `torch` for torch.export.load."""
    device: str = "cpu"
    """auto, cpu, cuda, cuda:N or mps: where a file of torch.export will run; ONNX files run anywhere."""


class _Points(nn.Module):
    """One tower up to points, without the other's weights."""

    def __init__(self, tower: nn.Module, topology: Topology) -> None:
        super().__init__()
        self.tower, self.topology = tower, topology

    def forward(self, batch: Tensor) -> Tensor:
        return self.topology.project(self.tower(batch))


def export(config: ExportConfig) -> dict[str, float | None]:
    """Export as configured, then run each file on a batch of another size.

    Returns:
        For each file its relative Frobenius difference from the model; None where onnxruntime is not installed.

    Raises:
        UserError: for a model that cannot be read, a missing package, or where `out` is a run folder.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip import create_model, model_config
        >>> from oblique_clip.checkpoint import save_model
        >>> from oblique_clip.config import Architecture
        >>> from oblique_clip.export import ExportConfig, export
        >>> mine, out = (Path(tempfile.mkdtemp()) / name for name in ("mine.safetensors", "exported"))
        >>> config = model_config("tiny", "oblique", arch=Architecture(vision_layers=1, text_layers=1))
        >>> save_model(create_model(config), config, mine)
        >>> differences = export(ExportConfig(str(mine), out, format="torch"))
        >>> sorted(path.name for path in out.iterdir())
        ['config.json', 'image.pt2', 'text.pt2', 'tokenizer.json']
        >>> max(differences.values()) < 1e-4  # of the files' points from the model's
        True
    """
    check_folder(config.out)
    if (config.out / "checkpoints").is_dir():
        raise UserError(f"{config.out} is a run folder, whose config.json would be lost: give another --out")
    if config.format == "onnx":
        _require_onnx()
    loaded, settings = load(config.model, pick_device(config.device)), config_of(config.model)
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / "config.json", to_json(settings))
    if settings.arch.tokenizer == "tiny":
        vocabulary = resources.files("oblique_clip.data").joinpath("assets/tokenizer.json")
        with resources.as_file(vocabulary) as path:
            shutil.copyfile(path, config.out / "tokenizer.json")
    facts = describe_use(loaded, settings)
    differences: dict[str, float | None] = {}
    for name, program in {"image": export_image(loaded.model), "text": export_text(loaded.model)}.items():
        path = config.out / (f"{name}.onnx" if config.format == "onnx" else f"{name}.pt2")
        run = (save_onnx if config.format == "onnx" else save_torch)(program, path, facts)
        differences[path.name] = None if run is None else _difference(run, loaded, name)
    return differences


def describe_use(loaded: Loaded, settings: ModelConfig) -> dict[str, Any]:
    """What somebody with the files alone needs to know of pixels, tokens and logits.

    Examples:
        >>> from oblique_clip import load
        >>> from oblique_clip.checkpoint import config_of
        >>> from oblique_clip.export import describe_use
        >>> facts = describe_use(load("tiny-oblique"), config_of("tiny-oblique"))
        >>> facts["topology"], facts["image_size"], facts["tokenizer"], facts["end_id"]
        ('oblique(16,8)', 32, 'tiny', 4095)
    """
    model, preprocess, tokenizer = loaded
    return {
        "topology": model.topology.spec,
        "point_shape": list(model.topology.point_shape),
        "scale": model.temperature.scale.item(),
        "calibrated_scale": model.temperature.calibrated,
        "bias": None if model.logit_bias is None else model.logit_bias.item(),
        "image_size": int(preprocess.image_size),
        # From a picture of any size to a square, in open_clip's words, and from one square to another.
        **asdict(cut_of(preprocess)),
        "square_interpolation": preprocess.interpolation,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "tokenizer": f"open_clip:{settings.open_clip}" if settings.open_clip else settings.arch.tokenizer,
        "context_length": model.context_length,
        "pad_id": PAD_ID,
        # Of the tokenizers of CLIP's kind; open_clip has others.
        "end_id": tokenizer.vocab_size - 1 if hasattr(tokenizer, "vocab_size") else None,
    }


def export_image(model: DualEncoder) -> ExportedProgram:
    """Images (B, 3, H, H) to points, for any B from 1.

    Examples:
        >>> import torch
        >>> from oblique_clip import create_model, model_config
        >>> from oblique_clip.config import Architecture
        >>> from oblique_clip.export import export_image
        >>> model = create_model(model_config("tiny", "oblique", arch=Architecture(vision_layers=1)))
        >>> program = export_image(model.eval())
        >>> program.module()(torch.zeros(5, 3, 32, 32)).shape  # any number of pictures
        torch.Size([5, 8, 16])
    """
    images = torch.zeros(2, 3, *model.visual.image_size, device=_device_of(model))
    return _export(model, model.visual, images, {0: Dim("batch", min=1)})


def export_text(model: DualEncoder) -> ExportedProgram:
    """Token ids (B, L) to points, for any B from 1 and L from 2 to the context length.

    Examples:
        >>> import torch
        >>> from oblique_clip import create_model, model_config
        >>> from oblique_clip.config import Architecture
        >>> from oblique_clip.export import export_text
        >>> model = create_model(model_config("tiny", "oblique", arch=Architecture(text_layers=1)))
        >>> program = export_text(model.eval())
        >>> program.module()(torch.tensor([[5, 9, 4095]])).shape  # any number of captions, of any length
        torch.Size([1, 8, 16])
    """
    length = Dim("length", min=2, max=model.context_length)
    ids = torch.ones(2, min(5, model.context_length), dtype=torch.long, device=_device_of(model))
    return _export(model, model.text, ids, {0: Dim("batch", min=1), 1: length})


def _device_of(model: DualEncoder) -> torch.device:
    return next(model.parameters()).device


def _export(model: DualEncoder, tower: nn.Module, example: Tensor, dynamic: dict[int, Any]) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(
            _Points(tower, model.topology).eval(), (example,), dynamic_shapes=(dynamic,), strict=True
        )


def save_torch(program: ExportedProgram, path: Path, facts: dict[str, Any]) -> Run:
    """Write a program, and give what the written file computes."""
    torch.export.save(program, path, extra_files={KEY: json.dumps(facts)})
    return torch.export.load(path).module()


def save_onnx(program: ExportedProgram, path: Path, facts: dict[str, Any]) -> Run | None:
    """Write a program as ONNX, and give what the written file computes; None where onnxruntime is not installed.

    Weights lie in the file, or beside it as `<name>.data` where they exceed the 2 GiB that one file can hold.
    """
    inputs = "images" if path.stem == "image" else "ids"
    written = torch.onnx.export(
        program, (), input_names=[inputs], output_names=["points"], opset_version=OPSET, dynamo=True, verbose=False
    )
    assert written is not None
    written.model.metadata_props[KEY] = json.dumps({**facts, "opset": OPSET})
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    written.save(path, external_data=size > TWO_GIB * 0.9)
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {inputs: batch.cpu().numpy()})[0])


@torch.no_grad()
def _difference(run: Run, loaded: Loaded, tower: str) -> float:
    """Of an exported tower from the model, on three pictures of noise or captions of different lengths."""
    model, tokenizer = loaded.model, loaded.tokenizer
    if tower == "image":
        batch = torch.randn(3, 3, *model.visual.image_size, generator=torch.Generator().manual_seed(0))
        batch = batch.to(_device_of(model))
        expected = model.encode_image(batch)
    else:
        batch = tokenizer(["a red apple", "cat", "a drawing of a house by the sea, seen from above"])
        batch = batch.to(_device_of(model))
        expected = model.encode_text(batch)
    difference = float((run(batch).to(expected) - expected).norm() / expected.norm())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the exported {tower} tower differs from the model by {difference:.1e}")
    return difference


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("--format onnx needs onnx and onnxscript: pip install 'oblique-clip[onnx]'") from error
