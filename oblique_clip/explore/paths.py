"""Ways from one point to another, and what lies along them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..topology import LorentzTopology, Topology
from .points import Points, exact, neighbours, one_sphere, own


def interpolate(topology: Topology, a: Points, b: Points, steps: int = 50) -> Tensor:
    """Points (steps, *point_shape) evenly along the shortest geodesic from a to b (*point_shape), both included.

    On spheres each row follows its great circle (between antipodes, one of them), in Euclidean space the straight line,
    on the hyperboloid its own geodesic. float64.

    Raises:
        UserError: for fewer than two steps, or a point of another shape.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import interpolate
        >>> topology = parse_topology("sphere(2)")
        >>> interpolate(topology, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 3).round(decimals=3).tolist()
        [[[1.0, 0.0]], [[0.707, 0.707]], [[0.0, 1.0]]]
    """
    if steps < 2:
        raise UserError(f"a way has at least two points, not {steps}")
    start, end = (exact(torch.as_tensor(point)[None], topology) for point in (a, b))
    manifold = own(topology).manifold
    times = torch.linspace(0, 1, steps, dtype=torch.float64).view(-1, 1, 1)
    way: Tensor = manifold.expmap(start, times * manifold.logmap(start, end))
    return way


class Traversal(NamedTuple):
    """What is nearest along a way; an item that stays nearest is named once."""

    rows: Tensor
    """(S,), of the gallery, in the order of the way."""
    times: Tensor
    """(S,), where each becomes the nearest: 0 at the start, 1 at the end."""


def traverse(topology: Topology, a: Points, b: Points, gallery_points: Points, steps: int = 50) -> Traversal:
    """The items of a gallery (M, *point_shape) that are most similar along the geodesic from a to b.

    As the image traversals of MERU (Desai et al. 2023, arXiv 2304.09172), whose way ends at the `root`; each
    neighbour here is the most similar, whether or not it entails the point. Ask a gallery of texts and one of pictures.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import traverse
        >>> topology = parse_topology("euclidean(1)")
        >>> gallery = torch.tensor([0.0, 4.0, 10.0]).view(3, 1, 1)
        >>> rows, times = traverse(topology, torch.tensor([[9.0]]), torch.tensor([[0.0]]), gallery, steps=10)
        >>> rows.tolist(), times.round(decimals=2).tolist()
        ([2, 1, 0], [0.0, 0.22, 0.78])
    """
    way = interpolate(topology, a, b, steps)
    nearest = neighbours(way, topology, 1, gallery_points).rows[:, 0]
    new = torch.cat([torch.tensor([True]), nearest[1:] != nearest[:-1]])
    return Traversal(nearest[new], torch.linspace(0, 1, steps, dtype=torch.float64)[new])


def root(topology: Topology, *points: Points) -> Tensor:
    """The point (*point_shape) that stands for everything: the mean of all points, on the hyperboloid its vertex.

    MERU's [ROOT], and its stand-in for CLIP (Desai et al. 2023).

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import root
        >>> pictures, texts = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
        >>> root(parse_topology("sphere(2)"), pictures, texts).round(decimals=3).tolist()
        [[0.707, 0.707]]
    """
    shape = own(topology)
    if isinstance(shape, LorentzTopology):
        return shape.project(torch.zeros(1, shape.m, shape.n, dtype=torch.float64))[0]
    if not points:
        raise UserError("the mean of no points is none: name the pictures', the texts' or both")
    return shape.mean(torch.cat([exact(part, topology) for part in points]))


def swap_sphere(topology: Topology, a: Points, b: Points, sphere: int) -> tuple[Tensor, Tensor]:
    """Two points (*point_shape) with their parts on one sphere exchanged; their neighbours tell what it stands for.

    Raises:
        UserError: for a topology that is no product of spheres, or a sphere that it lacks.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.explore import swap_sphere
        >>> topology = parse_topology("oblique(2,2)")
        >>> a, b = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        >>> [point.tolist() for point in swap_sphere(topology, a, b, 1)]
        [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]
    """
    one_sphere(topology)
    if not 0 <= sphere < topology.m:
        raise UserError(f"{topology.spec} has spheres 0 to {topology.m - 1}, no sphere {sphere}")
    both = exact(torch.stack([torch.as_tensor(a), torch.as_tensor(b)]), topology)
    both[:, sphere] = both[:, sphere].flip(0)
    return both[0], both[1]
