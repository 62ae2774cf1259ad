"""Prefixes of an embedding: where they live, and the loss that trains them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oblique_clip import UserError, create_model, model_config, parse_topology
from oblique_clip.loss import info_nce, sigmoid_loss
from oblique_clip.step import nested_loss, train_step


def draw(spec: str, count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    topology, generator = parse_topology(spec), torch.Generator().manual_seed(seed)
    features = torch.randn(2, count, topology.m, topology.n, generator=generator, dtype=torch.float64)
    return topology.project(features[0]), topology.project(features[1])


@given(n=st.integers(2, 5), m=st.integers(2, 6), data=st.data())
def test_the_similarity_of_all_spheres_is_that_of_the_first_and_of_the_rest(n: int, m: int, data: Any) -> None:
    """Nested spheres: a prefix is an embedding of its own because the score is a sum."""
    topology = parse_topology(f"oblique({n},{m})")
    k = data.draw(st.integers(1, m - 1))
    x, y = draw(topology.spec)
    first = topology.prefix(k * n).similarity(topology.cut(x, k * n), topology.cut(y, k * n))
    rest = parse_topology(f"oblique({n},{m - k})").similarity(x[:, k:], y[:, k:])
    torch.testing.assert_close(first + rest, topology.similarity(x, y))


def test_a_prefix_of_a_sphere_is_renormalised() -> None:
    topology = parse_topology("sphere(8)/geodesic")
    x, _ = draw(topology.spec)
    assert topology.prefix(3).spec == "sphere(3)/geodesic"
    torch.testing.assert_close(topology.cut(x, 3)[:, 0], F.normalize(x[:, 0, :3], dim=-1))


@pytest.mark.parametrize("spec", ["sphere(8)", "oblique(2,4)", "euclidean(8)"])
def test_the_whole_is_its_own_last_prefix(spec: str) -> None:
    topology, (x, y) = parse_topology(spec), draw(spec)
    assert topology.prefix(8).spec == spec
    torch.testing.assert_close(topology.cut(x, 8), x)
    whole = info_nce(x, y, topology, 2.0)
    torch.testing.assert_close(nested_loss(info_nce, x, y, topology, torch.tensor(2.0), (8,)), whole)


def test_matryoshka_is_the_mean_of_losses_of_cut_vectors() -> None:
    """Against a plain loop over sizes, with cosines and torch's cross-entropy; in value and gradient, to 1e-12."""
    x, y = draw("sphere(8)")
    scale, target = torch.tensor(3.0, dtype=torch.float64), torch.arange(6)

    def by_hand(x: Tensor, y: Tensor) -> Tensor:
        losses = []
        for size in (2, 4, 8):
            logits = scale * F.normalize(x[:, 0, :size], dim=-1) @ F.normalize(y[:, 0, :size], dim=-1).T
            losses.append((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)
        return sum(losses, torch.zeros(())) / 3

    ours = partial(nested_loss, info_nce, topology=parse_topology("sphere(8)"), scale=scale, sizes=(2, 4, 8))
    found = []
    for loss in (by_hand, ours):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        value = loss(a, b)
        value.backward()
        found.append((value.detach(), a.grad, b.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("loss", [info_nce, sigmoid_loss])
def test_each_prefix_of_spheres_may_spread_its_logits_as_widely(loss: Any) -> None:
    """Of m spheres the first k are scored at m/k times the scale: the widest spread of logits is that of all."""
    x, y = draw("oblique(2,4)")
    nested = nested_loss(loss, x, y, parse_topology("oblique(2,4)"), torch.tensor(1.5), (2, 4))
    alone = [loss(x[:, :k], y[:, :k], parse_topology(f"oblique(2,{k})"), 1.5 * 4 / k) for k in (1, 2)]
    torch.testing.assert_close(nested, torch.stack(alone).mean())


def test_micro_batches_have_the_gradients_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    model = create_model(model_config("tiny", "oblique"))
    images, ids = torch.randn(6, 3, 32, 32), torch.randint(1, 4095, (6, 5))
    found = []
    for micro_batch in (None, 2):
        model.zero_grad()
        loss, *_ = train_step(model, images, ids, None, "info_nce", "float32", micro_batch, nested=(16, 64, 128))
        found.append((loss, model.visual.projection.weight.grad.clone(), model.temperature.log_scale.grad.clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "spec, size, said",
    [
        ("oblique(2,4)", 3, "multiples of 2 up to 8, not to 3"),
        ("sphere(8)", 9, "up to 8"),
        ("lorentz(8)", 4, "cannot be cut"),
    ],
)
def test_sizes_that_are_none_are_refused(spec: str, size: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_topology(spec).prefix(size)
