"""A stream of batches can go on from any place in it, and be shared among processes without a word between them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, takewhile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import png, write_shard, write_table

from oblique_clip.config import DataConfig
from oblique_clip.data.batches import Batch, TrainingData
from oblique_clip.data.order import ALONE, Position, Share, shuffled_windows
from oblique_clip.data.sources import open_training_data
from oblique_clip.errors import UserError
from oblique_clip.tokenizer import get_tokenizer

SIDE = 8
TOKENIZER = get_tokenizer("tiny", 16)
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
BAD = (2, 3, 7, 12)


def table(folder: Path) -> DataConfig:
    """Sixteen rows, two of each caption, of which four pictures cannot be read, and two rows without a caption."""
    for number in range(16):
        (folder / f"{number}.png").write_bytes(b"no picture" if number in BAD else png(number))
    rows = [(f"{number}.png", WORDS[number % 8]) for number in range(16)]
    path = write_table(folder / "data.csv", [*rows, ("0.png", ""), ("1.png", " ")])
    return DataConfig(data=str(path), workers=1, max_bad_fraction=0.5)


def shards(folder: Path) -> DataConfig:
    """Three shards with the same pairs, and a caption missing in each."""
    for part in range(3):
        numbers = [number for number in range(16) if number % 3 == part]
        pairs = {f"{n}": {"png": b"no" if n in BAD else png(n), "txt": WORDS[n % 8].encode()} for n in numbers}
        write_shard(folder / f"x-{part}.tar", {**pairs, "bare": {"png": png(99)}})
    return DataConfig(data=str(folder / "x-{0..2}.tar"), workers=2)


def emoji(folder: Path) -> DataConfig:
    return DataConfig(captions="mixed", caption_noise=0.2)


Make = Callable[[Path], DataConfig]
SOURCES: dict[str, Make] = {
    "table": table,
    "noisy table": lambda folder: replace(table(folder), caption_noise=0.5),
    "table with twins": lambda folder: replace(table(folder), twins="allow"),
    "shards": shards,
    "shards with twins": lambda folder: replace(shards(folder), twins="allow"),
}


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a pass over few samples has several."""
    monkeypatch.setattr("oblique_clip.data.stream.SHUFFLE_WINDOW", 5)


def opened(config: DataConfig, batch_size: int, share: Share = ALONE, seed: int = 3) -> TrainingData:
    return open_training_data(config, TOKENIZER, batch_size, SIDE, seed, share)


def assert_same(found: Batch, expected: Batch) -> None:
    for name in ("squares", "ids", "groups"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for name in ("step", "keys", "next", "failed"):
        assert getattr(found, name) == getattr(expected, name), name


@pytest.mark.parametrize("batch_size", [2, 3])
@pytest.mark.parametrize("source", SOURCES)
def test_a_stream_goes_on_behind_any_batch_as_if_it_had_never_stopped(
    source: str, batch_size: int, tmp_path: Path
) -> None:
    """Over three epochs, some of whose batches are given up for want of readable pictures."""
    config = SOURCES[source](tmp_path)
    whole = list(takewhile(lambda batch: batch.next.epoch < 3, opened(config, batch_size).batches()))
    assert [batch.step for batch in whole] == list(range(len(whole)))
    assert any(batch.next.batch > batch.next.step for batch in whole) or batch_size == 3
    for place in range(-1, len(whole) - 2):
        position = Position() if place < 0 else Position(**json.loads(json.dumps(whole[place].next._asdict())))
        for found, expected in zip(opened(config, batch_size).batches(position), whole[place + 1 :][:2], strict=False):
            assert_same(found, expected)


def test_the_shipped_set_goes_on_within_an_epoch_and_into_the_next(tmp_path: Path) -> None:
    data = opened(emoji(tmp_path), 1024)
    whole = list(islice(data.batches(), 14))
    assert whole[-1].next.epoch == 1
    for place in (0, 5, 7, 8, 9, 12):
        assert_same(next(data.batches(whole[place].next)), whole[place + 1])


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_lost_is_counted_once_however_long_and_often_a_stream_is_read(source: str, tmp_path: Path) -> None:
    """Every sample of an epoch is either in a batch or lost where none is left over: batches of all but their bad."""
    data = opened(SOURCES[source](tmp_path), 2)
    failed: Counter[str] = Counter()
    position = Position()
    for _ in range(40):
        batch = next(data.batches(position))
        position = batch.next
        failed += batch.failed
    assert position.epoch > 2
    bare = {"no caption": 3} if "shards" in source else {}
    assert failed == {"unreadable image": 4, **bare}
    assert data.left_out == ({} if bare else {"empty caption": 2})


def joined(parts: list[Batch]) -> tuple[list[list[int]], list[str], list[int]]:
    """Captions without padding, names and greys of the parts of one batch."""
    ids = [[token for token in row if token] for part in parts for row in part.ids.tolist()]
    return ids, [key for part in parts for key in part.keys], [int(s[0, 0, 0]) for part in parts for s in part.squares]


TABLES = ("table", "noisy table", "table with twins")


@pytest.mark.parametrize(
    ("source", "world"), [*((source, world) for source in TABLES for world in (1, 2, 4)), ("emoji", 4)]
)
def test_the_parts_of_several_processes_make_the_batch_of_one(source: str, world: int, tmp_path: Path) -> None:
    """A part from which all pictures are missing is an empty one, so that all take the same steps."""
    config = {**SOURCES, "emoji": emoji}[source](tmp_path)
    alone = opened(config, 8).batches()
    ranks = [opened(config, 8, Share(rank, world)).batches() for rank in range(world)]
    for _ in range(8):
        whole, parts = next(alone), [next(rank) for rank in ranks]
        assert joined(parts) == joined([whole])
        assert {part.next for part in parts} == {whole.next}
        assert sum((part.failed for part in parts), Counter()) == whole.failed


def test_a_process_whose_part_cannot_be_read_keeps_step_with_the_others(tmp_path: Path) -> None:
    ranks = [opened(table(tmp_path), 4, Share(rank, 4)).batches() for rank in range(4)]
    batches = [list(islice(rank, 12)) for rank in ranks]
    assert {len(batch.squares) for one in batches for batch in one} == {0, 1}
    assert all(batch.ids.shape[0] == len(batch.squares) for one in batches for batch in one)
    assert len({tuple(batch.next for batch in one) for one in batches}) == 1


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_a_pass_over_shards_gives_every_sample_to_one_process(world: int, tmp_path: Path) -> None:
    """By shards where there are enough of them, else by samples; what is wrong is counted once too."""
    config = replace(shards(tmp_path), twins="allow")
    with (tmp_path / "x-0.tar").open("ab") as shard:
        shard.write(b"more")
    data = [opened(config, world * (2 if world == 1 else 1), Share(rank, world)) for rank in range(world)]
    passes = [list(takewhile(lambda batch: batch.next.epoch == 0, one.batches())) for one in data]
    seen = Counter(key.split("/")[1] for one in passes for batch in one for key in batch.keys)
    failed = sum((batch.failed for one in passes for batch in one), Counter())
    if world > 1:
        assert seen == {f"{number}": 1 for number in range(16) if number not in BAD}
    assert all(count == 1 for count in seen.values())
    # What is read behind the last batch of a pass is said by the next pass.
    failed += sum((next(one.batches(passes[rank][-1].next)).failed for rank, one in enumerate(data)), Counter())
    assert failed == {"unreadable image": 4, "no caption": 3, "damaged shard": 1}


def test_a_batch_that_cannot_be_shared_evenly_is_refused(tmp_path: Path) -> None:
    for config in (table(tmp_path), shards(tmp_path)):
        with pytest.raises(UserError, match="--batch-size 6 must be a multiple of the 4 processes"):
            opened(config, 6, Share(1, 4))


def test_a_fingerprint_tells_other_samples_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = table(tmp_path)
    before = opened(config, 4).fingerprint()
    assert json.loads(json.dumps(before)) == before == opened(config, 2, seed=9).fingerprint()
    monkeypatch.chdir(tmp_path)
    assert opened(replace(config, data="data.csv"), 4).fingerprint() == before
    text = (tmp_path / "data.csv").read_text()
    for changed in (
        text.replace("seven", "Seven", 1),
        text.replace("8.png,zero", "0.png,zero"),
        text[: text.rfind("15")],
    ):
        (tmp_path / "data.csv").write_text(changed)
        assert opened(config, 4).fingerprint() != before
    config = shards(tmp_path)
    before = opened(config, 4).fingerprint()
    assert before == opened(config, 4).fingerprint()
    with (tmp_path / "x-1.tar").open("ab") as shard:
        shard.write(bytes(512))
    assert opened(config, 4).fingerprint() != before


@settings(max_examples=200, deadline=None, database=None)
@given(count=st.integers(0, 50), window=st.integers(1, 12), seed=st.integers(0, 99))
def test_windows_are_permutations_of_their_own_items(count: int, window: int, seed: int) -> None:
    """Each window can be made from its items and its number alone."""
    whole = list(shuffled_windows(range(count), window, (seed,)))
    for start in range(0, count, window):
        assert sorted(whole[start : start + window]) == list(range(start, min(start + window, count)))
    changed = list(
        shuffled_windows([-1] * min(window, count) + list(range(min(window, count), count)), window, (seed,))
    )
    assert changed[window:] == whole[window:]
