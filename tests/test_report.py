"""What the report says remains different between forms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from oblique_clip.config import Architecture, Form, model_config
from oblique_clip.report import differences

ARCH = Architecture(patch_size=8, vision_width=32, vision_layers=2, text_width=32, text_layers=1)
CAPTION = 8


def by_hand(form: Form, image_tokens: int, text_tokens: int, outputs: int) -> float:
    """Two a multiply-add of matrices, in millions: 12 width^2 a position and block, 2 width a pair of positions."""
    width, patches = 32, 16
    image, text = patches + image_tokens, CAPTION + text_tokens
    blocks = sum(layers * (12 * width**2 * n + 2 * width * n**2) for layers, n in ((2, image), (1, text)))
    heads = 2 * width * outputs
    return 2 * (patches * 3 * 8**2 * width + blocks + heads) / 1e6


@pytest.mark.parametrize(("form", "tokens"), [("clip", (1, 0)), ("sphere", (1, 1)), ("oblique", (8, 8))])
def test_operations_are_those_counted_by_hand(form: Form, tokens: tuple[int, int]) -> None:
    found = differences({form: replace(model_config("tiny", form), arch=ARCH)}, CAPTION)[form]
    assert float(found["MFLOPs a pair"]) == pytest.approx(
        by_hand(form, *tokens, outputs=128), abs=0.06
    )  # printed to one digit
