"""What the bench promises: each rival alone, ratios the right way round, memory that is really taken, all in JSON."""

import importlib
import itertools
import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from oblique_clip.bench.measure import (
    BenchConfig,
    Rival,
    RivalDied,
    Row,
    Task,
    apart,
    extra_memory_mib,
    faster,
    interleaved,
    race,
)
from oblique_clip.bench.run import SUITES, bench
from oblique_clip.bench.step import Captions, Pairs, open_clip_model, same_step, their_step
from oblique_clip.device import keep_freed_memory
from oblique_clip.errors import UserError
from oblique_clip.evaluate.zeroshot import build_classifier

CPU = torch.device("cpu")
SAME_LOSS = 1e-4
"""What the bench asks of equal steps; a few roundings of float32 are 1e-6."""


def sleeper(seconds: float) -> Task:
    """Sleeps so long, and tells its process."""

    def task() -> int:
        time.sleep(seconds)
        return os.getpid()

    return task


def taken_mib() -> float:
    return extra_memory_mib(lambda: torch.ones(200 * 2**18).sum(), CPU)


def test_each_rival_runs_in_a_process_of_its_own_and_is_timed_there() -> None:
    runs, values = race({"slow": Rival(sleeper, (0.2,)), "quick": Rival(sleeper, (0.01,))}, 3, CPU)
    assert min(runs["slow"]) >= 0.2 > max(runs["quick"]) >= 0.01
    (slow,), (quick,) = set(values["slow"]), set(values["quick"])
    assert len({slow, quick, os.getpid()}) == 3


def test_rounds_interleave_and_no_rival_is_always_first() -> None:
    order: list[str] = []
    runs = interleaved({name: lambda name=name: order.append(name) for name in "abc"}, 3, CPU, warmup=0)
    assert "".join(order) == "abcbcacab"
    assert {name: len(times) for name, times in runs.items()} == {"a": 3, "b": 3, "c": 3}


def test_the_median_counts_and_the_ratio_says_how_many_times_faster() -> None:
    row = faster("step", "x", {"ours": [9.0, 1.0, 2.0], "peer": [6.0, 5.0, 100.0]}, "peer", ">= 2.5")
    assert (row.ours, row.peer, row.ratio, row.reached) == (2.0, 6.0, 3.0, True)


@pytest.mark.parametrize("aim, ratio, reached", [
    (">= 2.5", 2.5, True), (">= 2.5", 2.49, False), ("<= 1.1", 1.1, True), ("<= 1.1", 1.11, False), ("", 9.0, None),
])  # fmt: skip
def test_an_aim_is_reached_or_not(aim: str, ratio: float, reached: bool | None) -> None:
    assert Row("s", "w", 1, 1, "s", "p", ratio, aim).reached is reached


def test_an_aim_is_not_reached_by_other_numbers() -> None:
    assert not Row("s", "w", 1, 1, "s", "p", 9.0, ">= 2.5", holds=False).reached


def test_memory_is_what_was_taken_beyond_what_stood_before() -> None:
    assert apart(taken_mib) == pytest.approx(200, abs=20)


def kept_mib(keep: bool) -> float:
    """Resident memory that is left when 512 MiB have been taken and freed."""
    if keep:
        keep_freed_memory()
    before = resident_mib()
    torch.ones(512 * 2**18)
    return resident_mib() - before


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_kept_on_request() -> None:
    assert apart(kept_mib, False) < 100
    assert apart(kept_mib, True) > 500


def test_the_reference_with_a_shorter_context_is_the_reference() -> None:
    """On captions that fit: what a cut context drops is padding."""
    ids = torch.nn.functional.pad(torch.tensor([[49406, 320, 1125, 49407], [49406, 2368, 49407, 0]]), (0, 15))
    whole, cut = open_clip_model().eval(), open_clip_model(19).eval()
    with torch.inference_mode():
        expected = whole.encode_text(torch.nn.functional.pad(ids, (0, 77 - 19)), normalize=True)
        assert torch.allclose(cut.encode_text(ids, normalize=True), expected, atol=1e-6)


@pytest.mark.parametrize("captions", ["name", "full"])
def test_our_step_has_the_losses_of_open_clips(captions: Captions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of eight pairs; the bench compares twenty of 128."""
    monkeypatch.setattr("oblique_clip.bench.step.BATCH", 8)
    monkeypatch.setattr("oblique_clip.bench.step.STEPS", 3)
    pairs = Pairs(captions)
    assert captions == "name" or all((batch.ids[:, -1] == batch.ids.amax(1)).all() for batch in pairs.batches)
    monkeypatch.setattr("oblique_clip.bench.step.shipped", lambda captions: pairs)
    steps = [same_step(CPU), their_step(CPU), their_step(CPU, context=pairs.longest)]
    for _ in range(3):
        own, *others = (float(step()) for step in steps)
        assert others == pytest.approx([own, own], abs=SAME_LOSS)


def test_a_run_writes_every_figure_and_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "bench.json"
    bench(BenchConfig(only=("start",), rounds=1, json=str(path)))
    report = json.loads(path.read_text())
    printed = capsys.readouterr().out
    assert report["machine"]["versions"]["torch"] in printed
    assert report["command"].startswith("oblique-clip") and report["settings"]["rounds"] == 1
    assert report["rows"] and {row["suite"] for row in report["rows"]} == {"start"}
    assert all(row["runs"] for row in report["rows"])
    assert all(f"{row['ratio']:.3g}" in printed for row in report["rows"])


def dying() -> Task:
    return lambda: os._exit(1)


def test_a_rival_that_dies_is_named_and_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RivalDied, match="the process of 'peer' has died"):
        race({"peer": Rival(dying)}, 1, CPU)
    with pytest.raises(RivalDied, match="the process of _exit has died"):
        apart(os._exit, 1)

    def no_memory(config: BenchConfig, device: torch.device) -> list[Row]:
        raise RivalDied("the process of 'peer' has died")

    monkeypatch.setattr("oblique_clip.bench.loss.rows", no_memory)
    report = bench(BenchConfig(only=("loss", "start"), rounds=1, json=str(tmp_path / "bench.json")))
    assert report["left_out"] == {"loss": "the process of 'peer' has died"}
    assert {row["suite"] for row in report["rows"]} == {"start"}
    assert "left out: the process of 'peer' has died" in capsys.readouterr().out


def race_here(rivals: dict[str, Rival], rounds: int, device: torch.device) -> tuple[dict[str, list[float]], None]:
    return interleaved({name: rival.make(*rival.args) for name, rival in rivals.items()}, rounds, device), None


SMALL = {
    "loss": {"BATCH": 256, "GEODESIC": ("oblique(4,4)/geodesic", 64, 1.0, "cosines", 2048)},
    "micro": {"WHOLE": 16, "MICRO": 8},
    "optimizer": {"STEPS": {"tiny": 2}},
    "classifier": {"PART": 2},
    "retrieval": {"TIMED": 64, "LARGE": 64},
}
"""Sizes at which a suite takes seconds: its figures mean nothing, but which way round they are does."""


@pytest.mark.parametrize("suite", SMALL)
def test_the_ratio_of_a_row_is_told_the_way_its_aim_asks(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"oblique_clip.bench.{suite}")
    for name, value in SMALL[suite].items():
        monkeypatch.setattr(module, name, value)
    # That each has a process of its own is tested above, and takes seconds to start.
    monkeypatch.setattr(module, "apart", lambda function, *args: function(*args), raising=False)
    monkeypatch.setattr(module, "race", race_here, raising=False)
    # What this process has taken before is taken again without a trace: any numbers that differ will do.
    numbers = itertools.count(100.0)
    monkeypatch.setattr(module, "extra_memory_mib", lambda task, device: (task(), next(numbers))[1], raising=False)
    found = module.rows(BenchConfig(rounds=1, threads=1), CPU)
    assert found
    for row in found:
        assert row.suite == suite
        cost = row.aim.startswith("<=") or "a micro-batch and the points" in row.peer_name
        bound = row.note.startswith("the ratio is ours over the limit")
        peer = 2048.0 if bound else row.peer
        assert row.ratio == pytest.approx(row.ours / peer if cost else row.peer / row.ours)


def test_classifiers_that_differ_reach_no_aim(monkeypatch: pytest.MonkeyPatch) -> None:
    from oblique_clip.bench import classifier

    def other(*args: Any, **options: Any) -> torch.Tensor:
        return build_classifier(*args, **options).flip(0)

    monkeypatch.setattr(classifier, "PART", 2)
    monkeypatch.setattr(classifier, "build_classifier", other)
    for row in classifier.rows(BenchConfig(rounds=1), CPU):
        assert not row.holds and not Row(**{**asdict(row), "aim": ">= 0"}).reached


def test_every_suite_is_there_and_others_are_refused() -> None:
    for name in SUITES:
        assert callable(importlib.import_module(f"oblique_clip.bench.{name}").rows)
    with pytest.raises(UserError, match="unknown suite 'stepp'; there is step"):
        bench(BenchConfig(only=("stepp",)))


def test_a_folder_for_json_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; name a file"):
        bench(BenchConfig(only=("step",), json=str(tmp_path)))
    assert not list(tmp_path.parent.glob("*.part"))


def test_the_readmes_show_the_committed_figures() -> None:
    from experiments.bench import table

    reports = table.read()
    for path, block in table.PLACES:
        text = path.read_text(encoding="utf-8")
        assert block(reports) in text and table.filled(text, block(reports)) == text
