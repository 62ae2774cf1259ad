"""The larger set: nothing that runs are judged by gets into what they are trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.data.shards import ShardWriter, read_samples
from experiments.scale.larger import PREFIX, Larger, main
from oblique_clip import UserError
from oblique_clip.config import DataConfig
from oblique_clip.data.splits import split_emoji


def record(source: str, family: str, concept: str, caption: str, split: str = "train", skin: bool = False) -> bytes:
    return json.dumps(
        {"source": source, "family": family, "concept": concept, "caption": caption, "split": split, "skin": skin}
    ).encode()


def test_nothing_that_is_judged_is_trained_on(tmp_path: Path) -> None:
    held = split_emoji(DataConfig()).concepts.records[0].concept
    samples = {
        "noto": [
            record("noto", "emoji-noto", "a kept name", "a kept name"),
            record("noto", "emoji-noto", "a test name", "a test name", split="test"),
            record("noto", "emoji-noto", "wave", "wave: dark skin tone", skin=True),
        ],
        "openmoji": [record("openmoji", "emoji-openmoji", "a kept name", "a kept name")],
        "fluent-3d": [record("fluent-3d", "emoji-fluent", "a kept name", "a kept name")],
        "gcompris": [record("gcompris", "art4apps", "cow", "cow")],
        "icons-mdi": [
            record("icons-mdi", "icons-mdi", "icon", held.upper()),
            record("icons-mdi", "icons-mdi", "b", "b"),
        ],
    }
    for source, texts in samples.items():
        with ShardWriter(tmp_path, source, 4000) as writer:
            for text in texts:
                writer.write({"png": b"a picture", "json": text})
    main(Larger(tmp_path, tmp_path / "out"))
    found = [json.loads(sample["json"])["caption"] for sample in read_samples(tmp_path / "out", PREFIX)]
    assert sorted(found) == ["a kept name", "b"]
    told = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert told["left_out"] == {"held-out family": 3, "held-out concept": 2, "skin tone": 1}


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards"):
        main(Larger(tmp_path, tmp_path / "out"))
