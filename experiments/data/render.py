"""Draws SVG markup and encoded rasters onto a square RGB picture."""

from __future__ import annotations

import io

import numpy as np
import resvg_py
from PIL import Image, UnidentifiedImageError

WHITE = (255, 255, 255)
GREY = (128, 128, 128)
# Standard deviation of the pixel values (0 to 255) up to which a picture is faint, or shows nothing.
FAINT_STD = 12.0
BLANK_STD = 4.0
LONGEST_RATIO = 8
MARGIN = 2
# Alpha up to here is a shadow's edge, not part of the drawing.
FAINT_ALPHA = 8


class Unusable(Exception):
    """A picture that cannot be drawn or shows nothing; the message is the cause, short enough to count by."""


def draw(picture: str | bytes, size: int, crop: bool = False) -> Image.Image:
    """The picture centred on a size x size RGB square, on white or, where it is white itself, on grey.

    With `crop` the transparent border goes first and a margin of two pixels stays. Raises Unusable.
    """
    try:
        if isinstance(picture, str):
            # Cropping enlarges what is left, so there is more to start from.
            image = rasterise(picture, 4 * size if crop else size)
        else:
            image = Image.open(io.BytesIO(picture)).convert("RGBA")
    except UnidentifiedImageError:
        raise Unusable("unknown raster format") from None
    except (ValueError, OSError) as error:
        raise Unusable(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:60]) from error
    if crop:
        image = crop_to_drawing(image)
    return on_background(shrink(image, size - 2 * MARGIN if crop else size), size)


def rasterise(markup: str, pixels: int) -> Image.Image:
    """SVG markup as an RGBA picture `pixels` wide, or as high where it would be more than twice that."""
    image = open_svg(markup, width=pixels)
    return open_svg(markup, height=pixels) if image.height > 2 * pixels else image


def open_svg(markup: str, width: int | None = None, height: int | None = None) -> Image.Image:
    """SVG markup as RGBA; without system fonts, so that every machine draws the same."""
    data = resvg_py.svg_to_bytes(svg_string=markup, width=width, height=height, dpi=96, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")


def crop_to_drawing(image: Image.Image) -> Image.Image:
    """The part of an RGBA picture that is not transparent."""
    alpha = np.asarray(image.getchannel("A"))
    rows, columns = np.nonzero(alpha > FAINT_ALPHA)
    if rows.size == 0:
        raise Unusable("blank")
    return image.crop((int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))


def shrink(image: Image.Image, longest: int) -> Image.Image:
    """The picture resized (up too) so that its longer side has `longest` pixels."""
    width, height = image.size
    if max(width, height) > LONGEST_RATIO * max(1, min(width, height)):
        raise Unusable("sliver")
    factor = longest / max(width, height)
    new_size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return image.resize(new_size, Image.Resampling.LANCZOS)


def on_background(image: Image.Image, size: int) -> Image.Image:
    """An RGBA picture centred on white, or on grey where hardly anything shows on white."""
    corner = ((size - image.width) // 2, (size - image.height) // 2)
    for colour, least in ((WHITE, FAINT_STD), (GREY, BLANK_STD)):
        canvas = Image.new("RGBA", (size, size), (*colour, 255))
        canvas.alpha_composite(image, corner)
        flat = canvas.convert("RGB")
        if np.asarray(flat, dtype=np.float32).std() > least:
            return flat
    raise Unusable("blank")
