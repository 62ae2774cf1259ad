"""What the report says remains different between forms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from oblique_clip.config import Architecture, Form, model_config
from oblique_clip.report import differences

ARCH = Architecture(patch_size=8, vision_width=32, vision_layers=2, text_width=32, text_layers=3)
CAPTION = 8


def by_hand(form: Form, image_tokens: int, text_tokens: int, outputs: int) -> float:
    """Two a multiply-add of matrices, in millions: 12 width^2 a position and block, 2 width a pair of positions.

    The last block has 2 width^2 for keys and values of each position, all else only for positions that are read.
    """
    width, patches = 32, 16
    products = patches * 3 * 8**2 * width + 2 * width * outputs
    for layers, n, read in ((2, patches + image_tokens, image_tokens), (3, CAPTION + text_tokens, text_tokens or 1)):
        products += (layers - 1) * (12 * width**2 * n + 2 * width * n**2)
        products += 2 * width**2 * n + 10 * width**2 * read + 2 * width * n * read
    return 2 * products / 1e6


@pytest.mark.parametrize(("form", "tokens"), [("clip", (1, 0)), ("sphere", (1, 1)), ("oblique", (8, 8))])
def test_operations_are_those_counted_by_hand(form: Form, tokens: tuple[int, int]) -> None:
    found = differences({form: replace(model_config("tiny", form), arch=ARCH)}, CAPTION)[form]
    assert float(found["MFLOPs a pair"]) == pytest.approx(
        by_hand(form, *tokens, outputs=128), abs=0.06
    )  # printed to one digit
