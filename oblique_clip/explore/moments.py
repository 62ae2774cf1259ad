"""Second moments of coordinates over items: statistics of a set, which compare no two points."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError
from .points import Points

TINY = 1e-12
"""Variance (of unit vectors: in [0, 1]) below which there is none."""


def table(features: Points) -> Tensor:
    """Features (N, ...) as a table (N, d) of float64, each column less its mean.

    Raises:
        UserError: for fewer than two rows, or NaN or infinity.
    """
    rows = torch.as_tensor(features).detach().cpu().double()
    if len(rows) < 2 or not bool(rows.isfinite().all()):
        raise UserError(f"features must be at least two rows of finite numbers, not of the shape {tuple(rows.shape)}")
    rows = rows.flatten(1)
    return rows - rows.mean(0)


def covariance(x: Tensor, y: Tensor) -> Tensor:
    """Covariances (d1, d2) of the columns of two centred tables (N, d1) and (N, d2) of the same items."""
    return x.T @ y / len(x)


def entropy_rank(singular_values: Tensor) -> Tensor:
    """exp of the Shannon entropy of singular values (..., d) as shares of their sum (...); 0 where all are 0."""
    total = singular_values.sum(-1, keepdim=True)
    shares = singular_values / total.clamp(min=TINY)
    return torch.where(total.squeeze(-1) > TINY**0.5, torch.special.entr(shares).sum(-1).exp(), 0.0)
