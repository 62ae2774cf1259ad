"""A flat map of pictures, drawn so that those close under the model's own distance stay close."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..data.emoji import EmojiSet
from ..explore import distances, metric_of
from ..topology import Topology

SAMPLE = 400
"""Pictures on a map."""
PERPLEXITY = 30.0
SIDE = 0.026
"""Of a picture, in widths of the map."""

Places = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Map:
    """Where each of a sample of pictures lies, (N, 2), from the corner up to 1, and how that was found."""

    places: Places
    method: str
    distance: str
    """That the map is of."""


def sampled(test: EmojiSet, seed: int = 0) -> npt.NDArray[np.int64]:
    """Rows of at most `SAMPLE` pictures, drawn at random."""
    return np.sort(np.random.default_rng(seed).choice(len(test), min(SAMPLE, len(test)), False))


def draw_map(points: Tensor, topology: Topology, like: Map | None = None) -> Map:
    """Lay out points (N, *point_shape) on a plane.

    t-SNE (van der Maaten & Hinton 2008) where scikit-learn is installed, from a start by principal coordinates
    (Torgerson 1952), which stand alone where it is not. Both read the distances under the model's metric; a negative
    inner product is none, so that its chords are taken, which rank as it does.

    The wider way lies across. Pictures of side `SIDE` are then moved apart until few overlap.

    Args:
        like: a map of the same pictures, which this one is turned and mirrored to resemble.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.page.map import draw_map
        >>> topology = parse_topology("sphere(2)")
        >>> points = topology.project(torch.tensor([[[1.0, 0.0]], [[1.0, 0.1]], [[-1.0, 0.1]], [[-1.0, 0.0]]]))
        >>> drawn = draw_map(points, topology)  # too few for neighbourhoods
        >>> drawn.method, (abs(drawn.places[:, 0] - drawn.places[0, 0]) > 0.5).tolist()
        ('principal coordinates', [False, False, True, True])
    """
    between = distances(points, topology).numpy()
    start = _principal(between)
    if importlib.util.find_spec("sklearn") and len(points) > 2 * PERPLEXITY:
        places, method = _tsne(between, start), "t-SNE"
    else:
        places, method = start, "principal coordinates"
    turned = _lying(places) if like is None else _turned(places, like.places)
    return Map(_within(_apart(_within(turned))), method, metric_of(topology).distance)


def _principal(between: Places) -> Places:
    """Coordinates along the two directions in which points differ most."""
    squares = between**2
    centred = -0.5 * (squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean())
    values, vectors = np.linalg.eigh(centred)
    return np.asarray(vectors[:, ::-1][:, :2] * np.sqrt(np.clip(values[::-1][:2], 0, None)))


def _tsne(between: Places, start: Places) -> Places:
    from sklearn.manifold import TSNE

    # As scikit-learn scales its own start by principal components.
    start = start / max(start[:, 0].std(), 1e-12) * 1e-4
    model = TSNE(metric="precomputed", init=start, perplexity=PERPLEXITY, random_state=0)
    return np.asarray(model.fit_transform(between), dtype=np.float64)


def _turned(places: Places, like: Places) -> Places:
    """Turned and mirrored so as to lie close to another map."""
    from scipy.linalg import orthogonal_procrustes

    centred, target = places - places.mean(0), like - like.mean(0)
    return np.asarray(centred.dot(orthogonal_procrustes(centred, target)[0]))


def _lying(places: Places) -> Places:
    """Turned so that the widest direction lies across."""
    centred = places - places.mean(0)
    return np.asarray(centred.dot(np.linalg.svd(centred, full_matrices=False)[2].T))


def _apart(places: Places, rounds: int = 60) -> Places:
    """Pictures pushed away from those that they overlap, each by a part of the overlap in every round."""
    for _ in range(rounds):
        between = places[:, None] - places[None]
        length = np.maximum(np.linalg.norm(between, axis=-1), 1e-9)
        overlap = np.clip(SIDE - length, 0, None)
        places = places + 0.3 * (between * (overlap / length)[..., None]).sum(1)
    return places


def _within(places: Places) -> Places:
    """Moved to the corner and scaled to a width or height of 1, the two axes alike."""
    low, high = places.min(0), places.max(0)
    return np.asarray((places - low) / max(float((high - low).max()), 1e-12))
