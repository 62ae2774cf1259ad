"""Pictures of embedding spaces hold the numbers that were put in, and refuse what they cannot draw in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oblique_clip import parse_topology
from oblique_clip.config import TrainConfig, model_config, to_json
from oblique_clip.draw import (
    draw_circles,
    draw_persistence,
    draw_places,
    draw_scales,
    draw_similarities,
    draw_similarity_curves,
    draw_sizes,
    draw_softmax,
    draw_spheres,
    draw_votes,
    draw_way,
    places_figure,
    spheres_figure,
)
from oblique_clip.draw.similarities import Pairs
from oblique_clip.errors import UserError
from oblique_clip.explore import Persistence, Traversal
from oblique_clip.explore.points import sample_rows
from oblique_clip.page.map import draw_map
from oblique_clip.style import FORMS
from oblique_clip.topology import Topology


def points_of(spec: str, count: int, seed: int = 0) -> tuple[Topology, Tensor]:
    topology = parse_topology(spec)
    features = torch.randn(count, topology.m, topology.n, generator=torch.Generator().manual_seed(seed))
    return topology, topology.project(features.double())


def dots(axis: Any) -> list[np.ndarray]:
    """Places of the dots of each scatter on an axis."""
    return [np.asarray(drawn.get_offsets()) for drawn in axis.collections]


# Circles and globes


def test_circles_have_pictures_on_them_and_names_just_within() -> None:
    topology, images = points_of("oblique(2,3)", 7)
    texts = points_of("oblique(2,3)", 4, seed=1)[1]
    axes = draw_circles(images, texts, topology).axes
    for sphere, axis in enumerate(axes[:3]):
        outer, inner = dots(axis)
        assert np.allclose(outer, images[:, sphere])
        assert np.allclose(inner, 0.9 * texts[:, sphere].numpy())


def test_the_torus_cut_open_shows_the_angles_of_the_first_two_spheres() -> None:
    angles = torch.tensor([[0.0, 90.0], [-135.0, 30.0], [179.0, -60.0]], dtype=torch.float64)
    turned = angles.deg2rad()
    points = torch.stack([turned.cos(), turned.sin()], -1)
    *_, torus = draw_circles(points, points[:1], parse_topology("oblique(2,2)")).axes
    pictures, names = dots(torus)
    assert np.allclose(pictures, angles) and np.allclose(names, angles[:1])
    assert torus.get_xlim() == torus.get_ylim() == (-180, 180) and "degrees" in torus.get_xlabel()


def test_a_single_circle_has_no_torus() -> None:
    topology, points = points_of("sphere(2)", 5)
    assert [axis.get_title() for axis in draw_circles(points, points, topology).axes] == ["sphere 1"]


def test_every_point_is_drawn_once_on_every_globe_at_its_own_length() -> None:
    """Seen from anywhere a unit vector's shadow is no longer than 1, and what is missing to it is its depth."""
    topology, images = points_of("oblique(3,5)", 40)
    texts = points_of("oblique(3,5)", 9, seed=1)[1]
    figure = draw_spheres(images, texts, topology)
    assert len(figure.axes) == 5
    for axis in figure.axes:
        far_images, near_images, far_texts, near_texts = dots(axis)
        assert len(far_images) + len(near_images) == 40 and len(far_texts) + len(near_texts) == 9
        assert np.linalg.norm(np.concatenate(dots(axis)), axis=1).max() <= 1 + 1e-12


def test_a_globe_keeps_distances_within_the_plane_of_view_and_fades_its_far_side() -> None:
    """Two antipodes are drawn at opposite places, one near and one far; the far one is fainter."""
    pole = torch.tensor([[[0.0, 0.6, 0.8]], [[0.0, -0.6, -0.8]]], dtype=torch.float64)
    (axis,) = draw_spheres(pole, pole[:1], parse_topology("sphere(3)")).axes
    far, near = axis.collections[:2]
    assert np.allclose(far.get_offsets(), -np.asarray(near.get_offsets()))
    assert far.get_alpha() < near.get_alpha()


def test_globes_to_turn_hold_the_same_points_and_names() -> None:
    pytest.importorskip("plotly")
    topology, images = points_of("oblique(3,2)", 6)
    texts = points_of("oblique(3,2)", 3, seed=1)[1]
    figure = spheres_figure(images, texts, topology, text_names=("a", "b", "c"))
    for kind, points in (("pictures", images), ("names", texts)):
        traces = [trace for trace in figure.data if trace.name == kind]
        found = np.stack([np.stack([trace.x, trace.y, trace.z], 1) for trace in traces], 1)
        assert np.abs(found - points.numpy()).max() <= 5e-4  # rounded to three digits
    assert [list(trace.text) for trace in traces] == [["a", "b", "c"]] * 2


# Maps


def test_a_map_lays_each_picture_at_its_place() -> None:
    topology, points = points_of("oblique(4,2)", 6)
    pictures = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 4, 4)
    images = draw_places(points, topology, pictures).axes[0].images
    places = draw_map(points, topology).places
    left, right, low, high = np.array([image.get_extent() for image in images]).T
    assert np.allclose(np.stack([left + right, low + high], 1) / 2, places)
    assert [int(np.asarray(image.get_array()).max()) for image in images] == list(range(6))


def test_a_map_to_hover_on_has_the_same_places_by_kind() -> None:
    pytest.importorskip("plotly")
    topology, points = points_of("oblique(4,2)", 5)
    figure = places_figure(points, topology, "abcde", kinds=("odd", "even", "odd", "even", "odd"))
    places = draw_map(points, topology).places
    for trace, rows in zip(figure.data, ([0, 2, 4], [1, 3]), strict=True):
        assert list(trace.text) == ["abcde"[row] for row in rows]
        assert np.abs(np.stack([trace.x, trace.y], 1) - places[rows]).max() <= 5e-5  # rounded to four digits
    assert figure.data[0].marker.symbol != figure.data[1].marker.symbol


def test_a_sample_has_each_row_at_most_once_and_follows_its_seed() -> None:
    points = torch.zeros(50, 1, 2)
    rows = sample_rows(len(points), 20, seed=0)
    assert len(rows) == 20 and (rows.diff() > 0).all() and rows[0] >= 0 and rows[-1] < 50
    assert torch.equal(rows, sample_rows(len(points), 20, seed=0)) and not torch.equal(
        rows, sample_rows(len(points), 20, seed=1)
    )


# Similarities


def test_similarities_are_shares_of_the_range_and_sum_to_a_hundred() -> None:
    """Pairs coincide, at the top of the range; strangers are antipodes, at its bottom."""
    points = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[-1.0, 0.0], [-1.0, 0.0]]])
    (axis,) = draw_similarities({"one": Pairs(points, points, parse_topology("oblique(2,2)"))}, bins=10).axes
    pairs, strangers = (drawn.get_data() for drawn in axis.patches)
    assert pairs.edges[[0, -1]].tolist() == strangers.edges[[0, -1]].tolist() == [-1, 1]
    assert np.allclose(pairs.values, [0] * 9 + [100]) and np.allclose(strangers.values, [100] + [0] * 9)


def test_pairs_and_strangers_differ_in_line_as_in_grey_they_must() -> None:
    topology, points = points_of("oblique(4,2)", 20)
    axes = draw_similarities({"a": Pairs(points, points, topology), "b": Pairs(points, points, topology)}).axes
    assert [axis.get_title() for axis in axes] == ["a", "b"]
    assert len({patch.get_linestyle() for patch in axes[0].patches}) == 2


def test_curves_of_similarities_are_those_of_the_metrics(tmp_path: Path) -> None:
    """In the topology's own units, with a band of one standard deviation to either side."""
    run = tmp_path / "run"
    run.mkdir()
    config = TrainConfig(model=model_config("tiny", "oblique"), out=run)
    (run / "config.json").write_text(json.dumps(to_json(config)))
    lines = [{"step": step, "val_positive": 8.0, "val_positive_std": 0.0, "val_negative": value,
              "val_negative_std": 1.6} for step, value in ((1, 0.0), (2, -8.0))]  # fmt: skip
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (axis,) = draw_similarity_curves({"run": run}).axes
    pairs, strangers = axis.lines
    assert list(pairs.get_xdata()) == list(strangers.get_xdata()) == [1, 2]
    assert list(pairs.get_ydata()) == [8, 8] and list(strangers.get_ydata()) == [0, -8]
    band = axis.collections[1].get_paths()[0].vertices
    assert np.isclose(band[:, 1].max(), 1.6) and np.isclose(band[:, 1].min(), -9.6)


# Persistence


@pytest.fixture
def diagrams() -> Persistence:
    clusters, loops = np.array([[0.0, 0.5], [0.0, np.inf]]), np.array([[1.0, 3.0]])
    return Persistence((clusters, loops), torch.arange(2), radius=0.1, unit=1.0, metric="sphere(2)/chordal")


def test_every_hole_is_drawn_at_birth_and_death_and_what_lasts_at_the_top(diagrams: Persistence) -> None:
    diagram, _ = draw_persistence({"set": diagrams}).axes
    band, clusters, lasting, loops, none = dots(diagram)
    end = 1.08 * 3
    assert clusters.tolist() == [[0, 0.5]] and loops.tolist() == [[1, 3]] and not len(none)
    assert np.allclose(lasting, [[0, end]])
    band = diagram.collections[0].get_paths()[0].vertices
    # The band's upper edge is the sampling error, 0.2, above the diagonal.
    assert np.isclose((band[:, 1] - band[:, 0]).max(), diagrams.error)


def test_betti_curves_count_what_is_alive(diagrams: Persistence) -> None:
    _, curves = draw_persistence({"set": diagrams}).axes
    clusters, loops = curves.lines
    assert [clusters.get_label(), loops.get_label()] == ["clusters", "loops"]
    scales = np.asarray(clusters.get_xdata())
    assert (clusters.get_ydata() == np.where(scales < 0.5, 2, 1)).all()
    assert (loops.get_ydata() == ((scales >= 1) & (scales < 3))).all()


def test_every_kind_of_hole_is_named_and_distances_have_their_unit(diagrams: Persistence) -> None:
    """Also where the first set was not looked at for voids."""
    voids = np.array([[1.5, 2.0]])
    more = replace(diagrams, diagrams=(*diagrams.diagrams, voids), unit=1.3)
    figure = draw_persistence({"loops": diagrams, "voids": more})
    (legend,) = filter(None, (axis.get_legend() for axis in figure.axes))
    assert [text.get_text() for text in legend.get_texts()] == ["clusters", "loops", "voids"]
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert {"birth (chordal distance)", "birth (median distances)"} <= set(labels)


# Softmax


def test_a_softmax_goes_from_uniform_to_argmax() -> None:
    values = torch.tensor([0.5, 0.1, -0.3])
    left, right = draw_softmax(values, ("a", "b", "c"), scales=(1e-3, 1e3), marked={"here": 10.0}).axes
    shares = np.stack([line.get_ydata() for line in left.lines[:3]])
    assert np.allclose(shares.sum(0), 1) and np.allclose(shares[:, 0], 1 / 3, atol=1e-3)
    assert np.allclose(shares[:, -1], [1, 0, 0], atol=1e-6)
    entropy = np.asarray(right.lines[0].get_ydata())
    assert math.isclose(entropy[0], math.log(3), rel_tol=1e-6) and entropy[-1] < 1e-6
    assert (np.diff(entropy) <= 1e-9).all()
    assert [line.get_xdata()[0] for line in (left.lines[3], right.lines[2])] == [10.0, 10.0]


def test_a_wider_range_moves_the_curves_and_nothing_else() -> None:
    """m spheres that agree at scale s are one sphere at scale m s."""
    values = torch.tensor([0.5, 0.1])
    one = draw_softmax(values, ("a", "b"), scales=(0.16, 160.0)).axes[0].lines[0]
    many = draw_softmax(16 * values, ("a", "b"), scales=(0.01, 10.0)).axes[0].lines[0]
    assert np.allclose(one.get_ydata(), many.get_ydata())
    assert np.allclose(one.get_xdata(), 16 * np.asarray(many.get_xdata()))


# Votes


def test_votes_are_cosines_sphere_by_sphere_the_most_similar_name_first() -> None:
    topology, texts = points_of("oblique(3,4)", 5)
    image = points_of("oblique(3,4)", 1, seed=1)[1][0]
    axis = draw_votes(image, texts, tuple("abcde"), topology).axes[0]
    shown = np.asarray(axis.images[0].get_array())
    cosines = (image * texts).sum(-1).numpy()
    order = np.argsort(-cosines.sum(1))
    assert np.allclose(shown[:, :4], cosines[order]) and np.allclose(shown[:, 4], cosines[order].mean(1))
    assert [label.get_text() for label in axis.get_yticklabels()] == ["abcde"[row] for row in order]
    stars = {round(star.get_position()[0]): round(star.get_position()[1]) for star in axis.texts}
    assert stars == dict(enumerate(cosines[order].argmax(0)))


# Ways


def test_a_way_shows_what_is_nearest_and_from_when() -> None:
    pictures = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 4, 4)
    of_pictures = Traversal(torch.tensor([2, 0]), torch.tensor([0.0, 0.25]))
    of_names = Traversal(torch.tensor([1, 0]), torch.tensor([0.0, 0.5]))
    figure = draw_way(pictures, of_pictures, ("apple", "bus"), of_names, ends={"a bus": 0, "an apple": 1})
    *shown, names = figure.axes
    assert [int(np.asarray(axis.images[0].get_array()).max()) for axis in shown] == [2, 0]
    assert [axis.get_title() for axis in shown] == ["0.00", "0.25"]
    assert [(text.get_text(), text.get_position()[0]) for text in names.texts] == [("bus", 0.25), ("apple", 0.75)]
    assert names.get_xlabel() == "share of the way from a bus to an apple"


# Runs


def test_scales_are_a_dot_a_run_and_a_line_through_their_means() -> None:
    axis = draw_scales({"sphere": {0.0: [30.0, 34.0], 0.5: [20.0]}, "oblique": {0.0: [10.0]}}).axes[0]
    own, means, others, _ = axis.lines
    assert list(zip(own.get_xdata(), own.get_ydata(), strict=True)) == [(0, 30), (0, 34), (0.5, 20)]
    assert means.get_ydata().tolist() == [32, 20] and list(others.get_ydata()) == [10]
    assert own.get_marker() != others.get_marker()
    assert means.get_linestyle() == FORMS["sphere"]["linestyle"]


def test_sizes_are_marked_where_they_were_measured() -> None:
    axis = draw_sizes({"nested": {64: [0.5, 0.25], 16: [0.125]}}).axes[0]
    assert axis.get_xscale() == "log" and axis.get_xticks().tolist() == [16, 64]
    assert axis.lines[1].get_ydata().tolist() == [37.5, 12.5]


# Refusals

GLOBES, CIRCLES = points_of("oblique(3,2)", 4), points_of("oblique(2,2)", 4)
FLAT, WIDE = points_of("euclidean(3)", 4), points_of("oblique(4,2)", 4)


def called(function: Callable[..., Any], topology: Topology, points: Tensor) -> Callable[[], Any]:
    return lambda: function(points, points, topology)


@pytest.mark.parametrize(
    "drawing, said",
    [
        (called(draw_spheres, *CIRCLES), "spheres of 2 numbers; those of 3 can be drawn"),
        (called(spheres_figure, *CIRCLES), "spheres of 2 numbers; those of 3 can be drawn"),
        (called(draw_circles, *GLOBES), "spheres of 3 numbers; those of 2 can be drawn"),
        (called(draw_spheres, *FLAT), "no product of spheres"),
        (lambda: draw_spheres(WIDE[1], WIDE[1], GLOBES[0]), r"shape \(N, 2, 3\)"),
        (
            lambda: draw_places(GLOBES[1], GLOBES[0], torch.zeros(3, 3, 4, 4, dtype=torch.uint8)),
            "4 points need as many",
        ),
        (lambda: places_figure(GLOBES[1], GLOBES[0], ("a",)), "4 points need as many names"),
        (lambda: draw_similarities({}), "name at least one model"),
        (lambda: draw_similarities({"flat": Pairs(FLAT[1], FLAT[1], FLAT[0])}), "no largest similarity"),
        (lambda: draw_persistence({}), "name at least one set"),
        (lambda: draw_softmax(torch.zeros(3), ("a", "b")), "as many names"),
        (lambda: draw_softmax(torch.zeros(2), ("a", "b"), scales=(0.0, 1.0)), "from 0.0 to 1.0"),
        (lambda: draw_votes(FLAT[1][0], FLAT[1], "abcd", FLAT[0]), "no product of spheres"),
        (lambda: draw_votes(WIDE[1][0], WIDE[1], "abc", WIDE[0]), "4 points of names need as many names, not 3"),
        (lambda: draw_scales({}), "no run to draw"),
        (lambda: draw_sizes({"nested": {}}), "no run to draw"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(drawing: Callable[[], Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        drawing()
    assert "\n" not in str(refusal.value)


def test_a_way_of_another_gallery_is_refused() -> None:
    way = Traversal(torch.tensor([5]), torch.tensor([0.0]))
    with pytest.raises(UserError, match="row 5 of a gallery of 2"):
        draw_way(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), way, ("a", "b"), way)
