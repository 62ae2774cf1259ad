"""Pixels on their way into a model: files to RGB squares, squares to normalised batches, and training's augmentation.

Squares are uint8 (B, 3, H, H); what a tower takes is float32 (B, 3, S, S), normalised by its mean and deviation.
"""

from __future__ import annotations

import io
import math
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from ..device import send
from .faults import BadSample

# What readers of pictures raise for a file that is none, be they ours (`BadSample`) or another library's.
READ_ERRORS = (OSError, ValueError)

# Pillow hands these to another program: Ghostscript, or what Windows has.
HANDED_ON = ("EPS", "WMF")
# Above so many Pillow warns of a decompression bomb. Such a picture is refused here before it is decoded.
MAX_PIXELS = 89_478_485
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image, upright by its EXIF tag, in RGB; transparent parts become white.

    Examples:
        >>> from PIL import Image
        >>> from oblique_clip.data.images import to_rgb
        >>> to_rgb(Image.new("RGBA", (8, 8), (255, 0, 0, 0))).getpixel((0, 0))  # a transparent red
        (255, 255, 255)
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would cut 16 bits off at 255: nearly all of such a picture would be white.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def middle_square(image: Image.Image, side: int) -> Image.Image:
    """The middle square of an RGB image's shorter side, resized.

    Examples:
        >>> from PIL import Image
        >>> from oblique_clip.data.images import middle_square
        >>> picture = Image.new("RGB", (30, 10), "red")
        >>> picture.paste("blue", (8, 0, 22, 10))
        >>> middle_square(picture, 4).getcolors()  # pixels of each colour
        [(16, (0, 0, 255))]
    """
    # Pillow's bilinear filter widens with the reduction, as `Preprocess.batch` does: both ways give the same pixels.
    return ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)


class Side(int):
    """Pixels of a square's side, with another way to bring an RGB image of any size to it than `middle_square`.

    It is passed wherever a side is, so that no source of pictures has to know of other libraries' ways.

    Examples:
        >>> from PIL import Image
        >>> from oblique_clip.data.images import Side, decode_square
        >>> picture = Image.new("RGB", (64, 32), "red")
        >>> picture.paste("blue", (0, 0, 8, 32))
        >>> squeezed = Side(16, lambda image, pixels: image.resize((pixels, pixels)))
        >>> decode_square(picture, 16)[:, 0, 0].tolist(), decode_square(picture, squeezed)[:, 0, 0].tolist()
        ([255, 0, 0], [0, 0, 255])
    """

    cut: Callable[[Image.Image, int], Image.Image]

    def __new__(cls, pixels: int, cut: Callable[[Image.Image, int], Image.Image]) -> Side:
        side = super().__new__(cls, pixels)
        side.cut = cut
        return side

    def __reduce__(self) -> tuple[type[Side], tuple[int, Callable[[Image.Image, int], Image.Image]]]:
        # An integer would be copied without its second argument.
        return Side, (int(self), self.cut)


def decode_square(source: bytes | Path | Image.Image, side: int) -> Tensor:
    """An image as uint8 (3, side, side): its `middle_square`, or what a `Side` says.

    Raises:
        BadSample: for a file that is missing, empty, cut short, no picture, or of more than `MAX_PIXELS`.

    Examples:
        >>> from PIL import Image
        >>> from oblique_clip.data.images import decode_square
        >>> square = decode_square(Image.new("RGB", (640, 480), "red"), 32)
        >>> square.shape, square.dtype, square[:, 0, 0].tolist()
        (torch.Size([3, 32, 32]), torch.uint8, [255, 0, 0])
    """
    try:
        image = to_rgb(source) if isinstance(source, Image.Image) else _read(source)
    except BadSample:
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything, struct.error for one
        raise BadSample(_cause(error), error) from error
    image = (side.cut if isinstance(side, Side) else middle_square)(image, int(side))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@cache
def formats() -> tuple[str, ...]:
    """What Pillow reads by itself, whatever a file is called."""
    Image.init()
    return tuple(kind for kind in Image.OPEN if kind not in HANDED_ON)


def _read(source: bytes | Path) -> Image.Image:
    if isinstance(source, bytes):
        size = len(source)
    else:
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):  # a named pipe would be waited for, a device never ends
            raise BadSample("unreadable image", "no regular file")
        size = status.st_size
    if not size:
        raise BadSample("empty file")
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats()) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise BadSample("image too large", f"{opened.width} x {opened.height} pixels")
        return to_rgb(opened)


def _cause(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing image"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "image too large"
    # Pillow has no exception of its own for it.
    return "truncated image" if "truncated" in str(error).lower() else "unreadable image"


@dataclass(frozen=True)
class Preprocess:
    """The deterministic transform of evaluation, as a tower wants it.

    Called on a PIL image it gives (3, S, S); `batch` does the same for uint8 squares of any side.

    Examples:
        >>> import torch
        >>> from PIL import Image
        >>> from oblique_clip.data.images import Preprocess
        >>> preprocess = Preprocess(32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> image = preprocess(Image.new("RGB", (640, 480), "white"))
        >>> image.shape, image.unique().tolist()
        (torch.Size([3, 32, 32]), [1.0])
        >>> preprocess.batch(torch.zeros(8, 3, 64, 64, dtype=torch.uint8)).shape
        torch.Size([8, 3, 32, 32])
    """

    image_size: int
    """A `Side` where files are not cut to their middle square."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Of squares whose side is another, within 1/255 of Pillow's: bicubic is rounded as there, bilinear is not."""

    def __call__(self, image: Image.Image) -> Tensor:
        return self.batch(decode_square(image, self.image_size)[None])[0]

    def batch(self, squares: Tensor) -> Tensor:
        """uint8 (B, 3, H, H) to float32 (B, 3, S, S), resized with antialiasing where sizes differ."""
        pixels = squares.float()
        if squares.shape[-1] != self.image_size:
            side = int(self.image_size)
            if self.interpolation == "bicubic":
                # Its weights overshoot at edges; Pillow cuts that off between the rows and the columns, and rounds.
                rows = _resize(pixels, (pixels.shape[-2], side), "bicubic").round().clamp(0, 255)
                pixels = _resize(rows, (side, side), "bicubic").round().clamp(0, 255)
            else:
                pixels = _resize(pixels, (side, side), "bilinear")
        return self.normalize(pixels)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 255] to the tower's mean and deviation."""
        mean, std = (send(pixels.new_tensor(colours, device="cpu"), pixels.device) for colours in (self.mean, self.std))
        return (pixels - mean.view(3, 1, 1) * 255) / (std.view(3, 1, 1) * 255)


def _resize(pixels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return F.interpolate(pixels, size, mode=mode, antialias=True, align_corners=False)


@dataclass(frozen=True)
class Augmentation:
    """Training's random view of a batch: one affine resampling (crop, aspect, rotation), then colour.

    No flip: captions speak of left and right.

    Examples:
        >>> import torch
        >>> from oblique_clip.data.images import Augmentation
        >>> squares = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
        >>> draws = Augmentation.draw(4, seed=0)
        >>> pixels = Augmentation()(squares, 32, draws)
        >>> pixels.shape, torch.equal(pixels, Augmentation()(squares, 32, draws))  # one seed, one view
        (torch.Size([4, 3, 32, 32]), True)
        >>> still = Augmentation(min_area=1.0, max_aspect=1.0, max_degrees=0.0, jitter=0.0)
        >>> torch.allclose(still(squares, 64, draws), squares.float(), atol=0.01)
        True
    """

    min_area: float = 0.5
    """Smallest share of the picture that a crop keeps."""
    max_aspect: float = 1.2
    """Largest ratio of the sides that a crop stretches."""
    max_degrees: float = 10.0
    """Largest rotation either way."""
    jitter: float = 0.3
    """Largest relative change of brightness, contrast and saturation."""

    @staticmethod
    def draw(count: int, seed: int) -> Tensor:
        """What decides the views of so many pictures, (count, 8) on the CPU: a function of `seed` alone."""
        return torch.rand(count, 8, generator=torch.Generator().manual_seed(seed))

    def __call__(self, squares: Tensor, size: int, draws: Tensor) -> Tensor:
        """uint8 (B, 3, H, H) to pixels (B, 3, size, size) in [0, 255], by the (B, 8) of `draw` on the same device."""
        pixels = F.grid_sample(
            squares.float(),
            F.affine_grid(self._affine(draws[:, :5]), [len(squares), 3, size, size], align_corners=False),
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )
        return self._colour(pixels, draws[:, 5:])

    def _affine(self, draws: Tensor) -> Tensor:
        """Maps from output to input coordinates, (B, 2, 3), both in [-1, 1]."""
        area = self.min_area + (1 - self.min_area) * draws[:, 0]
        stretch = torch.exp((2 * draws[:, 1] - 1) * math.log(self.max_aspect) / 2)
        width, height = (area.sqrt() * stretch).clamp(max=1), (area.sqrt() / stretch).clamp(max=1)
        angle = (2 * draws[:, 2] - 1) * math.radians(self.max_degrees)
        shift_x, shift_y = (2 * draws[:, 3] - 1) * (1 - width), (2 * draws[:, 4] - 1) * (1 - height)
        cos, sin = angle.cos(), angle.sin()
        rows = [
            torch.stack([width * cos, -height * sin, shift_x], -1),
            torch.stack([width * sin, height * cos, shift_y], -1),
        ]
        return torch.stack(rows, 1)

    def _colour(self, pixels: Tensor, draws: Tensor) -> Tensor:
        brightness, contrast, saturation = (1 + self.jitter * (2 * draws - 1)).T[..., None, None, None]
        pixels = pixels * brightness
        pixels = contrast * pixels + (1 - contrast) * pixels.mean((1, 2, 3), keepdim=True)
        pixels = saturation * pixels + (1 - saturation) * pixels.mean(1, keepdim=True)
        return pixels.clamp(0, 255)


@dataclass(frozen=True)
class TrainingPixels:
    """A batch as training sees it, made slice by slice: `pixels[2:4]` is float32 (2, 3, S, S), normalised.

    Squares are a quarter of the size of what they become, and wait as they are until a micro-batch is due.

    Examples:
        >>> import torch
        >>> from oblique_clip.data.images import Augmentation, Preprocess, TrainingPixels
        >>> squares = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
        >>> preprocess = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        >>> pixels = TrainingPixels(squares, preprocess, torch.device("cpu"), Augmentation.draw(4, seed=0))
        >>> len(pixels), pixels[2:4].shape
        (4, torch.Size([2, 3, 32, 32]))
    """

    squares: Tensor
    """uint8 (B, 3, H, H), on the CPU."""
    preprocess: Preprocess
    device: torch.device
    """Where the slices are."""
    draws: Tensor | None = None
    """Of `Augmentation.draw`; None for no augmentation."""

    def __len__(self) -> int:
        return len(self.squares)

    def __getitem__(self, part: slice) -> Tensor:
        side = int(self.preprocess.image_size)
        if not len(self.squares[part]):
            # A process whose share of a batch could not be read takes the step with the others.
            return torch.zeros(0, 3, side, side, device=self.device)
        if self.draws is None:
            return self.preprocess.batch(send(self.squares[part], self.device))
        # torch before 2.11 cannot pad a sampled grid by its border on Apple's GPUs (pytorch issue 125098).
        place = torch.device("cpu") if self.device.type == "mps" else self.device
        squares, draws = send(self.squares[part], place), send(self.draws[part], place)
        pixels = Augmentation()(squares, side, draws)
        return self.preprocess.normalize(send(pixels, self.device))
