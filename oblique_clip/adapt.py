"""Few-shot adaptation: from a few labelled pictures a class, encoded once, to a classifier for one task.

Three ways that all start from points (N, *point_shape), as `encode_images` gives them, with labels (N,) in [0, K):

- `refine_prototypes`: the zero-shot classifier, K points of `build_classifier`, moved along the manifold;
- `linear_probe`: logistic regression on the numbers of a point, without the texts (Radford et al. 2021, 3.2);
- `tip_adapter`: the zero-shot classifier beside a cache of the shots (Zhang et al. 2022, arXiv 2207.09519).

A setting that is chosen here is chosen on validation shots, and the first of equally good ones, the mildest, is taken.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError
from .evaluate.zeroshot import rank_figures
from .topology import Topology

# Inverse strengths of the probe's L2 penalty, the strongest penalty first.
CS = tuple(10.0**power for power in range(-2, 6))
# Weight of the cache beside the texts, and how fast it forgets with distance, the mildest first.
ALPHAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
BETAS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


def refine_prototypes(
    prototypes: Tensor,
    points: Tensor,
    labels: Tensor,
    topology: Topology,
    scale: float,
    steps: int = 100,
    lr: float = 0.01,
    seed: int = 0,
    batch_size: int = 256,
) -> Tensor:
    """Prototypes (K, *point_shape) that tell the shots apart better, on the manifold all the way.

    Riemannian Adam (Becigneul & Ganea 2019, arXiv 1810.00760; geoopt's) on the cross-entropy of the logits
    scale * similarity. The scale, and so the temperature, stays what the model learned.

    Args:
        prototypes: (K, *point_shape), where to start: the points of the class names.
        points: (N, *point_shape), the shots.
        labels: (N,), in [0, K).
        scale: 1/tau, > 0.
        steps: >= 0; none gives the start back.
        lr: > 0, the length of a step in radians on spheres, roughly.
        seed: of the shots in each step, where there are more than `batch_size`.
        batch_size: shots a step, >= 1.

    Raises:
        UserError: for numbers outside these ranges, labels that no prototype bears, or points of another topology.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.adapt import refine_prototypes
        >>> topology = parse_topology("sphere(2)")
        >>> prototypes = topology.project(torch.tensor([[[1.0, 0.0]], [[0.8, 0.6]]]))
        >>> shots, labels = topology.project(torch.tensor([[[1.0, 0.1]], [[0.966, 0.259]]])), torch.tensor([0, 1])
        >>> topology.similarity(shots, prototypes).argmax(1).tolist()  # the second is taken for the first class
        [0, 0]
        >>> refined = refine_prototypes(prototypes, shots, labels, topology, scale=20.0)
        >>> topology.similarity(shots, refined).argmax(1).tolist()
        [0, 1]
    """
    import geoopt

    _check_shots(points, labels, len(prototypes))
    if prototypes.shape[1:] != topology.point_shape or points.shape[1:] != topology.point_shape:
        shapes = f"{tuple(prototypes.shape[1:])} and {tuple(points.shape[1:])}"
        raise UserError(f"points of {topology.spec} are {topology.point_shape}; prototypes and shots are {shapes}")
    if steps < 0 or batch_size < 1 or not (0 < lr < math.inf and 0 < scale < math.inf):
        raise UserError(
            f"refining wants steps >= 0, batch_size >= 1, and lr and scale in (0, inf), "
            f"not {steps}, {batch_size}, {lr} and {scale}"
        )
    refined = geoopt.ManifoldParameter(prototypes.detach().clone(), manifold=topology.manifold)
    optimizer = geoopt.optim.RiemannianAdam([refined], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randperm(len(points), generator=generator)[:batch_size].to(points.device)
        with torch.enable_grad():
            loss = F.cross_entropy(scale * topology.similarity(points[rows], refined), labels[rows])
        # Of the prototypes alone: a topology may have parameters of its own, and they stay.
        (refined.grad,) = torch.autograd.grad(loss, [refined])
        optimizer.step()
    return refined.data.clone()


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of the numbers of a point.

    Examples:
        >>> import torch
        >>> from oblique_clip.adapt import LinearProbe
        >>> probe = LinearProbe(weight=torch.tensor([[1.0, 0.0], [0.0, 2.0]]), bias=torch.tensor([0.0, 0.5]), c=1.0)
        >>> probe.logits(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])).tolist()
        [[1.0, 0.5], [0.0, 2.5]]
    """

    weight: Tensor
    """(K, D)."""
    bias: Tensor
    """(K,); -inf for a class without a shot."""
    c: float
    """The inverse strength of the penalty that validation chose."""

    def logits(self, points: Tensor) -> Tensor:
        """Points (N, *point_shape) to (N, K)."""
        return F.linear(points.flatten(1), self.weight, self.bias)


def linear_probe(
    points: Tensor, labels: Tensor, val_points: Tensor, val_labels: Tensor, cs: Sequence[float] = CS
) -> LinearProbe:
    """Logistic regression on points as flat vectors, its penalty chosen by accuracy on validation shots.

    Args:
        points: (N, *point_shape), the shots.
        labels: (N,), in [0, K); K is one more than the largest of all labels.
        val_points: (V, *point_shape), V >= 1.
        val_labels: (V,), in [0, K).
        cs: inverse strengths of the L2 penalty to choose from.

    Raises:
        UserError: without scikit-learn, or for shots of a single class.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.adapt import linear_probe
        >>> points = torch.tensor([[[1.0, 0.0]], [[1.0, 0.2]], [[0.0, 1.0]], [[0.2, 1.0]]])
        >>> shots, labels = parse_topology("sphere(2)").project(points), torch.tensor([0, 0, 1, 1])
        >>> probe = linear_probe(shots[::2], labels[::2], shots[1::2], labels[1::2])
        >>> probe.logits(shots).argmax(1).tolist(), probe.c
        ([0, 0, 1, 1], 0.01)
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise UserError("the linear probe needs scikit-learn: pip install 'oblique-clip[explore]'") from error

    _check_shots(points, labels)
    _check_shots(val_points, val_labels)
    if len(labels.unique()) < 2:
        raise UserError("a linear probe needs shots of at least two classes")
    classes = 1 + int(torch.cat([labels, val_labels]).max())
    inputs, targets = points.flatten(1).double().cpu().numpy(), labels.cpu().numpy()
    # Each fit starts from the one of the next stronger penalty.
    regression = LogisticRegression(max_iter=1000, warm_start=True)
    probes = []
    with warnings.catch_warnings():
        # A fit that has not settled is judged by validation, like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for c in sorted(cs):
            regression.set_params(C=c).fit(inputs, targets)
            probes.append(_probe(regression, classes, points))
    return max(probes, key=lambda probe: _hits(probe.logits(val_points), val_labels))


def _probe(regression: Any, classes: int, like: Tensor) -> LinearProbe:
    """A fitted regression as tensors; classes that it never saw get no chance."""
    weight, bias = torch.from_numpy(regression.coef_), torch.from_numpy(regression.intercept_)
    if len(weight) == 1:
        # Of two classes scikit-learn keeps the odds of the second alone.
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    seen = torch.from_numpy(regression.classes_)
    weights = weight.new_zeros(classes, weight.shape[1]).index_copy(0, seen, weight)
    biases = bias.new_full((classes,), -math.inf).index_copy(0, seen, bias)
    return LinearProbe(weights.to(like), biases.to(like), float(regression.C))


@dataclass(frozen=True)
class TipAdapter:
    """The zero-shot classifier and a cache of labelled shots, which vote by how near they are.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.adapt import TipAdapter
        >>> topology = parse_topology("sphere(2)")
        >>> points = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> adapter = TipAdapter(points, points, torch.tensor([0, 1]), topology, scale=1.0, alpha=1.0, beta=2.0)
        >>> adapter.votes(points).double().round(decimals=3).tolist()  # exp(-2) from a right angle away
        [[1.0, 0.135], [0.135, 1.0]]
    """

    prototypes: Tensor
    """(K, *point_shape)."""
    keys: Tensor
    """The shots, (N, *point_shape)."""
    labels: Tensor
    """(N,)."""
    topology: Topology
    scale: float
    alpha: float
    """Weight of the votes."""
    beta: float
    """A shot at distance d, in half widths of the range, votes with exp(-beta d); on a sphere d is 1 - cosine."""

    def logits(self, points: Tensor) -> Tensor:
        """Points (N, *point_shape) to (N, K)."""
        return self.scale * self.topology.similarity(points, self.prototypes) + self.alpha * self.votes(points)

    def votes(self, points: Tensor) -> Tensor:
        """Sum over the shots of each class, (N, K): at most the number of shots, and at least 0."""
        affinity = (-self.beta * _half_widths(points, self.keys, self.topology)).exp()
        return affinity.new_zeros(len(points), len(self.prototypes)).index_add_(1, self.labels, affinity)


def _half_widths(x: Tensor, y: Tensor, topology: Topology) -> Tensor:
    """How far similarities are from the largest, (B1, B2), in [0, 2]; in units of their own on unbounded ranges."""
    low, high = topology.range
    half = (high - low) / 2 if math.isfinite(high - low) else 1.0
    return (high - topology.similarity(x, y)).clamp(min=0) / half


def tip_adapter(
    prototypes: Tensor,
    points: Tensor,
    labels: Tensor,
    val_points: Tensor,
    val_labels: Tensor,
    topology: Topology,
    scale: float,
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
) -> TipAdapter:
    """Tip-Adapter without training (Zhang et al. 2022, equations 3 to 5), alpha and beta chosen by accuracy on
    validation shots.

    Args:
        prototypes: (K, *point_shape), the points of the class names.
        points: (N, *point_shape), the shots.
        labels: (N,), in [0, K).
        val_points: (V, *point_shape), V >= 1.
        val_labels: (V,), in [0, K).
        scale: 1/tau, > 0.

    Raises:
        UserError: for labels that no prototype bears.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.adapt import tip_adapter
        >>> topology = parse_topology("sphere(2)")
        >>> prototypes = topology.project(torch.tensor([[[1.0, 0.0]], [[0.8, 0.6]]]))
        >>> shots, labels = topology.project(torch.tensor([[[1.0, 0.1]], [[0.966, 0.259]]])), torch.tensor([0, 1])
        >>> adapter = tip_adapter(prototypes, shots, labels, shots, labels, topology, scale=1.0)
        >>> adapter.alpha, adapter.beta  # the mildest that get both right
        (0.1, 64.0)
        >>> adapter.logits(shots).argmax(1).tolist()
        [0, 1]
    """
    _check_shots(points, labels, len(prototypes))
    _check_shots(val_points, val_labels, len(prototypes))
    base = TipAdapter(prototypes, points, labels, topology, scale, 0.0, 0.0)
    by_text = base.logits(val_points)
    votes = {beta: replace(base, beta=beta).votes(val_points) for beta in sorted(betas)}
    alpha, beta = max(
        itertools.product(sorted(alphas), votes),
        key=lambda pair: _hits(by_text + pair[0] * votes[pair[1]], val_labels),
    )
    return replace(base, alpha=alpha, beta=beta)


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Figures of `rank_figures` for logits (N, K); a class exactly as likely as the right one stands before it.

    Examples:
        >>> import torch
        >>> from oblique_clip.adapt import accuracies
        >>> accuracies(torch.tensor([[2.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0]))["top1"]  # a tie is no hit
        0.5
    """
    own = logits.gather(1, labels[:, None])
    return rank_figures((~(logits < own)).sum(1) - 1, labels, logits.shape[1])


def _hits(logits: Tensor, labels: Tensor) -> float:
    return accuracies(logits, labels)["top1"]


def _check_shots(points: Tensor, labels: Tensor, classes: int | None = None) -> None:
    if not len(points) or labels.shape != points.shape[:1]:
        raise UserError(f"every shot needs one label, and there must be one: {len(points)} shots, {len(labels)} labels")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        raise UserError(
            f"labels run from {low} to {high}; there are {classes if classes is not None else 'no negative'} classes"
        )
