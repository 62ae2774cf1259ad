"""What the page of finished runs says, and that it stays one small file of plain text."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from made_runs import STEPS, made_metrics, made_result, make_run
from matplotlib.figure import Figure

from oblique_clip.columns import COLUMNS
from oblique_clip.config import DataConfig, TrainConfig, model_config, read_json, to_json, write_json
from oblique_clip.data.emoji import EmojiSet, load_emoji
from oblique_clip.errors import UserError
from oblique_clip.page import family, write
from oblique_clip.page.confusion import confusion
from oblique_clip.page.examples import draw_examples
from oblique_clip.page.family import Seen, look
from oblique_clip.page.map import Map, draw_map
from oblique_clip.page.render import render
from oblique_clip.page.runs import runs_grid
from oblique_clip.page.spread import BINS, spread
from oblique_clip.report import ReportConfig, report
from oblique_clip.sweep.answer import write_answer
from oblique_clip.sweep.question import Arm, Finding, Question, varied
from oblique_clip.sweep.results import Results, folder_of
from oblique_clip.topology import parse_topology

SCRIPT = "<script>alert(1)</script>"
TOPOLOGIES = ("sphere(8)", "oblique(4,2)", "oblique(4,2)/geodesic", "euclidean(8)", "lorentz(8)")
LIMIT = 5_000_000
"""Bytes of a page of ten runs."""


def fluent(names: int) -> EmojiSet:
    """Fluent's pictures of its first so many names."""
    whole = load_emoji().of_families(("emoji-fluent",))
    kept = set(sorted({record.concept for record in whole.records})[:names])
    return whole.select(np.array([record.concept in kept for record in whole.records]))


def guessed(test: EmojiSet, spec: str = "sphere(8)", noise: float = 2.0, seed: int = 0) -> Seen:
    """Pictures scattered around the points of their names."""
    topology, random = parse_topology(spec), torch.Generator().manual_seed(seed)
    names = sorted({record.concept for record in test.records})
    texts = torch.randn(len(names), topology.m, topology.n, generator=random)
    labels = torch.tensor([names.index(record.concept) for record in test.records])
    pictures = texts[labels] + noise * torch.randn(len(labels), topology.m, topology.n, generator=random)
    with torch.no_grad():
        return Seen(test, topology, topology.project(pictures), topology.project(texts))


def data_in(page: str) -> dict[str, Any]:
    """The JSON that the script reads, as strictly as a browser takes it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    start = page.index('<script type="application/json" id="data">')
    text = page[page.index(">", start) + 1 : page.index("</script>", start)]
    return dict(json.loads(text, parse_constant=refuse))


class Tags(HTMLParser):
    """Every element and attribute of a page, by name."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attrs}


def test_every_figure_of_the_terminal_table_is_on_the_page(tmp_path: Path) -> None:
    result: dict[str, Any] = {}
    for number, column in enumerate(COLUMNS):
        place = result
        for key in column.path[:-1]:
            place = place.setdefault(key, {})
        place[column.path[-1]] = f"figure {number}"
    write_json(tmp_path / "config.json", to_json(TrainConfig()))
    (row,) = runs_grid({"run": tmp_path}, {"run": result}).rows
    assert not {column.text(result) for column in COLUMNS} - set(row)


def test_a_name_for_a_picture_is_right_where_its_rank_says_so() -> None:
    found = draw_examples(guessed(fluent(40)), count=30)
    for asked in (*found.pictures, *found.names):
        first = [right for _, right in asked.found].index(True) + 1 if any(r for _, r in asked.found) else None
        assert first == asked.rank if asked.rank <= len(asked.found) else first is None
    assert {asked.rank == 1 for asked in found.pictures} == {True, False}


def test_every_run_is_asked_for_the_same_pictures_and_names() -> None:
    test = fluent(40)
    one, other = (draw_examples(guessed(test, seed=seed)) for seed in (1, 2))
    assert [asked.row for asked in one.pictures] == [asked.row for asked in other.pictures]
    assert [asked.name for asked in one.names] == [asked.name for asked in other.names]
    again = draw_examples(guessed(test, seed=1), seed=1)
    assert [asked.row for asked in one.pictures] != [asked.row for asked in again.pictures]


def test_a_model_that_is_always_right_confuses_nothing() -> None:
    found = confusion(guessed(fluent(40), noise=0.0))
    assert not found.pairs and not found.draws
    assert found.groups.shares == tuple(map(tuple, np.eye(len(found.groups.names)).tolist()))


def test_confusions_are_those_of_a_model_that_always_says_one_name() -> None:
    seen = guessed(fluent(40))
    only = replace(seen, points=seen.texts[5].expand_as(seen.points))
    found, wrong = confusion(only), int((only.labels != 5).sum())
    assert [(draw.name, draw.count, draw.names) for draw in found.draws] == [(seen.names[5], wrong, 39)]
    assert all(pair.count == pair.of and pair.taken_for == seen.names[5] for pair in found.pairs)
    assert all(max(row) == 1.0 for row in found.groups.shares)


@pytest.mark.parametrize("spec", TOPOLOGIES)
def test_histograms_have_the_means_that_stand_below_them(spec: str) -> None:
    seen = guessed(fluent(40), spec)
    found = spread(seen)
    centres = (np.arange(BINS) + 0.5) / BINS
    for shares, mean in ((found.own, found.own_mean), (found.others, found.others_mean)):
        assert sum(shares) == pytest.approx(1)
        assert float(np.dot(shares, centres)) == pytest.approx(mean, abs=0.5 / BINS)
    below = [(row < own).sum().item() for row, own in zip(seen.similarity, seen.own, strict=True)]
    assert found.above == pytest.approx(sum(below) / (len(seen.names) - 1) / len(below))


@pytest.mark.parametrize("spec", TOPOLOGIES)
def test_neighbours_on_the_map_are_neighbours_of_the_model(spec: str) -> None:
    """Three names with forty pictures each, as many as a neighbourhood of t-SNE has."""
    seen = guessed(fluent(3), spec, noise=0.0)
    labels = torch.arange(120) % 3
    scattered = seen.texts[labels] + 0.02 * torch.randn(120, *seen.topology.point_shape)
    points = scattered if seen.topology.family == "euclidean" else seen.topology.manifold.projx(scattered)
    drawn = draw_map(points, seen.topology)
    gaps = np.linalg.norm(drawn.places[:, None] - drawn.places[None], axis=-1)
    np.fill_diagonal(gaps, np.inf)
    assert drawn.method == "t-SNE"
    assert (labels[gaps.argmin(1)] == labels).float().mean() > 0.95


def test_a_flat_map_of_flat_points_keeps_their_distances_and_follows_another() -> None:
    plane = parse_topology("euclidean(2)")
    points = 10 * torch.randn(30, 1, 2)
    first = draw_map(points, plane)
    mirrored = draw_map(points.flip(-1), plane, like=first)
    gaps = np.linalg.norm(first.places[:, None] - first.places[None], axis=-1)
    true = torch.cdist(points[:, 0], points[:, 0]).numpy()
    apart = np.triu(gaps > 0.1, 1)  # nearer pictures are moved
    assert first.method == "principal coordinates"
    assert np.corrcoef(gaps[apart], true[apart])[0, 1] > 0.999
    assert np.abs(mirrored.places - first.places).max() < 0.02


def test_what_is_no_number_is_a_gap_in_a_curve(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = write.write_page(tmp_path, {"run": run}, {"run": made_result("oblique(16,8)", 0.1)}, {"run": {"x": 1}})
    (loss,) = (curve for curve in data_in(page.read_text(encoding="utf-8"))["curves"] if curve["unit"] == "nats")
    (line,) = loss["lines"]
    assert line["x"][-1] == STEPS
    assert [x for x, y in zip(line["x"], line["y"], strict=True) if y is None] == [8]


def test_nothing_that_a_run_says_becomes_markup(tmp_path: Path) -> None:
    """Names of runs and what result.json holds, which may be a stranger's; captions are tried in a browser."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, "scale": 1.0, "margin": 0.4}) + "\n")
    write_json(run / "config.json", to_json(TrainConfig()))
    attack = f"\"'{SCRIPT}<img src=x onerror=alert(1)>{{{{ 7 * 6 }}}}"
    result: dict[str, Any] = dict.fromkeys(
        ("topology", "steps", "batch_size", "seed", "threads", "device", "command", "scale", "parameters"), attack
    )
    result |= {"versions": {"torch": attack}, "evaluation": {"concepts": {"top1": attack}}, "warnings": [attack]}
    runs = {name: run for name in (attack, "other")}
    page = write.write_page(
        tmp_path, runs, dict.fromkeys(runs, result), {attack: {attack: attack}, "other": {attack: 1}}
    )
    text = page.read_text(encoding="utf-8")
    tags = Tags(text)
    assert tags.elements.count("script") == 2 and "img" not in tags.elements and "onerror" not in tags.attributes
    assert SCRIPT not in text and data_in(text)["runs"] == [attack, "other"]


def test_a_sweeps_answer_is_escaped_on_the_same_page() -> None:
    finding = Finding(SCRIPT, "supported", SCRIPT)
    page = render(
        "answer.html.jinja", title=SCRIPT, command=SCRIPT, missing=0, findings=[finding], pictures=[], tables=[]
    )
    assert SCRIPT not in page and Tags(page).elements.count("script") == 1


def test_a_sweeps_answer_has_its_pictures_and_tables_that_sort(tmp_path: Path) -> None:
    arms = {name: varied(TrainConfig(), model={"topology": name}) for name in ("sphere(128)", "euclidean(128)")}
    question = Question("q", "Which?", tuple(Arm(name, config, seeds=2) for name, config in arms.items()))
    for arm in question.arms:
        for seed, top1 in enumerate((0.1, 0.125)):
            run = make_run(folder_of(tmp_path, arm.name, seed), top1=top1)
            write_json(run / "judged.json", {"evaluation": read_json(run / "result.json")["evaluation"], "right": {}})
    page = write_answer(Results(question, tmp_path)).read_text(encoding="utf-8")
    tags = Tags(page)
    assert tags.elements.count("img") == 2 and tags.elements.count("table") == 4
    assert "<h1>Which?</h1>" in page and "10.00, 12.50" in page and page.count('aria-sort="none"') > 10


def test_ten_runs_stay_below_five_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of as many pictures as there can be: ten models that agree on nothing, each with a long log."""
    test, seeds = load_emoji().of_families(("emoji-fluent",)), iter(range(10))
    seens = {f"run-{i}": guessed(test, "oblique(4,2)", noise=1e6, seed=next(seeds)) for i in range(10)}
    random = np.random.default_rng(0)
    monkeypatch.setattr(write, "look", lambda run, device: seens.pop(run.name))
    monkeypatch.setattr(write, "draw_map", lambda p, t, like: Map(random.random((len(p), 2)), "t-SNE", "chordal"))
    for name in ("draw_retrieval", "draw_curves"):
        monkeypatch.setattr(write, name, lambda *parts: Figure((1, 1)))
    runs = {name: make_run(tmp_path / name) for name in seens}
    log = "\n".join(json.dumps(line) for line in made_metrics(0.123456789, steps=3000))
    for run in runs.values():
        (run / "metrics.jsonl").write_text(log)
    results = {name: made_result("oblique(4,2)", 0.1) for name in runs}
    page = write.write_page(tmp_path, runs, results, {name: {"x": name} for name in runs})
    assert len(data_in(page.read_text(encoding="utf-8"))["pictures"]) > 800
    assert page.stat().st_size < LIMIT


def test_runs_that_cannot_be_looked_at_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        "results": (None, DataConfig(), "is without a checkpoint"),
        "table": ("tiny-sphere", DataConfig(data="pairs.csv"), "was trained on other data than the shipped set"),
        "whole": ("tiny-sphere", DataConfig(test_families=()), "left no family of the shipped set out of training"),
    }
    for name, (model, data, reason) in cases.items():
        assert look(make_run(tmp_path / name, model, data=data)) == reason
    damaged = make_run(tmp_path / "damaged", "tiny-sphere")
    (damaged / "checkpoints" / "best.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(family, "split_emoji", lambda data: SimpleNamespace(test=fluent(3)))
    with pytest.raises(UserError, match=r"is no \.pt or \.safetensors file"):
        look(damaged)


def test_report_writes_the_page_and_figures_for_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs of one folder name, as those of a sweep, one with a model and one without."""
    monkeypatch.setattr(family, "split_emoji", lambda data: SimpleNamespace(test=fluent(12)))
    runs = (make_run(tmp_path / "a" / "seed-0", "tiny-oblique"), make_run(tmp_path / "b" / "seed-0"))
    report(ReportConfig(runs, tmp_path / "out", device="cpu"))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"report.html", "curves.png", "retrieval-a-seed-0.png"}
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<strong>b/seed-0</strong> is without a checkpoint" in text
    assert [one["run"] for one in data_in(text)["maps"]] == [0]
    assert "family top-1 %" in capsys.readouterr().out
    with pytest.raises(UserError, match="is named twice"):
        report(ReportConfig((runs[0], runs[0]), tmp_path / "out"))


def test_a_setting_in_which_runs_differ_is_a_column(tmp_path: Path) -> None:
    configs = {"one": model_config("tiny", "sphere"), "many": model_config("tiny", "oblique")}
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "config.json", to_json(TrainConfig(config, DataConfig(caption_noise=0.5))))
    grid = runs_grid({name: tmp_path / name for name in configs}, {name: {} for name in configs})
    assert "form" in grid.headings and "caption_noise" not in grid.headings
    assert all(len(row) == len(grid.headings) == sum(span for _, span in grid.groups) for row in grid.rows)
