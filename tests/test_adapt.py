"""Few-shot adaptation: every method against its formula or scikit-learn, and what validation may choose."""

from __future__ import annotations

import gzip
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import relative_error
from torch import Tensor

from experiments.few_shot.run import HEADLINE, PIXELS, SEEDS, ZERO, FewShot, differences, interval, main
from experiments.few_shot.tasks import SHOTS, Draw, Task, base_concept, emoji_task, fashion_task
from oblique_clip.adapt import ALPHAS, BETAS, CS, accuracies, linear_probe, refine_prototypes, tip_adapter
from oblique_clip.data.emoji import Record, load_emoji
from oblique_clip.errors import UserError
from oblique_clip.topology import Topology, parse_topology

SPECS = ("sphere(8)", "oblique(4,3)", "oblique(4,3)/geodesic", "oblique(4,3)/chordal", "euclidean(8)", "lorentz(8)")
CLASSES, EXACT = 4, 1e-12
FITTED = 5e-3
"""Relative error between the probabilities of two fits that scikit-learn calls settled."""

Shots = tuple[Topology, Tensor, Tensor, Tensor]


def shots(spec: str, count: int = 24, noise: float = 0.5, dtype: torch.dtype = torch.float64, seed: int = 0) -> Shots:
    """A topology, K prototypes, and `count` points scattered about K other centres, with their labels."""
    generator = torch.Generator().manual_seed(seed)
    topology = parse_topology(spec).to(dtype)

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, topology.m, topology.n, generator=generator, dtype=dtype)

    centres, prototypes, labels = draw(CLASSES), draw(CLASSES), torch.arange(count) % CLASSES
    with torch.no_grad():
        return topology, topology.project(prototypes), topology.project(centres[labels] + noise * draw(count)), labels


def loss(topology: Topology, prototypes: Tensor, points: Tensor, labels: Tensor, scale: float) -> float:
    logits = scale * topology.similarity(points, prototypes)
    return -logits.log_softmax(1)[torch.arange(len(labels)), labels].mean().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("spec", SPECS)
def test_refined_prototypes_fit_the_shots_and_stay_on_the_manifold(spec: str, dtype: torch.dtype) -> None:
    topology, prototypes, points, labels = shots(spec, dtype=dtype)
    start, scale = prototypes.clone(), 4.0
    found = refine_prototypes(prototypes, points, labels, topology, scale, steps=200, lr=0.03)
    assert found.dtype == dtype and type(found) is Tensor and not found.requires_grad
    assert loss(topology, found, points, labels, scale) < 0.5 * loss(topology, start, points, labels, scale)
    off = relative_error(found, topology.manifold.projx(found))
    assert off < (2e-6 if dtype == torch.float32 else 1e-14)
    assert prototypes.equal(start) and all(p.grad is None for p in topology.parameters())
    assert refine_prototypes(prototypes, points, labels, topology, scale, steps=0).equal(start)


@pytest.mark.parametrize("spec", ["sphere(8)", "oblique(4,3)"])
def test_the_first_step_turns_every_row_by_atan_of_the_rate_against_its_gradient(spec: str) -> None:
    """Adam's first step has the length of the rate; the gradient of cross-entropy is written out."""
    topology, prototypes, points, labels = shots(spec)
    scale, lr = 3.0, 0.05
    flat, centres = points.flatten(1), prototypes.flatten(1)
    miss = (scale * flat @ centres.T).softmax(1) - torch.eye(CLASSES, dtype=torch.float64)[labels]
    slope = (scale * miss.T @ flat / len(points)).view_as(prototypes)
    slope = slope - (slope * prototypes).sum(-1, keepdim=True) * prototypes
    expected = prototypes - lr * slope / slope.norm(dim=-1, keepdim=True)
    expected = expected / expected.norm(dim=-1, keepdim=True)
    found = refine_prototypes(prototypes, points, labels, topology, scale, steps=1, lr=lr)
    # What is left is Adam's epsilon of 1e-8 beside the gradient.
    assert relative_error(found - prototypes, expected - prototypes) < 1e-6


def test_the_seed_chooses_the_shots_of_a_step_and_nothing_else() -> None:
    topology, prototypes, points, labels = shots("oblique(4,3)")

    def refined(seed: int, batch_size: int) -> Tensor:
        return refine_prototypes(prototypes, points, labels, topology, 4.0, 20, 0.03, seed, batch_size)

    assert refined(0, 5).equal(refined(0, 5))
    assert relative_error(refined(1, 5), refined(0, 5)) > 1e-3
    assert relative_error(refined(1, 24), refined(0, 100)) < 1e-9


def test_points_of_inference_mode_can_be_refined_on() -> None:
    with torch.inference_mode():
        topology, prototypes, points, labels = shots("oblique(4,3)")
    assert points.is_inference()
    refine_prototypes(prototypes, points, labels, topology, 4.0, steps=2)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_probe_has_the_probabilities_of_scikit_learn(classes: int) -> None:
    from sklearn.linear_model import LogisticRegression

    _, _, points, labels = shots("oblique(4,3)", 60, noise=1.5)
    _, _, queries, _ = shots("oblique(4,3)", 40, seed=1)
    kept = labels < classes
    points, labels = points[kept], labels[kept]
    for c in (0.1, 10.0):
        probe = linear_probe(points, labels, points, labels, cs=(c,))
        fitted = LogisticRegression(C=c, max_iter=1000).fit(points.flatten(1).numpy(), labels.numpy())
        expected = torch.from_numpy(fitted.predict_proba(queries.flatten(1).numpy()))
        assert probe.c == c and relative_error(probe.logits(queries).softmax(1), expected) < FITTED


def test_a_class_without_a_shot_is_never_named() -> None:
    _, _, points, labels = shots("sphere(8)", 60)
    seen = labels != 1
    logits = linear_probe(points[seen], labels[seen], points, labels).logits(points)
    assert logits.shape == (60, CLASSES) and (logits[:, 1] == -math.inf).all()
    assert accuracies(logits[seen], labels[seen])["top1"] > 0.9


def test_the_probe_takes_the_strongest_of_the_penalties_that_validation_finds_best() -> None:
    _, _, points, labels = shots("sphere(8)", 12, noise=1.5)
    _, _, val, val_labels = shots("sphere(8)", 12, noise=1.5, seed=0)
    val = val + 0.7 * torch.randn(val.shape, dtype=val.dtype)
    scores = [
        accuracies(linear_probe(points, labels, val, val_labels, (c,)).logits(val), val_labels)["top1"] for c in CS
    ]
    assert min(scores) < max(scores) and scores.count(max(scores)) > 1
    assert linear_probe(points, labels, val, val_labels).c == CS[scores.index(max(scores))]


def test_the_probe_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    _, _, points, labels = shots("sphere(8)")
    with pytest.raises(UserError, match=r"pip install 'oblique-clip\[explore\]'"):
        linear_probe(points, labels, points, labels)


def spread(spec: str) -> Callable[[Tensor, Tensor], float]:
    """Distance of two points in half widths of the range, written out."""
    half = {"sphere(8)": 1, "oblique(4,3)": 3, "oblique(4,3)/geodesic": math.pi * math.sqrt(3) / 2, "euclidean(8)": 1}
    distances: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "sphere(8)": lambda x, y: 1 - (x * y).sum(),
        "oblique(4,3)": lambda x, y: 3 - (x * y).sum(),
        "oblique(4,3)/geodesic": lambda x, y: (x * y).sum(-1).acos().norm(),
        "euclidean(8)": lambda x, y: (x - y).norm(),
    }
    return lambda x, y: distances[spec](x, y).item() / half[spec]


@pytest.mark.parametrize("spec", ["sphere(8)", "oblique(4,3)", "oblique(4,3)/geodesic", "euclidean(8)"])
def test_tip_adapter_is_the_papers_formula(spec: str) -> None:
    topology, prototypes, points, labels = shots(spec)
    _, _, queries, _ = shots(spec, 5, seed=1)
    alpha, beta, scale = 1.5, 3.0, 4.0
    adapter = tip_adapter(prototypes, points, labels, points, labels, topology, scale, (alpha,), (beta,))
    expected = torch.zeros(5, CLASSES, dtype=torch.float64)
    for i, query in enumerate(queries):
        for k, prototype in enumerate(prototypes):
            expected[i, k] = scale * topology.similarity(query[None], prototype[None]).item()
        for key, label in zip(points, labels, strict=True):
            expected[i, label] += alpha * math.exp(-beta * spread(spec)(query, key))
    assert relative_error(adapter.logits(queries), expected) < EXACT


def test_tip_adapter_takes_the_mildest_setting_that_validation_finds_best() -> None:
    topology, prototypes, points, labels = shots("oblique(4,3)", 12, noise=1.0)
    _, _, val, val_labels = shots("oblique(4,3)", 12, noise=1.2)

    def fit(alphas: tuple[float, ...], betas: tuple[float, ...]) -> tuple[float, float, float]:
        adapter = tip_adapter(prototypes, points, labels, val, val_labels, topology, 4.0, alphas, betas)
        return accuracies(adapter.logits(val), val_labels)["top1"], adapter.alpha, adapter.beta

    one_by_one = [fit((alpha,), (beta,)) for alpha in ALPHAS for beta in BETAS]
    best = max(score for score, _, _ in one_by_one)
    assert min(one_by_one)[0] < best and len({alpha for score, alpha, _ in one_by_one if score == best}) > 1
    assert fit(ALPHAS, BETAS) == next(found for found in one_by_one if found[0] == best)


def test_equal_logits_count_against() -> None:
    logits = torch.tensor([[1.0, 1.0], [2.0, 1.0], [0.0, math.nan]])
    assert accuracies(logits, torch.zeros(3, dtype=torch.long))["top1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.full((24,), 4)}, "labels run from 4 to 4; there are 4 classes"),
        ({"labels": torch.zeros(5, dtype=torch.long)}, "24 shots, 5 labels"),
        ({"lr": 0.0}, "lr and scale in"),
        ({"steps": -1}, "steps >= 0"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"topology": parse_topology("oblique(3,4)")}, r"points of oblique\(3,4\) are \(4, 3\)"),
    ],
)
def test_what_cannot_be_refined_is_said(changes: dict[str, object], message: str) -> None:
    topology, prototypes, points, labels = shots("oblique(4,3)")
    arguments = {"topology": topology, "points": points, "labels": labels, "scale": 1.0, **changes}
    with pytest.raises(UserError, match=message):
        refine_prototypes(prototypes, **arguments)  # type: ignore[arg-type]


def test_shots_of_one_class_cannot_be_probed() -> None:
    _, _, points, labels = shots("sphere(8)")
    with pytest.raises(UserError, match="at least two classes"):
        linear_probe(points, torch.zeros_like(labels), points, labels)


def pictures(draw: Draw) -> list[set[int]]:
    return [set(rows.ravel().tolist()) for rows in (draw.shots, draw.validation, draw.test)]


def test_no_concept_is_both_a_shot_and_in_the_test() -> None:
    """Not in another style, skin or sex either."""
    variants = {"artist", "man artist", "woman artist: dark skin tone", "Artist"}
    assert {base_concept(Record("noto", name, (), "", "")) for name in variants} == {"artist"}
    task, emoji = emoji_task(), load_emoji().of_families(("emoji-fluent",))
    names = {subgroup.replace("-", " "): subgroup for subgroup in (record.subgroup for record in emoji.records)}
    records = [record for record in emoji.records if record.subgroup in {names[name] for name in task.classes}]
    assert [names[task.classes[label]] for label in task.labels.tolist()] == [record.subgroup for record in records]
    for seed in range(3):
        parts = pictures(task.draw(seed))
        shown = [{(records[row].subgroup, base_concept(records[row])) for row in part} for part in parts]
        assert not (shown[0] & shown[1] or shown[0] & shown[2] or shown[1] & shown[2])
        assert len(shown[0]) == len(parts[0]) == 16 * len(task.classes)
        assert {name for name, _ in shown[2]} == {names[name] for name in task.classes}


def test_shots_are_nested_and_of_their_class() -> None:
    task = emoji_task()
    draw, before = task.draw(0), set[int]()
    assert draw.test.tolist() == task.draw(0).test.tolist() != task.draw(1).test.tolist()
    for k in SHOTS:
        rows, val = draw.of(k)
        assert torch.bincount(task.labels[rows]).tolist() == [k] * len(task.classes)
        assert torch.bincount(task.labels[val]).tolist() == [min(k, 4)] * len(task.classes)
        assert before < set(rows.tolist())
        before = set(rows.tolist())


def idx(path: Path, values: np.ndarray) -> None:
    """An IDX file as its authors describe it."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes()) if path.suffix == ".gz" else head + values.tobytes())


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_and_the_test_part_gives_no_shot(suffix: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    files = {"train": random.permutation(np.repeat(np.arange(10), 30)), "t10k": random.integers(0, 10, 50)}
    grey = {part: random.integers(0, 256, (len(labels), 28, 28), np.uint8) for part, labels in files.items()}
    for part, labels in files.items():
        idx(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", labels.astype(np.uint8))
        idx(tmp_path / f"{part}-images-idx3-ubyte{suffix}", grey[part])
    task: Task = fashion_task(tmp_path, pool=25)
    draw = task.draw(0)
    assert task.squares[draw.test, 1].numpy().tolist() == grey["t10k"].tolist()
    assert task.labels[draw.test].tolist() == files["t10k"].tolist()
    train = {picture.tobytes(): label for picture, label in zip(grey["train"], files["train"], strict=True)}
    for label, rows in enumerate(draw.shots):
        assert [train[task.squares[row, 2].numpy().tobytes()] for row in rows] == [label] * 16
        assert task.labels[rows].tolist() == [label] * 16


def test_an_interval_is_students() -> None:
    """Of five values with mean 3 and variance 5/2; the quantile is that of scipy."""
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    quantile = pytest.importorskip("scipy.stats").t.ppf(0.975, df=4)
    assert found["mean"] == pytest.approx(3, abs=EXACT)
    assert found["half"] == pytest.approx(quantile * math.sqrt(2.5 / 5), rel=1e-3)
    assert interval([2.0] * 5) == {"mean": 2.0, "half": 0.0}


def test_differences_are_taken_seed_by_seed_against_what_each_method_has() -> None:
    """A classifier without shots and the floor of no model stand beside every number of shots."""
    ours, rows = "refined prototypes", []
    for seed in range(SEEDS):
        base = {"task": "t", "seed": seed}
        rows.append({**base, "model": "m", "method": ZERO, "shots": 0, HEADLINE: 0.1 * seed})
        for k in SHOTS:
            rows.append({**base, "model": "m", "method": ours, "shots": k, HEADLINE: 0.1 * seed + 0.01 * k})
            rows.append({**base, "model": "none", "method": PIXELS, "shots": k, HEADLINE: 0.5})
    found = {(row["method"], row["shots"]): row for row in differences(rows, ours, (ZERO, PIXELS))}
    assert len(found) == 2 * len(SHOTS)
    for k in SHOTS:
        # Always k points ahead: paired, the seeds' own spread cancels.
        assert found[ZERO, k]["mean"] == pytest.approx(k) and found[ZERO, k]["half"] == pytest.approx(0, abs=1e-6)
        assert found[PIXELS, k]["mean"] == pytest.approx(100 * (0.2 - 0.5) + k) and found[PIXELS, k]["half"] > 10


def test_missing_files_of_fashion_mnist_are_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no train-images-idx3-ubyte or train-images-idx3-ubyte\.gz"):
        main(FewShot(fashion_mnist=tmp_path, out=tmp_path))
    assert not any(tmp_path.iterdir())
