"""The two contrastive losses, over any topology.

With logits l_ij = scale * similarity(x_i, y_j) + bias for B images x and B captions y, and target weights T_ij:

- `info_nce` (van den Oord et al. 2018; symmetric as in Radford et al. 2021, figure 3):
  -1/(2B) sum_ij T_ij [log softmax_j(l_i.)_j + log softmax_i(l_.j)_i]
- `sigmoid_loss` (Zhai et al. 2023, equation 1): -1/B sum_ij log sigmoid(z_ij l_ij), z_ij = +1 for positives, -1 else.

T is the identity, as in CLIP, or, where `groups` says which rows bear the same caption, 1/|group| on every pair within
a group (soft targets): exact duplicates are then positives of each other instead of hidden label noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .topology import Topology


def info_nce(
    image_points: Tensor,
    text_points: Tensor,
    topology: Topology,
    scale: Tensor | float,
    *,
    bias: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE of B pairs, in nats; row i of both is a pair.

    Args:
        image_points, text_points: (B, *topology.point_shape).
        scale: 1/tau, > 0.
        bias: added to every logit; cancels in both softmaxes.
        groups: (B,) integers, equal where captions are; None makes each row its own group.
    """
    logits = _logits(image_points, text_points, topology, scale, bias)
    if groups is None:
        rows = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
    same = _same(groups).to(logits.dtype)
    targets = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def sigmoid_loss(
    image_points: Tensor,
    text_points: Tensor,
    topology: Topology,
    scale: Tensor | float,
    *,
    bias: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """SigLIP's pairwise loss of B pairs, in nats a row; arguments as `info_nce`."""
    logits = _logits(image_points, text_points, topology, scale, bias)
    groups = torch.arange(len(logits), device=logits.device) if groups is None else groups
    signs = 2 * _same(groups).to(logits.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


LOSSES = {"info_nce": info_nce, "sigmoid": sigmoid_loss}


def _logits(x: Tensor, y: Tensor, topology: Topology, scale: Tensor | float, bias: Tensor | None) -> Tensor:
    logits = scale * topology.similarity(x, y)
    return logits if bias is None else logits + bias


def _same(groups: Tensor) -> Tensor:
    return groups[:, None] == groups[None, :]
