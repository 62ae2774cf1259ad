"""Pixels: any file becomes the RGB a viewer shows, evaluation has one transform, augmentation stays inside."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from oblique_clip.data.images import Augmentation, Preprocess, TrainingPixels, decode_square

JPEG = 12.0
"""Largest error of a flat colour through JPEG, in grey levels of 255."""
LEVEL = 1.001
"""One grey level of 255: what rounding to uint8, twice at most, may cost."""
FLOAT = 1e-5
"""Relative error of float32 arithmetic on a few numbers."""
RESAMPLED = 1e-2
"""Error of bilinear sampling at the pixel centres themselves, in grey levels of 255."""

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IDENTITY = Augmentation(min_area=1, max_aspect=1, max_degrees=0, jitter=0)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def view(augmentation: Augmentation, squares: Tensor, size: int, seed: int) -> Tensor:
    return augmentation(squares, size, Augmentation.draw(len(squares), seed))


def quadrants(width: int = 32, height: int = 32) -> Image.Image:
    """Red, green above blue, white."""
    image = Image.new("RGB", (width, height), "white")
    w, h = width // 2, height // 2
    for colour, x, y in (("red", 0, 0), ("lime", w, 0), ("blue", 0, h)):
        image.paste(colour, (x, y, x + w, y + h))
    return image


def corners(square: Tensor) -> list[list[int]]:
    """Colours near the four corners: top left, top right, bottom left, bottom right."""
    side = square.shape[-1]
    near, far = side // 8, side - 1 - side // 8
    return [square[:, y, x].tolist() for y, x in ((near, near), (near, far), (far, near), (far, far))]


RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_transparent_parts_are_white(kind: str) -> None:
    image = quadrants().convert("RGBA")
    image.paste((0, 0, 0, 0), (16, 0, 32, 16))
    options = {"lossless": True} if kind == "WEBP" else {}
    found = corners(decode_square(encoded(image, kind, **options), 32))
    assert found == [RED, WHITE, BLUE, WHITE]


def test_half_transparent_parts_are_half_way_to_white() -> None:
    square = decode_square(encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 51)), "PNG"), 8)
    assert square[:, 4, 4].tolist() == [255, 204, 204]


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_a_transparent_colour_named_by_the_file_is_white(mode: str) -> None:
    image = Image.new("RGB", (8, 8), "black")
    image.paste((200, 200, 200), (0, 0, 4, 8))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    transparent: Any = image.getpixel((7, 7))
    square = decode_square(encoded(image, "PNG", transparency=transparent), 8)
    assert square[:, 4, 7].tolist() == WHITE
    assert square[:, 4, 0].tolist() == [200, 200, 200]


@pytest.mark.parametrize(
    ("tag", "shown"),
    [
        (1, [RED, GREEN, BLUE, WHITE]),
        (2, [GREEN, RED, WHITE, BLUE]),
        (3, [WHITE, BLUE, GREEN, RED]),
        (6, [BLUE, RED, WHITE, GREEN]),
        (8, [GREEN, WHITE, RED, BLUE]),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_stands_upright_by_its_exif_tag(kind: str, tag: int, shown: list[list[int]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    found = corners(decode_square(encoded(quadrants(), kind, exif=exif), 32))
    assert np.abs(np.array(found) - np.array(shown)).max() <= (JPEG if kind == "JPEG" else 0)


def test_cmyk_files_show_their_colours() -> None:
    found = corners(decode_square(encoded(quadrants().convert("CMYK"), "TIFF"), 32))
    assert found == [RED, GREEN, BLUE, WHITE]
    as_jpeg = corners(decode_square(encoded(quadrants().convert("CMYK"), "JPEG", quality=95), 32))
    assert np.abs(np.array(as_jpeg) - np.array([RED, GREEN, BLUE, WHITE])).max() <= JPEG


@pytest.mark.parametrize("mode", ["P", "1", "L"])
def test_palettes_and_greys_become_rgb(mode: str) -> None:
    image = quadrants().convert(mode)
    square = decode_square(encoded(image, "PNG"), 32)
    assert np.array_equal(square.permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_sixteen_bits_keep_their_greys(kind: str, dtype: type) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64), (64, 1))
    square = decode_square(encoded(Image.fromarray(ramp.round().astype(dtype)), kind), 64)
    assert np.abs(square.numpy() - ramp / 257).max() <= LEVEL


@pytest.mark.parametrize("size", [(48, 16), (16, 48), (300, 100), (1, 40), (40, 1)])
def test_of_an_oblong_picture_the_middle_square_is_kept(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "red")
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    image.paste("blue", (left, top, left + side, top + side))
    square = decode_square(encoded(image, "PNG"), 8)
    assert square.shape == (3, 8, 8) and square.dtype == torch.uint8
    # Bilinear weights reach a little over the box's border.
    inner = square[:, 1:-1, 1:-1]
    assert side == 1 or ((inner[2] == 255).all() and (inner[0] == 0).all())


def test_a_file_its_bytes_and_its_picture_give_the_same_square(tmp_path: Path) -> None:
    data = encoded(quadrants(50, 30), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    from_bytes = decode_square(data, 16)
    assert torch.equal(decode_square(tmp_path / "a.png", 16), from_bytes)
    assert torch.equal(decode_square(Image.open(io.BytesIO(data)), 16), from_bytes)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
@settings(max_examples=60, deadline=None, database=None)
@given(data=st.data())
def test_damaged_files_raise_the_two_promised_errors_alone(kind: str, data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    content = bytearray(encoded(quadrants(), kind, **options))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content
    try:
        square = decode_square(bytes(content), 8)
    except (OSError, ValueError):
        return
    assert square.shape == (3, 8, 8)


def test_a_picture_too_large_to_be_honest_is_refused() -> None:
    header = bytearray(encoded(Image.new("RGB", (1, 1)), "BMP"))
    header[18:26] = (60_000).to_bytes(4, "little") * 2
    with pytest.raises(ValueError, match="image too large"):
        decode_square(bytes(header), 8)


def test_evaluation_treats_a_pil_picture_and_its_square_alike() -> None:
    preprocess = Preprocess(24, MEAN, STD)
    for image in (quadrants(24, 24), quadrants(70, 31), quadrants().convert("P")):
        square = decode_square(image, 24)
        assert torch.equal(preprocess(image), preprocess.batch(square[None])[0])


@pytest.mark.parametrize("size", [24, 32, 40, 100])
def test_evaluation_resizes_a_pil_picture_as_it_resizes_its_square(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    square = torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8)
    pixels = Preprocess(size, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
    gap = pixels(Image.fromarray(square.permute(1, 2, 0).numpy())) - pixels.batch(square[None])[0]
    assert gap.abs().max() <= LEVEL


def test_normalisation_is_the_one_of_a_calculation_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    squares = torch.randint(0, 256, (3, 3, 8, 8), generator=generator, dtype=torch.uint8)
    found = Preprocess(8, MEAN, STD).batch(squares)
    assert found.dtype == torch.float32
    for channel in range(3):
        by_hand = (squares[:, channel].double() / 255 - MEAN[channel]) / STD[channel]
        assert (found[:, channel] - by_hand).abs().max() <= FLOAT * by_hand.abs().max()


def test_a_smaller_square_is_the_mean_of_what_it_covers() -> None:
    """Resized with antialiasing: a fine chequerboard becomes flat grey, not one of its colours."""
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    small = Preprocess(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).batch(board.to(torch.uint8).expand(1, 3, 64, 64))
    assert (small[:, :, 2:-2, 2:-2] * 255 - 127.5).abs().max() <= LEVEL


def random_squares(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def test_augmentation_is_a_function_of_its_seed() -> None:
    squares = random_squares(8, 32)
    first = view(Augmentation(), squares, 24, 5)
    torch.manual_seed(99)
    assert torch.equal(first, view(Augmentation(), squares, 24, 5))
    assert not torch.allclose(first, view(Augmentation(), squares, 24, 6), atol=LEVEL)


def test_pictures_of_one_batch_are_augmented_apart() -> None:
    views = view(Augmentation(), random_squares(1, 32).expand(8, -1, -1, -1), 32, 0)
    gaps = (views[:, None] - views).abs().amax((2, 3, 4)) + 255 * torch.eye(8)
    assert gaps.min() > LEVEL


@settings(max_examples=30, deadline=None, database=None)
@given(
    seed=st.integers(0, 2**62),
    min_area=st.floats(0.05, 1),
    max_aspect=st.floats(1, 4),
    max_degrees=st.floats(0, 180),
    jitter=st.floats(0, 1),
)
def test_augmented_pixels_stay_in_range(
    seed: int, min_area: float, max_aspect: float, max_degrees: float, jitter: float
) -> None:
    views = view(Augmentation(min_area, max_aspect, max_degrees, jitter), random_squares(4, 16), 12, seed)
    assert views.shape == (4, 3, 12, 12)
    assert views.isfinite().all() and views.min() >= 0 and views.max() <= 255


@pytest.mark.parametrize("side", [16, 37, 64])
def test_without_any_change_asked_for_the_picture_is_reproduced(side: int) -> None:
    squares = random_squares(4, side)
    assert (view(IDENTITY, squares, side, 3) - squares.float()).abs().max() <= RESAMPLED


def test_no_view_is_a_mirror_image() -> None:
    """A view of an asymmetric picture is nearer to the picture than to its mirror image, whatever is drawn."""
    picture = decode_square(quadrants(), 32)
    views = view(Augmentation(), picture.expand(2000, -1, -1, -1), 32, 0)
    itself = (views - picture.float()).square().mean((1, 2, 3))
    for axes in ((-1,), (-2,)):
        mirrored = (views - picture.float().flip(axes)).square().mean((1, 2, 3))
        assert (itself < mirrored).all()


def coordinates(side: int) -> Tensor:
    """A picture of which each pixel tells its own place: x in red, y in green, in grey levels."""
    place = torch.arange(side, dtype=torch.float32)
    return torch.stack([place.expand(side, side), place[:, None].expand(side, side), torch.zeros(side, side)])


@pytest.mark.parametrize(("min_area", "max_aspect"), [(0.5, 1.2), (0.1, 2.0), (1.0, 3.0)])
def test_without_rotation_a_crop_is_a_box_inside_the_picture(min_area: float, max_aspect: float) -> None:
    side, count = 120, 250
    still = Augmentation(min_area, max_aspect, max_degrees=0, jitter=0)
    views = view(still, coordinates(side).to(torch.uint8).expand(count, -1, -1, -1), side, 2)
    x, y = views[:, 0, side // 2], views[:, 1, :, side // 2]
    # Steps between output pixels are the scale of the box; a box over the border would repeat the border's pixels.
    step_x, step_y = x.diff(dim=1)[:, 5:-5], y.diff(dim=1)[:, 5:-5]
    assert min(step_x.min(), step_y.min()) > 0
    for line, step in ((x, step_x), (y, step_y)):
        half = side / 2 * step.mean(1)
        centre = line.mean(1) + 0.5
        assert (centre - half).min() >= -LEVEL and (centre + half).max() <= side + LEVEL
    width, height = step_x.mean(1), step_y.mean(1)
    slack = 0.02
    assert (width * height).min() >= min(min_area, 1 / max_aspect) * (1 - slack)
    assert (width / height).max() <= max_aspect * (1 + slack) and (height / width).max() <= max_aspect * (1 + slack)


def test_crops_and_rotations_reach_what_they_are_allowed() -> None:
    """The knobs do something: over many draws the smallest crop and the largest angle come near their limits."""
    side, count = 120, 250
    squares = coordinates(side).to(torch.uint8).expand(count, -1, -1, -1)
    crops = view(replace(IDENTITY, min_area=0.5), squares, side, 0)
    area = crops[:, 0, 60, 30:90].diff(dim=1).mean(1) * crops[:, 1, 30:90, 60].diff(dim=1).mean(1)
    assert 0.48 <= area.min() <= 0.52 and 0.98 <= area.max() <= 1.02
    turned = view(replace(IDENTITY, max_degrees=10.0), squares, side, 0)
    slope = turned[:, 1, 60, 30:90].diff(dim=1).mean(1)
    angle = torch.rad2deg(torch.asin(slope.clamp(-1, 1)))
    assert -10.2 <= angle.min() <= -9.5 and 9.5 <= angle.max() <= 10.2
    bright = view(replace(IDENTITY, jitter=0.3), torch.full((count, 3, 4, 4), 100, dtype=torch.uint8), 4, 0)[:, 0, 0, 0]
    assert 69.9 <= bright.min() <= 72 and 128 <= bright.max() <= 130.1


@pytest.mark.parametrize("augmented", [False, True])
def test_pixels_for_training_do_not_depend_on_the_slices_they_are_made_in(augmented: bool) -> None:
    squares, preprocess = random_squares(7, 24), Preprocess(16, MEAN, STD)
    draws = Augmentation.draw(7, seed=1) if augmented else None
    pixels = TrainingPixels(squares, preprocess, torch.device("cpu"), draws)
    whole = pixels[0:7]
    expected = preprocess.normalize(view(Augmentation(), squares, 16, 1)) if augmented else preprocess.batch(squares)
    assert torch.equal(whole, expected)
    assert torch.equal(torch.cat([pixels[0:3], pixels[3:6], pixels[6:9]]), whole)
