"""The picture of the README: one sphere with a temperature beside a product of spheres without.

python -m experiments.idea.draw
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from oblique_clip.topology import Topology, parse_topology

SPHERES = 4
IMAGE, TEXT = "#d62728", "#1f77b4"


def close_pair(topology: Topology, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """An image point and a caption point near it."""
    features = torch.randn(2, topology.m, topology.n, generator=generator)
    features[1] = features[0] + 0.5 * features[1]
    image, text = topology.project(features)
    return image, text


def draw_sphere(axis: Any, image: torch.Tensor, text: torch.Tensor) -> None:
    """A wire sphere with the two points (3,) on it."""
    u, v = np.mgrid[0 : 2 * np.pi : 25j, 0 : np.pi : 13j]  # type: ignore[misc]
    axis.plot_wireframe(np.cos(u) * np.sin(v), np.sin(u) * np.sin(v), np.cos(v), color="0.85", linewidth=0.5)
    for point, colour, marker in ((image, IMAGE, "o"), (text, TEXT, "^")):
        x, y, z = point.tolist()
        axis.plot([0, x], [0, y], [0, z], color=colour, linewidth=1)
        axis.scatter([x], [y], [z], color=colour, marker=marker, s=30, depthshade=False)
    axis.set_box_aspect((1, 1, 1), zoom=1.35)
    axis.set_axis_off()
    axis.view_init(20, 35)


def draw_range(axis: Any, topology: Topology, label: str) -> None:
    """The interval of similarities, on the scale of the widest."""
    low, high = topology.range
    axis.add_patch(Rectangle((low, 0.35), high - low, 0.3, facecolor="0.8", edgecolor="0.3"))
    label = f"similarity in [{low:.0f}, {high:.0f}]\n{label}"
    axis.text(0, 0.15, label, ha="center", va="center", fontsize=9)
    axis.set(xlim=(-SPHERES * 1.05, SPHERES * 1.05), ylim=(0, 0.8))
    axis.axis("off")


def draw() -> Figure:
    """Both topologies side by side, 10 x 3.4 inches."""
    generator = torch.Generator().manual_seed(3)
    figure = Figure((10, 3.4))
    halves = figure.add_gridspec(1, 2, width_ratios=(1, 2.2))
    left, right = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    left.suptitle("sphere: one class token, one unit vector", fontsize=10)
    right.suptitle(f"oblique manifold: {SPHERES} class tokens, a unit vector each", fontsize=10)
    sphere, oblique = parse_topology("sphere(3)"), parse_topology(f"oblique(3,{SPHERES})")
    image, text = close_pair(sphere, generator)
    draw_sphere(left.add_axes((0.1, 0.24, 0.8, 0.68), projection="3d"), image[0], text[0])
    draw_range(left.add_axes((0.0, 0.0, 1, 0.27)), sphere, "stretched by a learned temperature")
    image, text = close_pair(oblique, generator)
    for i in range(SPHERES):
        draw_sphere(right.add_axes((i / SPHERES, 0.27, 1 / SPHERES, 0.6), projection="3d"), image[i], text[i])
    draw_range(right.add_axes((0.0, 0.0, 1, 0.27)), oblique, "the sum over spheres: stretched by the topology")
    left.text(0.05, 0.82, "● image", color=IMAGE, fontsize=9)
    left.text(0.05, 0.75, "▲ caption", color=TEXT, fontsize=9)
    return figure


if __name__ == "__main__":
    path = Path(__file__).with_name("idea.png")
    draw().savefig(path, dpi=120)
