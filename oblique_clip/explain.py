"""`oblique-clip explain`: one picture with a panel for each class token, showing what its sphere looks at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import tyro
from torch import Tensor

from .checkpoint import Loaded, load
from .config import check_file
from .data.images import READ_ERRORS, Side, decode_square
from .device import pick_device
from .errors import UserError
from .figures import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from PIL import Image

# Lightness rises with the share, so that the maps read in grey as well.
COLOURS = "inferno"
SIDE = 224
"""Side in pixels that the picture is drawn at."""
LONGEST = 32
"""Letters that fit above a panel."""


@dataclass(frozen=True)
class ExplainConfig:
    """Draw what each class token, and so each sphere, looks at in a picture.

    Examples:
        >>> from pathlib import Path
        >>> from oblique_clip.explain import ExplainConfig
        >>> config = ExplainConfig(Path("runs/mine"), Path("apple.png"), out=Path("spheres.png"), rollout=True)
        >>> config.text is None, config.device
        (True, 'auto')
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, a checkpoint file, a shipped model, or from elsewhere open_clip:NAME/TAG, clip-mtob:FILE,VOCABULARY
    or hf:USER/NAME."""
    image: Annotated[Path, tyro.conf.Positional]
    """A picture; its middle square is looked at."""
    out: Path
    """File for the drawing: .png, .svg, .pdf or .jpg."""
    text: str | None = None
    """A caption: each panel then says how much its sphere adds to the similarity of picture and caption."""
    rollout: bool = False
    """Attention followed through all blocks, instead of the last block's."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


def explain(config: ExplainConfig) -> Path:
    """Draw as configured; returns the file.

    Raises:
        UserError: for a model or picture that cannot be read, a model without class tokens to look through, a topology
            without spheres where a text is given, or a file type that matplotlib lacks.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip.explain import ExplainConfig, explain
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (64, 64), "red").save(folder / "red.png")
        >>> config = ExplainConfig(Path("tiny-oblique"), folder / "red.png", folder / "spheres.svg", text="red apple")
        >>> "sphere 8" in explain(config).read_text()  # a panel for each of the eight
        True
    """
    check_file(config.out)
    _check_file_type(config.out)
    loaded = load(config.model, pick_device(config.device))
    figure = draw_attention(loaded, config.image, config.text, config.rollout)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.out, dpi=120)
    return config.out


def draw_attention(
    loaded: Loaded, image: Path | Image.Image, text: str | None = None, rollout: bool = False, name: str = ""
) -> Figure:
    """The picture as the model sees it, with a panel for each class token; see `ExplainConfig`.

    Args:
        name: above the picture; that of its file without one.

    Raises:
        UserError: for a picture that cannot be read, a model without class tokens to look through, or a topology
            without spheres where a text is given.

    Examples:
        >>> from PIL import Image
        >>> from oblique_clip import load
        >>> from oblique_clip.explain import draw_attention
        >>> figure = draw_attention(load("tiny-oblique"), Image.new("RGB", (64, 64), "red"), "red apple", name="red")
        >>> sum(axis.get_title().startswith("sphere") for axis in figure.axes)
        8
    """
    # open_clip, behind the towers, takes seconds to import: mistakes in flags are told before.
    from .attention import token_attention

    side = loaded.preprocess.image_size
    # Large enough to look at.
    picture = _read(image, Side(SIDE, side.cut) if isinstance(side, Side) else SIDE)
    images = loaded.preprocess.batch(_read(image, side)[None]).to(next(loaded.model.parameters()).device)
    maps = token_attention(loaded.model, images, rollout)[0].cpu()
    shares = None if text is None else sphere_shares(loaded, images, text)
    title = name or (image.name if isinstance(image, Path) else "picture")
    return draw(picture, maps, loaded.model.topology.m, title, text, shares)


@torch.no_grad()
def sphere_shares(loaded: Loaded, images: Tensor, text: str) -> Tensor:
    """<x_i, y_i> of the first image (1, 3, H, W) and a text, sphere by sphere, (m,); their sum is the similarity.

    Raises:
        UserError: for a topology that is no product of spheres.

    Examples:
        >>> from PIL import Image
        >>> from oblique_clip import load
        >>> from oblique_clip.explain import sphere_shares
        >>> loaded = load("tiny-oblique")
        >>> images = loaded.preprocess(Image.new("RGB", (64, 64), "red"))[None]
        >>> shares = sphere_shares(loaded, images, "red apple")
        >>> x, y = loaded.model.encode_image(images), loaded.model.encode_text(loaded.tokenizer(["red apple"]))
        >>> len(shares), round((shares.sum() - loaded.model.topology.similarity(x, y)).abs().item(), 4)
        (8, 0.0)
    """
    model = loaded.model
    ids = loaded.tokenizer([text]).to(images.device)
    return model.topology.per_sphere(model.encode_image(images), model.encode_text(ids))[0].cpu()


def draw(
    picture: Tensor, maps: Tensor, spheres: int, name: str, text: str | None = None, shares: Tensor | None = None
) -> Figure:
    """The picture, then a panel for each token: the picture in faint grey under its map, all maps on one scale.

    Args:
        picture: uint8 (3, S, S).
        maps: (tokens, h, w), shares of attention.
        spheres: m, which the tokens are read for, each for its own or one for all.
        shares: (m,), see `sphere_shares`, where `text` is given.
    """
    from matplotlib.figure import Figure

    tokens = len(maps)
    columns = math.ceil(math.sqrt(1 + tokens))
    rows = math.ceil((1 + tokens) / columns)
    figure = Figure((2.1 * columns + 0.8, 2.45 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    first, *panels = axes
    first.imshow(picture.permute(1, 2, 0))
    first.set_title(_heading(name, text, shares), fontsize=8)
    for index, axis in enumerate(panels[:tokens]):
        overlaid = _overlay(axis, picture, maps[index], float(maps.max()))
        axis.set_title(_title(index, tokens, spheres, shares), fontsize=8)
    figure.colorbar(overlaid, ax=axes, label="share of attention", shrink=0.6)
    return figure


def _overlay(axis: Axes, picture: Tensor, shares: Tensor, top: float) -> AxesImage:
    """One map over the picture in grey; gives what a colour bar wants."""
    side = picture.shape[-1]
    grey = picture.float().mean(0)
    # In the upper half of the greys: what is dark stays readable, and lightness belongs to the map.
    axis.imshow(grey, cmap="gray", vmin=-255, vmax=255)
    extent = (-0.5, side - 0.5, side - 0.5, -0.5)
    return axis.imshow(shares, cmap=COLOURS, vmin=0, vmax=top, alpha=0.65, extent=extent, interpolation="nearest")


def _heading(name: str, text: str | None, shares: Tensor | None) -> str:
    if text is None or shares is None:
        return shortened(name, LONGEST)
    return f'{shortened(name, LONGEST)}\n"{shortened(text, LONGEST - 14)}": {float(shares.sum()):+.2f} of {len(shares)}'


def _title(index: int, tokens: int, spheres: int, shares: Tensor | None) -> str:
    """A token is its sphere's; one that all spheres are read from has their sum."""
    own = tokens == spheres
    title = f"sphere {index + 1}" if own else f"all {spheres} spheres"
    return title if shares is None else f"{title}: {float(shares[index] if own else shares.sum()):+.2f}"


def _check_file_type(path: Path) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise UserError(f"--out {path}: a drawing ends in one of {', '.join(f'.{kind}' for kind in sorted(known))}")


def _read(image: Path | Image.Image, side: int) -> Tensor:
    if isinstance(image, Path) and not image.is_file():
        raise UserError(f"no such file: {image}")
    try:
        return decode_square(image, side)
    except READ_ERRORS as error:
        raise UserError(f"{image} is not a readable picture: {error}") from error
