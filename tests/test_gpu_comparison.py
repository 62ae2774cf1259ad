"""experiments/gpu: the command lines that it composes, and a dry run of small towers from shards to the report."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.gpu import cost, settings, yfcc
from experiments.gpu import run as gpu
from experiments.gpu.settings import ARMS, COMMON, CONTRASTS, DATA, LIBRARY, SIZES, settings_for, steps_of
from experiments.gpu.small import CLASSES, PER_SHARD, SHARDS, write_small
from oblique_clip import load
from oblique_clip.config import TrainConfig
from oblique_clip.data.faults import Lost
from oblique_clip.data.images import Augmentation
from oblique_clip.data.shards import expand_shards, read_shards
from oblique_clip.errors import UserError
from oblique_clip.flags import parse
from oblique_clip.resume import differences
from oblique_clip.topology import parse_topology

PAIRS = 3_000_000
README = (Path(gpu.__file__).parent / "README.md").read_text(encoding="utf-8")
# Towers of a block, on pictures of four patches.
SMALL = (
    "image_size=32", "vision_width=32", "vision_layers=1", "vision_heads=2", "text_width=32", "text_layers=1",
    "text_heads=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small(tmp_path_factory.mktemp("small")).shards


def composed(name: Any, shards: str, **changes: Any) -> list[gpu.Run]:
    command = gpu.Comparison(name, data=shards, pairs=PAIRS, **changes)
    return list(gpu.runs_of(command, gpu.settings_of(command)))


def flat(config: Any) -> dict[str, Any]:
    """Every setting of a configuration by its name."""
    found: dict[str, Any] = {}
    for key, value in vars(config).items():
        found |= flat(value) if hasattr(value, "__dataclass_fields__") else {key: value}
    return found


@pytest.mark.parametrize("name", DATA)
def test_every_line_is_what_the_tables_say(name: Any, shards: str) -> None:
    """As the command line itself reads it: 2 sizes x 4 arms, of which seed, form and topology are all that differs."""
    runs = composed(name, shards, seeds=1)
    assert {(run.size, run.arm) for run in runs} == {(size, arm) for size in SIZES for arm in ARMS}
    for run in runs:
        found = flat(run.config)
        told = {key: found[key] for key in COMMON}
        assert told == {key: setting.value for key, setting in COMMON.items()}
        assert found["steps"] == round(PAIRS * float(DATA[name].epochs.value) / 4096)
        assert found["warmup"] * found["steps"] == pytest.approx(PAIRS / 4096, abs=1)  # the first epoch
        assert (found["topology"], found["device"], found["micro_batch"]) == (ARMS[run.arm].topology, "cuda", None)
        assert ARMS[run.arm].projection in (None, found["projection"])
        first = next(other for other in runs if other.size == run.size)
        assert {key for key, _, _ in differences(first.config, run.config)} <= {"form", "topology", "projection", "out"}


def test_all_arms_of_one_seed_are_begun_before_the_next_seed(shards: str) -> None:
    seeds = [run.config.seed for run in composed("cc3m", shards, seeds=2)]
    assert seeds == sorted(seeds) and len(seeds) == 2 * len(SIZES) * len(ARMS)


def test_what_no_flag_sets_is_as_the_table_says() -> None:
    view = Augmentation()
    crop, _, rotation, jitter = LIBRARY["augmentation"].value.split(", ")  # type: ignore[union-attr]
    assert crop == f"crop of {100 * view.min_area:.0f} to 100 %" and jitter == f"jitter {view.jitter}"
    assert rotation == f"rotation to {view.max_degrees:.0f} degrees"
    for arm in ARMS.values():
        topology = parse_topology(arm.topology)
        width = topology.range[1] - topology.range[0]
        assert topology.initial_scale() * width == pytest.approx(2 / 0.07) and topology.max_scale * width == 200
    assert {name for pair in CONTRASTS for name in pair} <= set(ARMS)


def test_a_gpu_takes_at_most_as_many_pairs_at_a_time_as_fit() -> None:
    at_once = {gpus: settings_for("cc3m", PAIRS, gpus, {}).get("micro_batch") for gpus in (1, 4, 8, 16)}
    assert at_once == {1: 512, 4: 512, 8: None, 16: None}
    assert settings_for("cc3m", PAIRS, 1, {"micro_batch": 256})["micro_batch"] == 256


def test_the_small_shards_are_read_whole_and_counted_as_img2dataset_counts(shards: str, tmp_path: Path) -> None:
    lost = Lost()
    samples = list(read_shards(expand_shards(shards), 32, lost))
    assert len(samples) == gpu.pairs_in(shards) == SHARDS * PER_SHARD and not lost
    # Nothing that is judged was trained on.
    assert not {sample.caption.lower() for sample in samples} & set(CLASSES.values())
    assert steps_of(gpu.pairs_in(shards), 40, 4) == 320
    bare = tmp_path / "00000.tar"
    bare.write_bytes(Path(expand_shards(shards)[0]).read_bytes())
    with pytest.raises(UserError, match=r"00000_stats\.json is missing, which img2dataset writes: say with --pairs"):
        gpu.pairs_in(str(bare))


def test_a_dry_run_ends_with_every_evaluation_and_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One size, two arms, towers of a block: shards, torchrun, ImageNet's names and templates, the suite, retrieval."""
    command = gpu.Comparison(
        "cc3m", out=tmp_path, sizes=("ViT-S-16",), arms=("sphere", "oblique-shared"), change=SMALL, dry_run=True
    )
    gpu.main(command)
    said, first = capsys.readouterr().out, (tmp_path / "results.json").read_text()
    assert "  batch_size 4, not 4096" in said and "torchrun --standalone --nproc-per-node 1 -m -- oblique_clip" in said
    for run in json.loads(first)["runs"]:
        figures = run["figures"]
        kinds = {name.split(" ")[0] for name in figures}
        assert kinds == {"imagenet", "captions", "wds_classes", "wds_captions"}
        assert all(0 <= value <= 100 for value in figures.values()) and (run["steps"], run["seed"]) == (2, 0)
        own = tmp_path / "runs" / f"ViT-S-16-{run['arm']}-0"
        # What is judged is what training ended with.
        last, judged = (load(path).model.state_dict() for path in (own / "checkpoints" / "last.safetensors", own))
        assert all(torch.equal(value, judged[name]) for name, value in last.items())
        assert f"{figures['imagenet top-1 %']:.2f}" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "primary: oblique-shared - sphere" in said and (tmp_path / "curves" / "ViT-S-16" / "report.html").exists()

    # Were anything trained or judged again, it would fail.
    monkeypatch.setattr(gpu.subprocess, "Popen", None)
    monkeypatch.setattr("experiments.zero_shot.table.evaluate", None)
    gpu.main(command)
    assert (tmp_path / "results.json").read_text() == first
    with pytest.raises(UserError, match=r"is a run with lr 0.0005, not 0.001; name another --out, or remove it"):
        gpu.main(replace(command, change=(*SMALL, "lr=1e-3")))


def test_ctrl_c_saves_the_run_and_the_same_command_goes_on(tmp_path: Path) -> None:
    flags = ["cc3m", "--dry-run", "--sizes", "ViT-S-16", "--arms", "sphere", "--out", str(tmp_path)]
    long = ["--change", *SMALL, "steps=1000000", "save_every=1000000"]
    start = [sys.executable, "-W", "ignore", "-m", "experiments.gpu.run", *flags, *long]
    own = tmp_path / "runs" / "ViT-S-16-sphere-0"
    process = subprocess.Popen(start, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        while not (own / "metrics.jsonl").exists():
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "stopped by SIGINT; the same command goes on" in said
    assert list((own / "checkpoints").glob("state-*"))
    run = gpu.Run("ViT-S-16", "sphere", 0, replace(TrainConfig(), out=own, device="cpu"), ("--lr", "1"))
    assert run.line(1)[-4:] == ["--resume", str(own), "--device", "cpu"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, '--data is missing: name the shards, as in "/data/cc3m'),
        ({"data": "nowhere/{00..03}.tar", "pairs": None}, "4 of 4 shards are missing, such as nowhere/00.tar"),
        ({"sizes": ("ViT-S",)}, "--sizes takes ViT-S-16, ViT-B-16, not 'ViT-S'"),
        ({"arms": ("oblique",)}, "--arms takes clip, sphere, oblique-shared, oblique-per-token, not 'oblique'"),
        ({"gpus": 3}, "--gpus 3 cannot share a batch of 4096 evenly"),
        ({"seeds": 0}, r"--seeds must lie in \[1, inf\), not be 0"),
        ({"change": ("lr",)}, "--change takes NAME=VALUE, as in micro_batch=256, not 'lr'"),
        ({"change": ("learning_rate=1",)}, "--learning-rate"),
        ({"change": ("lr=-1",)}, r"--lr must lie in \(0, inf\), not be -1.0"),
        ({"imagenet": Path("wrong")}, r"--imagenet wrong needs folders named by WordNet codes"),
        ({"change": ("batch_size=many",)}, r"--batch-size must lie in \[2, inf\), not be many"),
        ({"change": ("batch_size=0",)}, r"--batch-size must lie in \[2, inf\), not be 0"),
        ({"change": ("topology=sphere(512)",)}, "--change cannot set topology, which the comparison sets itself"),
        ({"pairs": 0}, r"--pairs must lie in \[1, inf\), not be 0"),
        ({"arms": ()}, "--arms takes clip, .*, and has none"),
        ({"suite": Path("nowhere")}, "no such folder: nowhere"),
        ({"suite": Path("wrong")}, "wrong has no folder in CLIP_benchmark's layout"),
        ({"captions": Path("captions.json")}, "captions.json has no captions"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(
    changes: dict[str, Any], message: str, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong" / "zebra").mkdir(parents=True)
    (tmp_path / "wrong" / "zebra" / "0.png").touch()
    (tmp_path / "captions.json").write_text('{"images": [], "annotations": []}')
    monkeypatch.setattr(gpu.subprocess, "Popen", None)
    command = replace(gpu.Comparison("cc3m", data=shards, pairs=PAIRS, out=tmp_path / "out"), **changes)
    with pytest.raises(UserError, match=message):
        gpu.main(command)
    assert not (tmp_path / "out").exists()


def test_the_readme_has_the_tables_that_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for table in settings.tables():
        assert f"\n\n{table}\n\n" in README
    cost.main(cost.Cost())
    table, total = capsys.readouterr().out.rstrip().split("\n\n")
    assert f"\n\n{table}\n\n" in README and total in README


def test_the_commands_of_the_readme_are_understood() -> None:
    block = next(text for text in README.split("```")[1::2] if "experiments.gpu.run cc3m" in text)
    lines = [line for line in block.replace("\\\n", " ").splitlines() if "experiments.gpu.run" in line]
    commands = [
        parse(gpu.Comparison, gpu.PROGRAM, shlex.split(line.partition("experiments.gpu.run")[2])) for line in lines
    ]
    assert [command.dataset for command in commands] == list(DATA)
    for command in commands:
        # img2dataset puts 10,000 pictures of the list in a shard.
        last = re.search(r"\{00000\.\.(\d{5})\}", str(command.data))
        assert last and int(last[1]) == (DATA[command.dataset].listed - 1) // 10_000


def test_yfcc15m_is_listed_with_a_caption_each(tmp_path: Path) -> None:
    """Read as img2dataset reads a list: with pyarrow, by tabs."""
    csv = pytest.importorskip("pyarrow.csv")
    (tmp_path / "subset.tsv").write_text("3\t11\tabcdef12\n4\t12\t123456ff\n5\t13\t00aa\n")
    told = (
        ("3", "abcdef12", "A+title", "See+%3Ca+href%3D%22http%3A//x.y%22%3Ethis%3C/a%3E%0Ahttp%3A//x.y/z+caf%C3%A9"),
        ("4", "123456ff", "", "a+%22dog%22%09runs"),
        ("5", "00aa11bb", "", ""),
        ("6", "ffffffff", "not", "listed"),
    )
    lines = ["\t".join([line, "1", photo, *["-"] * 5, *texts, "", ""]) for line, photo, *texts in told]
    start = [sys.executable, "-m", "experiments.gpu.yfcc", str(tmp_path / "subset.tsv")]
    done = subprocess.run(start, input="\n".join(lines) + "\n", capture_output=True, text=True, check=True)
    assert "2 of 3 photographs have a caption" in done.stderr
    (tmp_path / "list.tsv").write_text(done.stdout, encoding="utf-8")
    listed = csv.read_csv(tmp_path / "list.tsv", parse_options=csv.ParseOptions(delimiter="\t")).to_pylist()
    assert [row["caption"] for row in listed] == ["See this café", 'a "dog" runs']
    assert listed[0]["url"] == f"{yfcc.IMAGES}/abc/def/abcdef12.jpg"
