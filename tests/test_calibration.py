"""Calibration: the error and its bars against a plain loop, the fitted scale against scipy and the scale that drew."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oblique_clip import load
from oblique_clip.checkpoint import save_model
from oblique_clip.config import DataConfig, model_config
from oblique_clip.errors import UserError
from oblique_clip.evaluate import tasks
from oblique_clip.evaluate.calibration import (
    BINS,
    FITTED,
    OWN,
    calibration,
    calibration_error,
    confidences,
    draw_reliability,
    fit_temperature,
    reliability,
)
from oblique_clip.evaluate.run import EvaluateConfig, evaluate
from oblique_clip.evaluate.zeroshot import classification
from oblique_clip.topology import parse_topology

EXACT = 1e-12
"""The same sums in float64, in another order."""
FIT = 1e-5
"""Relative difference of two minimisers of one smooth function, whose values agree to 1e-12."""
DRAWN = 0.05
"""Relative difference of a scale fitted to 20,000 labels from the scale that drew them."""


def error_by_hand(confidence: list[float], right: list[bool], bins: int) -> float:
    """Guo et al. 2017, (2) and (3), word for word: B_m is the pictures with confidence in ((m - 1)/M, m/M]."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = [i for i, p in enumerate(confidence) if (m - 1) / bins < p <= m / bins or (m == 1 and p == 0)]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


@settings(max_examples=80, deadline=None, database=None)
@given(data=st.data(), count=st.integers(1, 40), bins=st.sampled_from([1, 2, 4, 15]))
def test_the_error_is_that_of_a_plain_loop(data: st.DataObject, count: int, bins: int) -> None:
    """Sixteenths lie on the edges of 1, 2 and 4 bins."""
    share = st.one_of(st.integers(0, 16).map(lambda n: n / 16), st.floats(0, 1))
    confidence = data.draw(st.lists(share, min_size=count, max_size=count))
    right = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    bars = reliability(torch.tensor(confidence, dtype=torch.float64), torch.tensor(right), bins)
    assert calibration_error(bars) == pytest.approx(error_by_hand(confidence, right, bins), abs=EXACT)
    assert sum(bars["count"]) == count and len(bars["count"]) == bins
    assert [accuracy is None for accuracy in bars["accuracy"]] == [number == 0 for number in bars["count"]]


def test_known_errors() -> None:
    certain = torch.ones(8, dtype=torch.float64)
    assert calibration_error(reliability(certain, certain.bool())) == 0
    assert calibration_error(reliability(certain, ~certain.bool())) == 1
    half = torch.tensor([True, False] * 4)
    assert calibration_error(reliability(certain / 2, half)) == 0
    assert calibration_error(reliability(certain * 0.8, half)) == pytest.approx(0.3, abs=EXACT)


def likelihood(similarity: Tensor, labels: Tensor, scale: float) -> float:
    return float(-(scale * similarity.double()).log_softmax(1).gather(1, labels[:, None]).mean())


def drawn(scale: float, count: int = 20_000, classes: int = 12) -> tuple[Tensor, Tensor]:
    """Similarities, and labels as likely as the softmax under a scale says."""
    similarity = torch.randn(count, classes, dtype=torch.float64)
    return similarity, (scale * similarity).softmax(1).multinomial(1)[:, 0]


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("scale", [0.3, 4.0])
def test_the_fitted_scale_is_scipys_and_the_one_that_drew_the_labels(scale: float, unit: float) -> None:
    scipy = pytest.importorskip("scipy.optimize")
    similarity, labels = drawn(scale)
    found = fit_temperature(similarity * unit, labels)
    best = scipy.minimize_scalar(
        lambda log: likelihood(similarity, labels, math.exp(log)), bounds=(-8, 8), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    assert found * unit == pytest.approx(math.exp(best.x), rel=FIT)
    assert found * unit == pytest.approx(scale, rel=DRAWN)
    assert all(likelihood(similarity, labels, found * unit) <= likelihood(similarity, labels, found * unit * f)
               for f in (0.5, 0.99, 1.01, 2.0))  # fmt: skip


def test_a_fitted_scale_calibrates_other_pictures() -> None:
    similarity, labels = drawn(2.0)
    fitted = fit_temperature(similarity[:10_000], labels[:10_000])
    points, classifier = similarity[10_000:, None], torch.eye(12, dtype=torch.float64)[:, None]
    # Minus half the squared distance from the axes is the similarity, but for what all classes share.
    case = (points, labels[10_000:], classifier, parse_topology("euclidean(12)/squared"))
    found = calibration(*case, {OWN: 10 / 2, FITTED: fitted / 2})
    assert found[FITTED] < 0.02 < 0.2 < found[OWN]


@pytest.mark.parametrize("separable", [True, False])
def test_where_no_scale_is_best_the_fit_ends_at_a_finite_one(separable: bool) -> None:
    """Where all are right the more the better, where the right class is always last the less."""
    similarity = torch.randn(50, 6)
    labels = similarity.argmax(1) if separable else similarity.argmin(1)
    found = fit_temperature(similarity, labels)
    assert 0 < found < math.inf
    assert likelihood(similarity, labels, found) < (0.01 if separable else math.log(6) + 0.01)


@pytest.mark.parametrize("topology", ["sphere(8)", "oblique(4,2)/geodesic", "lorentz(8)"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_a_scale_changes_no_accuracy(topology: str, scale: float) -> None:
    space = parse_topology(topology)
    n, m = space.n, space.m
    with torch.no_grad():
        points, classifier = space.project(torch.randn(60, m, n)), space.project(torch.randn(7, m, n))
    # The third class ties with the second.
    classifier[2] = classifier[1]
    labels = torch.randint(0, 7, (60,))
    case = (points, labels, classifier, space)
    bars = calibration(*case, {OWN: scale})["reliability"][OWN]
    hits = sum(count * accuracy for count, accuracy in zip(bars["count"], bars["accuracy"], strict=True) if count)
    assert hits / 60 == pytest.approx(classification(*case)["top1"], abs=EXACT)
    confidence, right = confidences(*case, scale, chunk=7)
    whole = confidences(*case, scale)
    assert torch.equal(right, whole[1]) and (confidence - whole[0]).abs().max() <= 1e-3 * max(1, scale)


def test_what_is_no_number_has_no_calibration() -> None:
    space = parse_topology("sphere(4)")
    points = torch.full((3, 1, 4), math.nan)
    assert calibration(points, torch.zeros(3, dtype=torch.long), points, space, {OWN: 1.0}) == {}
    for similarity in (points[:, 0], torch.empty(0, 4)):
        with pytest.raises(UserError, match="finite similarities"):
            fit_temperature(similarity, torch.zeros(len(similarity), dtype=torch.long))


FEW = DataConfig(test_families=("emoji-fxemoji",), val_families=("emoji-streamline",), held_out_concepts=())


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A shipped model as if other families had been held out, and its report."""
    folder = tmp_path_factory.mktemp("calibration")
    config = model_config("tiny", "sphere")
    save_model(load("tiny-sphere").model, config, folder / "model.safetensors", data=FEW)
    evaluate(EvaluateConfig(folder / "model.safetensors", device="cpu", out=folder / "out"))
    return folder, json.loads((folder / "out" / "result.json").read_text())["evaluation"]


def test_the_shipped_set_is_calibrated_on_its_validation_family(
    judged: tuple[Path, dict[str, dict[str, float]]],
) -> None:
    folder, report = judged
    model = load(folder / "model.safetensors")
    held_out = tasks.HeldOut(FEW)
    scales = tasks.calibration_scales(model, held_out)
    points, labels, classifier, topology = tasks.Encoded(model, held_out).case(held_out.splits.val)
    similarity = topology.similarity(points, classifier)
    assert scales[OWN] == model.model.temperature.scale.item()
    assert all(likelihood(similarity, labels, scales[FITTED]) < likelihood(similarity, labels, scales[FITTED] * f)
               for f in (0.9, 1.1))  # fmt: skip

    points, labels, classifier, topology = tasks.Encoded(model, held_out).case(held_out.splits.test)
    for name, scale in scales.items():
        highest, place = (scale * points.flatten(1) @ classifier.flatten(1).T).double().softmax(1).max(1)
        expected = error_by_hand(highest.tolist(), (place == labels).tolist(), BINS)
        # One picture of 608 may change its bin or its side in float32.
        assert report["family"][name] == pytest.approx(expected, abs=2 / len(labels))
    assert report["family"][FITTED] < report["family"][OWN]


def test_the_diagram_shows_the_bars_of_the_report(judged: tuple[Path, dict[str, dict[str, dict[str, dict]]]]) -> None:
    folder, report = judged
    assert (folder / "out" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    axis = draw_reliability({"family": report["family"]}).axes[0]
    for line, bars in zip(axis.lines[1:], report["family"]["reliability"].values(), strict=True):
        shown = [accuracy for accuracy in bars["accuracy"] if accuracy is not None]
        assert list(line.get_ydata()) == shown and max(shown) <= 1
