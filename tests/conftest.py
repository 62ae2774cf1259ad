"""One thread and a fixed seed for every test, and what several test files share."""

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from oblique_clip.config import Architecture

torch.set_num_threads(1)

TINY = Architecture(
    patch_size=16, vision_width=32, vision_layers=2, vision_heads=2, text_width=32, text_layers=2, text_heads=2,
    context_length=16,
)  # fmt: skip
"""Towers of 32 channels and two blocks, for laws that hold at any size."""


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Frobenius norm of the difference over that of the reference, in float64."""
    reference = reference.detach().double()
    return float((found.detach().double() - reference).norm() / reference.norm().clamp(min=1e-300))


def gradients(outputs: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Of a sum in which every output has a weight of its own."""
    weights = torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    return list(torch.autograd.grad((outputs * weights).sum(), inputs))


class LargestTensor(TorchDispatchMode):
    """Watches for the most numbers that any tensor made under it holds."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.numbers = max(self.numbers, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out
