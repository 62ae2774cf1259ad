"""Questions of many runs: statistics with known answers, a queue, and a small question from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from oblique_clip import UserError
from oblique_clip.cli import main
from oblique_clip.config import TrainConfig, to_json, write_json
from oblique_clip.questions.noise import gauge, readings
from oblique_clip.sweep.answer import Table, findings, primary_measures
from oblique_clip.sweep.pictures import draw_curves
from oblique_clip.sweep.question import Arm, Question, of_signs, of_tests, open_question, shipped_questions
from oblique_clip.sweep.queue import Place, Progress, run_queue, what_it_said
from oblique_clip.sweep.results import JUDGED, MEASURES, Results, folder_of
from oblique_clip.sweep.run import command_of
from oblique_clip.sweep.statistics import over_classes, paired, t_interval
from oblique_clip.sweep.worker import LOCK

NUMBERS = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    from scipy import stats

    values = [2.5, 3.1, 2.2, 4.0, 2.9]
    ours = t_interval(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-12)


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    """95 % of 2,000 samples of three from a normal distribution, within three standard errors (1.5 %)."""
    samples = np.random.default_rng(0).normal(1.0, 2.0, size=(2000, 3))
    held = [interval.low <= 1.0 <= interval.high for interval in map(t_interval, samples.tolist())]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


@given(values=NUMBERS, shift=st.floats(-50, 50))
def test_what_a_seed_gives_to_both_arms_is_no_difference(values: list[float], shift: float) -> None:
    first = dict(enumerate(values))
    second = {seed: value - shift for seed, value in first.items()}
    found = paired(first, second)
    assert (found.mean, found.low, found.high) == pytest.approx((shift,) * 3, abs=1e-9)


def test_the_bootstrap_spreads_as_classes_do() -> None:
    """Of equal classes, half of them won: the standard error of a share, 0.5 / sqrt(K), to 5 %."""
    ahead = np.tile([0.0, 1.0], 200)[None]
    found = over_classes(ahead, np.ones(400))
    assert found.mean == 0.5
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 0.5 / 20, rel=0.05)


def test_equal_arms_differ_by_nothing() -> None:
    found = over_classes(np.zeros((3, 50)), np.full(50, 4.0))
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)


def test_verdicts() -> None:
    assert [of_signs(signs) for signs in (["ahead"], ["ahead", "behind"], ["behind"], ["undecided"])] == [
        "supported", "undecided", "not supported", "undecided",
    ]  # fmt: skip
    assert [of_tests(held) for held in ([True], [True, False], [False])] == ["supported", "undecided", "not supported"]


def test_the_gauge_reads_the_noise_that_it_was_fitted_on() -> None:
    """Where noise is linear in log(scale), levels between are read right too."""
    scale_of = {level: [10 * np.exp(-2 * level)] for level in (0.0, 0.2, 0.7)}
    read = gauge(scale_of)
    assert [float(read(np.log(10 * np.exp(-2 * level)))) for level in (0.0, 0.3, 0.7)] == pytest.approx([0, 0.3, 0.7])


@pytest.mark.parametrize(("scale_at_20", "readable"), [(6.7, True), (10.5, False)])
def test_a_scale_is_read_as_noise_where_it_falls_from_level_to_level(scale_at_20: float, readable: bool) -> None:
    found = {level: {0: scale} for level, scale in {0.0: 10.0, 0.2: scale_at_20, 0.7: 2.5}.items()}
    assert readings(found, [6.7]) == (pytest.approx([0.2]) if readable else [])


@pytest.mark.parametrize("name", shipped_questions())
def test_a_shipped_question_names_each_configuration_once(name: str) -> None:
    """Arms that several questions share are equal, so that their runs are; no two arms are one configuration, but
    where one is called the other on a CPU."""
    known: dict[str, TrainConfig] = {}
    for other in shipped_questions():
        for arm in open_question(other).arms:
            assert known.setdefault(arm.name, arm.config) == arm.config, arm.name
    own = {arm.name: json.dumps(to_json(replace(arm.config, device="auto"))) for arm in open_question(name).arms}
    on_cpu = {arm: own.pop(arm) for arm in list(own) if arm.endswith("-cpu")}
    held = {arm.name for arm in open_question(name).arms if arm.config.device == "cpu"}
    assert held == set(on_cpu)
    assert len(set(own.values())) == len(own)
    assert len(set(on_cpu.values())) == len(on_cpu)
    assert on_cpu == {arm: own.get(arm.removesuffix("-cpu"), alone) for arm, alone in on_cpu.items()}


def judged(folder: Path, top1: float, right: list[int], scale: float = 1.0) -> None:
    folder.mkdir(parents=True)
    write_json(folder / "config.json", to_json(TrainConfig()))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "val_top1": 0.1, "scale": 1.0, "val_gap": 0.1}\n')
    result = {"topology": "sphere(128)", "parameters": 10, "steps": 1, "images_per_second": 5.0, "train_seconds": 60.0}
    result["device"] = "cpu"
    write_json(folder / "result.json", {**result, "scale": scale})
    counts = {"right": right, "of": [2] * len(right)}
    figures = {"evaluation": {"concepts": {"top1": top1}}, "right": {"concepts": counts}}
    (folder / JUDGED).write_text(json.dumps(figures))


@pytest.mark.parametrize(
    ("ends", "verdict"), [((60, 62), "supported"), ((60, 66), "not supported"), ((62, 100), "undecided")]
)
def test_starts_meet_where_no_clamp_makes_them(tmp_path: Path, ends: tuple[int, int], verdict: str) -> None:
    for name, scale in zip(("low", "high"), ends, strict=True):
        judged(folder_of(tmp_path, f"sphere-noise-0-{name}-quick", 0), 0.5, [1], scale)
    (found,) = open_question("noise").findings(Results(open_question("noise"), tmp_path))
    assert found.verdict == verdict and "0.05, does not depend on its start" in found.claim


@pytest.fixture
def two_arms(tmp_path: Path) -> Results:
    """Two arms of three classes; the third seed of the second is not finished."""
    for seed in range(3):
        judged(folder_of(tmp_path, "one", seed), 5 / 6 - seed / 6, [2 - (seed > 0), 2 - (seed > 1), 1])
        if seed < 2:
            judged(folder_of(tmp_path, "two", seed), 3 / 6 - seed / 6, [1, 1, 1 - seed])
    arms = (Arm("one", TrainConfig()), Arm("two", TrainConfig(seed=1)))
    return Results(Question("toy", "Is one better?", arms, (("one", "two"),), ("one", "two")), tmp_path)


def test_curves_are_drawn_of_the_arms_that_a_question_names(two_arms: Results) -> None:
    """Of all where it names none."""
    for named, shown in (((), ["one", "two"]), (("two",), ["two"])):
        results = Results(replace(two_arms.question, curves=named), two_arms.out)
        lines = draw_curves(results).axes[0].lines
        assert [line.get_label() for line in lines] == shown


def test_differences_are_of_the_seeds_that_both_arms_have(two_arms: Results) -> None:
    found = two_arms.ahead("one", "two", MEASURES[0])
    assert found is not None
    assert found.seeds == pytest.approx({0: 100 / 3, 1: 100 / 3})
    assert found.over_seeds.mean == pytest.approx(100 / 3)
    assert found.over_classes is not None and found.over_classes.mean == pytest.approx(100 / 3)
    assert found.sign == "ahead" and "is ahead of two" in found.sentence


def test_the_primary_contrast_is_shown_by_what_both_arms_were_judged_by(two_arms: Results) -> None:
    (row,) = primary_measures(two_arms).rows
    assert row == (MEASURES[0].title, *("41.67 ± 105.89", "66.67 ± 41.40"), "+33.33 [+33.33, +33.33]", "+33.33, +33.33")
    assert not primary_measures(Results(open_question("noise"), two_arms.out)).rows


def test_a_difference_that_one_interval_doubts_is_undecided(two_arms: Results) -> None:
    write_json(folder_of(two_arms.out, "two", 1) / JUDGED, {
        "evaluation": {"concepts": {"top1": 4 / 6}}, "right": {"concepts": {"right": [1, 1, 2], "of": [2, 2, 2]}},
    })  # fmt: skip
    found = two_arms.ahead("one", "two", MEASURES[0])
    assert found is not None and found.over_seeds.sign == "undecided" and found.sign == "undecided"


def test_a_cell_of_a_table_is_one_cell() -> None:
    assert Table("", ("a",), (("x|y",),)).markdown() == "| a |\n| --- |\n| x\\|y |"


def test_findings_that_fail_are_told_in_one_line(two_arms: Results) -> None:
    broken = replace(two_arms.question, findings=lambda results: [1 / 0], source="mine.py")
    with pytest.raises(UserError, match=r"mine\.py: .* cannot be run: ZeroDivisionError"):
        findings(Results(broken, two_arms.out))


def test_growth_is_told_of_the_seeds_that_both_ends_have(tmp_path: Path) -> None:
    """Where they share none nothing is told, and the rest of the answer stands."""
    scale = open_question("scale")
    for arm, seed in (("sphere-short", 0), ("oblique-short", 0), ("sphere", 1), ("oblique-16", 1)):
        judged(folder_of(tmp_path, arm, seed), 0.5, [1])
    assert not findings(Results(scale, tmp_path))
    for arm, top1 in (("sphere", 0.5), ("oblique-16", 0.75)):
        judged(folder_of(tmp_path, arm, 0), top1, [1])
    (found,) = findings(Results(scale, tmp_path))
    assert found.sentence == "from +0.00 to +25.00 points over 1 seeds; +25.00 points more"


PLACES = (Place(0, "cpu", 1), Place(1, "cpu", 1))
# Does in a moment what a worker does: reads its standard input in the background, works, and leaves what is done.
FAKE = """
import json, os, pathlib, sys, threading, time
folder = pathlib.Path(sys.argv[1])
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
(folder / "began").open("a").write("x")
time.sleep(float(sys.argv[2]))
if folder.name == "bad":
    sys.exit("this one is no good")
for name in ("result.json", "judged.json"):
    (folder / name).write_text("{}")
"""


def fake(seconds: float) -> Callable[[Path, Place], list[str]]:
    return lambda folder, place: [sys.executable, "-c", FAKE, str(folder), str(seconds)]


def folders(base: Path, *names: str) -> list[Path]:
    made = [base / name for name in names]
    for folder in made:
        folder.mkdir(parents=True)
        write_json(folder / "config.json", to_json(TrainConfig()))
    return made


def test_a_queue_skips_what_is_done_and_goes_on_past_what_fails(tmp_path: Path) -> None:
    queue = folders(tmp_path, "done", "bad", "a", "b")
    for name in ("result.json", "judged.json"):
        (queue[0] / name).write_text("{}")
    seen: list[Progress] = []
    failed = run_queue(queue, PLACES, fake(0.8), seen.append)
    assert failed == [queue[1]] and what_it_said(queue[1]) == "this one is no good"
    assert [(folder / "began").exists() for folder in queue] == [False, True, True, True]
    assert seen[-1].done == 3 and seen[-1].failed == 1 and max(len(one.running) for one in seen) == 2
    assert run_queue(queue[2:], PLACES, fake(0.1), seen.append) == []
    assert (queue[2] / "began").read_text() == "x"


def test_runs_stop_with_a_queue_that_is_killed(tmp_path: Path) -> None:
    """Else the same command would train them twice at a time."""
    (folder,) = folders(tmp_path, "a")
    script = (
        "import sys; from pathlib import Path; from oblique_clip.sweep.queue import Place, run_queue\n"
        f"run_queue([Path(sys.argv[1])], [Place(0, 'cpu', 1)], lambda f, p: [sys.executable, '-c', {FAKE!r},"
        " str(f), '60'], lambda progress: None)"
    )
    queue = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script, str(folder)])
    wait_for(lambda: (folder / "began").exists())
    queue.kill()
    queue.wait()
    wait_for(lambda: not any(str(folder) in line for line in processes()))


def test_a_run_of_two_sweeps_is_made_once(tmp_path: Path) -> None:
    """The second waits for the first, and finds nothing left to do."""
    (folder,) = folders(tmp_path, "a")
    with FileLock(folder / LOCK):
        worker = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "oblique_clip.sweep.worker", str(folder)])
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(8)
        for name in ("result.json", JUDGED):
            (folder / name).write_text("{}")
    assert worker.wait(120) == 0
    assert not (folder / "metrics.jsonl").exists() and (folder / JUDGED).read_text() == "{}"


def test_an_arm_that_is_held_to_a_device_runs_there(tmp_path: Path) -> None:
    flags = command_of(held={tmp_path / "a": "cpu"})
    assert [flags(tmp_path / name, Place(0, "cuda:1", 1))[7] for name in ("a", "b")] == ["cpu", "cuda:1"]


def processes() -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def wait_for(happened: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)


QUESTION = """
from dataclasses import replace
from oblique_clip.config import Architecture, DataConfig, OptimConfig, TrainConfig, model_config
from oblique_clip.sweep.question import Arm, Question, varied

ARCH = Architecture(vision_width=32, vision_layers=1, vision_heads=2, text_width=32, text_layers=1, text_heads=2)
DATA = DataConfig(test_families=("emoji-streamline",), held_out_concepts=("test",))
OPTIM = OptimConfig(steps=160, batch_size=64)
BASE = TrainConfig(model_config("tiny", "sphere", arch=ARCH), DATA, optim=OPTIM, test=False, log="")
QUESTION = Question("mine", "Does <b>it</b> work?", (
    Arm("first", BASE), Arm("second", varied(BASE, model={"topology": "euclidean(128)"}))
), contrasts=(("first", "second"),))
"""


def changed(before: str, after: str) -> str:
    """The file of a question with a mistake in it."""
    assert before in QUESTION
    return QUESTION.replace(before, after)


def ablate(*flags: str) -> list[str]:
    return ["ablate", "--threads", "1", "--jobs", "2", "--device", "cpu", *flags]


def test_a_question_of_a_file_is_answered_and_a_stopped_one_goes_on(tmp_path: Path, capsys: Any) -> None:
    """Stopped in the middle by Ctrl-C, the same command goes on, and one more time there is nothing left to do."""
    (tmp_path / "mine.py").write_text(QUESTION)
    flags = ablate("--preset", str(tmp_path / "mine.py"), "--seeds", "1", "--out", str(tmp_path / "runs"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    sweep = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "oblique_clip", *flags], env=environment)
    first = tmp_path / "runs" / "first" / "seed-0"
    wait_for(lambda: (first / "metrics.jsonl").exists() and len((first / "metrics.jsonl").read_text()) > 400)
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait() == 130
    assert not (first / "result.json").exists() and list((first / "checkpoints").glob("*"))
    assert main(flags) == 0
    assert json.loads((first / "result.json").read_text())["resumed"] == 1
    answer = tmp_path / "runs" / "mine"
    written = (answer / "results.json").read_text()
    found = json.loads(written, parse_constant=pytest.fail)
    assert found["contrasts"][0]["seeds"].keys() == {"0"} and set(found["arms"]) == {"first", "second"}
    assert found["findings"][0]["claim"] == "first is better than second"
    page = (answer / "answer.html").read_text()
    assert "Does &lt;b&gt;it&lt;/b&gt; work?" in page and "data:image/png;base64," in page
    assert f"oblique-clip ablate --preset {tmp_path / 'mine.py'}" in page and "topology euclidean(128)" in page
    ended = (first / JUDGED).stat().st_mtime_ns
    assert main(flags) == 0
    (answer / "answer.html").unlink()
    assert main(["report", *(str(folder) for folder in sorted((tmp_path / "runs").iterdir()))]) == 0
    assert (answer / "answer.html").read_text() == page and (answer / "results.json").read_text() == written
    assert (first / JUDGED).stat().st_mtime_ns == ended
    judged = json.loads((first / JUDGED).read_text())
    for name in ("family", "concepts"):
        counts, figures = judged["right"][name], judged["evaluation"][name]
        assert sum(counts["right"]) / sum(counts["of"]) == pytest.approx(figures["top1"], abs=1e-12)
        assert judged["sizes"]["128"][name] == pytest.approx(figures["top1"], abs=1e-12)
    capsys.readouterr()
    assert main([*flags, "--length", "0.5", "--seeds", "2"]) == 2
    assert "is a run with steps 160, not 80" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "first" / "seed-1").exists()
    (tmp_path / "shards.tar").write_bytes(b"")
    (first / "checkpoints" / "last.safetensors").unlink()
    assert main([*flags, "--built", str(tmp_path)]) == 2
    assert "its last checkpoint is gone" in capsys.readouterr().err and (first / JUDGED).exists()
    (tmp_path / "mine.py").write_text(QUESTION.replace('"second"', '"another"'))
    assert main(["report", str(answer)]) == 2
    assert "has no arm second any more" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--preset", "topologie"], "--preset takes distance, equilibrium"),
        (["--preset", "missing.py"], "or a Python file, not 'missing.py'"),
        (["--preset", "topology", "--seeds", "0"], "--seeds must lie in [1, inf)"),
        (["--preset", "topology", "--built", "nowhere"], "--built nowhere has no shards"),
        (["--preset", "topology", "--device", "tpu"], "tpu"),
        (["--preset", "topology", "--size", "ViT-B-16"], "--size does nothing with --preset"),
        (["--preset", "topology", "--data", "x.csv"], "data options do nothing with --preset"),
    ],
)
def test_a_mistake_is_one_line(flags: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    assert main(ablate(*flags, "--out", str(tmp_path / "runs"))) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "text, said",
    [
        ("x = 1", "has no QUESTION"),
        ("1 / 0", "ZeroDivisionError"),
        ("import nothing_of_this", "cannot be run"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (changed('"mine"', '"../mine"'), "'../mine' does not name a folder"),
        (changed('"mine"', '"first"'), "both called first"),
        (changed('Arm("second"', 'Arm("first"'), "two arms are called first"),
        (changed('Arm("first", BASE)', 'Arm("first", BASE, seeds=0)'), "first has 0 seeds"),
        (changed('Arm("first", BASE)', '"first"'), "arms has to be a tuple"),
        (changed('("first", "second"),)', '("first", "third"),)'), "a contrast names third, which is no arm"),
        (changed('("first", "second"),)', '["first", "second"],)'), "is no contrast"),
        (changed('("first", "second"),)', '("first",),)'), "is no contrast"),
        (changed('"second"),))', '"second"),), curves=("third",))'), "curves names third, which is no arm"),
        (changed('"second"),))', '"second"),), spaces=("third",))'), "spaces names third, which is no arm"),
    ],
)
def test_a_file_that_asks_nothing_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "question.py"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        open_question(str(path))
