"""What no learning reaches: the floor that a figure has to stand above."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

THUMBNAIL = 16


def thumbnails(squares: Iterable[Tensor]) -> Tensor:
    """Batches of uint8 squares (B, 3, H, H) to 16 x 16 colour thumbnails in [0, 1], flattened, (N, 768).

    Examples:
        >>> import torch
        >>> from oblique_clip.evaluate.floors import thumbnails
        >>> small = thumbnails([torch.full((2, 3, 64, 64), 255, dtype=torch.uint8)])
        >>> small.shape, small.unique().tolist()
        (torch.Size([2, 768]), [1.0])
    """
    small = [F.adaptive_avg_pool2d(batch.float() / 255, THUMBNAIL) for batch in squares]
    return torch.cat(small).flatten(1)


def pixel_neighbour(
    queries: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor, classes: int, chunk: int = 1024
) -> Tensor:
    """Rank (N,) of each query's own class, 0 for the first, where a class is as near as its nearest gallery picture.

    A class without a gallery picture comes last. `rank_figures` turns the ranks into accuracies.

    Args:
        queries: (N, 768), thumbnails.
        labels: (N,), in [0, classes).
        gallery: (M, 768), thumbnails.
        gallery_labels: (M,), in [0, classes).

    Examples:
        >>> import torch
        >>> from oblique_clip.evaluate.floors import pixel_neighbour, thumbnails
        >>> black, grey, white = (torch.full((1, 3, 64, 64), level, dtype=torch.uint8) for level in (0, 80, 255))
        >>> gallery = thumbnails([black, white])  # of the classes 0 and 1
        >>> pixel_neighbour(thumbnails([grey]), torch.tensor([0]), gallery, torch.tensor([0, 1]), classes=2).tolist()
        [0]
        >>> pixel_neighbour(thumbnails([grey]), torch.tensor([1]), gallery, torch.tensor([0, 1]), classes=2).tolist()
        [1]
    """
    ranks = []
    for rows in torch.arange(len(queries)).split(chunk):
        distance = torch.cdist(queries[rows], gallery)
        nearest = torch.full((len(rows), classes), torch.inf)
        nearest.scatter_reduce_(1, gallery_labels.expand_as(distance), distance, "amin")
        own = nearest.gather(1, labels[rows, None])
        before = (nearest <= own).sum(1) - 1
        ranks.append(before)
    return torch.cat(ranks)
