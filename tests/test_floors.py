"""The pixel floor: a nearest neighbour on thumbnails, as a plain loop finds it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oblique_clip.evaluate.floors import pixel_neighbour, thumbnails
from oblique_clip.evaluate.zeroshot import rank_figures

FLOAT = 1e-6
"""Largest error of a float32 mean of at most 16 numbers in [0, 1]."""

laws = settings(max_examples=100, deadline=None, database=None)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Small integer pictures: distances are exact, and often equal."""
    classes = draw(st.integers(1, 6))
    sides = []
    for least in (1, 1):
        count = draw(st.integers(least, 9))
        picture = st.lists(st.integers(0, 2), min_size=2, max_size=2)
        sides.append(torch.tensor(draw(st.lists(picture, min_size=count, max_size=count)), dtype=torch.float32))
        sides.append(torch.tensor(draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))))
    return *sides, classes  # type: ignore[return-value]


def ranks_by_hand(queries: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor, classes: int) -> list[int]:
    ranks = []
    for query, label in zip(queries.tolist(), labels.tolist(), strict=True):
        nearest = [float("inf")] * classes
        for picture, other in zip(gallery.tolist(), gallery_labels.tolist(), strict=True):
            gap = sum((a - b) ** 2 for a, b in zip(query, picture, strict=True))
            nearest[other] = min(nearest[other], gap)
        ranks.append(sum(gap <= nearest[label] for k, gap in enumerate(nearest) if k != label))
    return ranks


@laws
@given(case=cases(), chunk=st.integers(1, 10))
def test_ranks_are_those_of_a_plain_loop_whatever_the_chunk(
    case: tuple[Tensor, Tensor, Tensor, Tensor, int], chunk: int
) -> None:
    assert pixel_neighbour(*case, chunk).tolist() == ranks_by_hand(*case)


def random_squares(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("count", [10, 200])
def test_a_picture_of_the_gallery_is_nearest_to_itself(count: int) -> None:
    gallery, labels = thumbnails([random_squares(count, 32)]), torch.arange(count)
    assert pixel_neighbour(gallery.flip(0), labels.flip(0), gallery, labels, count).tolist() == [0] * count


def test_a_class_without_a_gallery_picture_comes_last() -> None:
    gallery = thumbnails([random_squares(4, 32)])
    ranks = pixel_neighbour(gallery[:2], torch.tensor([4, 5]), gallery, torch.tensor([0, 1, 2, 3]), 6)
    assert ranks.tolist() == [5, 5]
    assert rank_figures(ranks, torch.tensor([4, 5]), 6)["top5"] == 0.0


def test_a_class_is_as_near_as_its_nearest_picture() -> None:
    gallery, labels = torch.tensor([[0.0], [9.0], [4.0]]), torch.tensor([0, 0, 1])
    assert pixel_neighbour(torch.tensor([[8.5]]), torch.tensor([0]), gallery, labels, 2).tolist() == [0]


def test_a_thumbnail_is_the_mean_colour_of_each_tile() -> None:
    squares = random_squares(5, 64)
    found = thumbnails(squares.split(2))
    tiles = squares.numpy().reshape(5, 3, 16, 4, 16, 4).astype(np.float64).mean((3, 5)) / 255
    assert found.shape == (5, 768)
    assert np.abs(found.numpy() - tiles.reshape(5, -1)).max() <= FLOAT
