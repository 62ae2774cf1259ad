"""What --data may name: tables and shards as users have them, with every flaw left out and counted by its cause."""

import csv
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from oblique_clip.config import DataConfig
from oblique_clip.data.batches import Batch, MapBatches, caption_group
from oblique_clip.data.faults import Lost
from oblique_clip.data.folders import open_class_folder
from oblique_clip.data.shards import expand_shards, read_shards
from oblique_clip.data.sources import is_shards, open_training_data
from oblique_clip.data.splits import EmojiPairs, split_emoji
from oblique_clip.data.tables import open_table
from oblique_clip.errors import UserError
from oblique_clip.tokenizer import get_tokenizer

SIDE = 8
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
TOKENIZER = get_tokenizer("tiny", 16)
CONFIG = DataConfig(workers=1)


def png(number: int) -> bytes:
    """A picture whose grey tells its number."""
    file = io.BytesIO()
    Image.new("RGB", (12, 12), (number, number, number)).save(file, "PNG")
    return file.getvalue()


def numbers(squares: torch.Tensor) -> list[int]:
    return squares[:, 0, 0, 0].tolist()


def read_back(batch: Batch) -> list[tuple[int, str]]:
    """Number of each picture and text of each caption."""
    texts = [TOKENIZER.decode(ids.tolist()) for ids in batch.ids]  # type: ignore[attr-defined]
    return list(zip(numbers(batch.squares), texts, strict=True))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder beside the table with pictures 0 to 11, one damaged file and one that is a folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.png").write_bytes(png(i))
    (folder / "damaged.png").write_bytes(png(0)[:40])
    (folder / "folder.png").mkdir()
    return folder


Rows = list[dict[str, Any]]


def write_csv(path: Path, rows: Rows, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_tsv(path: Path, rows: Rows) -> Path:
    return write_csv(path, rows, "\t")


def write_parquet(path: Path, rows: Rows) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {".csv": write_csv, ".tsv": write_tsv, ".parquet": write_parquet}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_table_gives_each_picture_with_its_caption(suffix: str, tmp_path: Path, pictures: Path) -> None:
    captions = ["plain", "with, a comma", 'a "quoted" word', "naïve café", "tab\there", "two\nlines"]
    rows: Rows = [{"id": i, "image": f"pictures/{i}.png", "caption": text} for i, text in enumerate(captions)]
    rows[3]["image"] = str(pictures / "3.png")
    pairs = open_table(WRITERS[suffix](tmp_path / f"data{suffix}", rows), CONFIG, SIDE)
    assert [pairs.captions(row) for row in range(len(pairs))] == [(text,) for text in captions]
    squares, kept = pairs.fetch(np.array([5, 0, 3]))
    assert kept == [0, 1, 2] and numbers(squares) == [5, 0, 3]
    assert squares.shape == (3, 3, SIDE, SIDE)
    assert pairs.groups().tolist() == [caption_group(text) for text in captions]
    assert not pairs.skipped


def test_other_columns_may_be_named(tmp_path: Path, pictures: Path) -> None:
    path = write_csv(tmp_path / "data.csv", [{"file": "pictures/7.png", "title": "seven", "image": "", "caption": ""}])
    pairs = open_table(path, replace(CONFIG, image_column="file", caption_column="title"), SIDE)
    assert pairs.captions(0) == ("seven",) and numbers(pairs.fetch(np.array([0]))[0]) == [7]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path, pictures: Path) -> None:
    rows: Rows = [{"image": "pictures/1.png", "caption": "one"}]
    assert len(open_table(write_csv(tmp_path / "data.csv", rows, encoding="utf-8-sig"), CONFIG, SIDE)) == 1


@pytest.mark.parametrize("suffix", WRITERS)
def test_rows_without_image_or_caption_are_counted_and_left_out(suffix: str, tmp_path: Path, pictures: Path) -> None:
    rows: Rows = [
        {"image": "pictures/1.png", "caption": "one"},
        {"image": "", "caption": "no image"},
        {"image": None, "caption": "no image"},
        {"image": "pictures/2.png", "caption": ""},
        {"image": "pictures/2.png", "caption": " \t "},
        {"image": "pictures/2.png", "caption": None},
        {"image": "pictures/3.png", "caption": "three"},
    ]
    pairs = open_table(WRITERS[suffix](tmp_path / f"data{suffix}", rows), CONFIG, SIDE)
    assert [pairs.captions(row)[0] for row in range(len(pairs))] == ["one", "three"]
    missing = {"no caption": 1, "empty caption": 2} if suffix == ".parquet" else {"empty caption": 3}
    assert pairs.skipped == {"no image": 2, **missing}


def test_a_short_row_and_a_long_row_are_counted_and_left_out(tmp_path: Path, pictures: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("image,caption\npictures/1.png,one,more,and more\npictures/2.png\n\npictures/3.png,three\n")
    pairs = open_table(path, CONFIG, SIDE)
    assert [pairs.captions(row)[0] for row in range(len(pairs))] == ["three"]
    assert pairs.skipped == {"row with the wrong number of fields": 2}


def test_pictures_that_cannot_be_read_are_counted_by_cause_and_once(tmp_path: Path, pictures: Path) -> None:
    names = ["1", "missing", "damaged", "folder", "4"]
    path = write_csv(tmp_path / "data.csv", [{"image": f"pictures/{n}.png", "caption": f"about {n}"} for n in names])
    pairs = open_table(path, CONFIG, SIDE)
    squares, kept = pairs.fetch(np.arange(5))
    assert kept == [0, 4] and numbers(squares) == [1, 4]
    assert pairs.skipped == {"missing image": 1, "unreadable image": 2}
    empty, none = pairs.fetch(np.array([1, 2]))
    assert none == [] and empty.shape == (0, 3, SIDE, SIDE) and empty.dtype == torch.uint8
    assert pairs.skipped == {"missing image": 1, "unreadable image": 2}


def test_training_on_a_table_leaves_unreadable_pictures_out_and_keeps_captions_right(
    tmp_path: Path, pictures: Path
) -> None:
    rows: Rows = [{"image": f"pictures/{i}.png", "caption": word} for i, word in enumerate(WORDS)]
    rows[2]["image"], rows[5]["image"] = "pictures/damaged.png", "pictures/nowhere.png"
    path = write_csv(tmp_path / "data.csv", rows)
    data = open_training_data(replace(CONFIG, data=str(path)), TOKENIZER, 4, 7, seed=0)
    assert data.pairs == 12
    batches = list(islice(data.batches(), 6))
    pairs = [pair for batch in batches for pair in read_back(batch)]
    assert all(WORDS[number] == text for number, text in pairs)
    assert Counter(number for number, _ in pairs) == {i: 2 for i in range(12) if i not in (2, 5)}
    assert sum((batch.failed for batch in batches), Counter()) == {"unreadable image": 1, "missing image": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("picture,caption\na.png,a\n", "no column 'image'; it has picture, caption"),
        ("image,text\na.png,a\n", "no column 'caption'; it has image, text"),
        ("", "no column 'image'"),
        ("image,caption\n", "no row with both an image and a caption"),
        ("image,caption\n,a\nb.png,\n", "no row with both an image and a caption"),
        ("image,caption\na.png,a\nb.png,b\n", "none of its images exists"),
        (b"image,caption\na.png,\xff\xfe\n", "no row with both an image and a caption: 1 x caption not UTF-8"),
    ],
)
def test_a_table_that_cannot_serve_is_the_users_to_mend(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message):
        open_table(path, CONFIG, SIDE)


def test_a_missing_or_damaged_file_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        open_table(tmp_path / "none.csv", CONFIG, SIDE)
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        open_table(tmp_path / "bad.parquet", CONFIG, SIDE)


Members = dict[str, bytes]


def write_shard(path: Path, samples: dict[str, Members]) -> None:
    with tarfile.open(path, "w") as archive:
        for key, members in samples.items():
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def good(number: int) -> Members:
    return {"png": png(number), "txt": WORDS[number].encode()}


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Twelve numbered pairs in three shards."""
    for part in range(3):
        samples = {f"{i:04d}": good(i) for i in range(4 * part, 4 * part + 4)}
        write_shard(tmp_path / f"pairs-{part:03d}.tar", samples)
    return str(tmp_path / "pairs-{000..002}.tar")


def read_all(pattern: str) -> tuple[list[tuple[int, str]], Lost]:
    skipped = Lost()
    samples = list(read_shards(expand_shards(pattern), SIDE, skipped))
    return [(int(s.square[0, 0, 0]), s.caption) for s in samples], skipped


def test_a_brace_pattern_gives_every_pair_of_its_shards_in_order(shards: str) -> None:
    assert read_all(shards) == ([(i, word) for i, word in enumerate(WORDS)], {})
    assert read_all(shards.replace("{000..002}", "{000,002}"))[0] == [(i, WORDS[i]) for i in (0, 1, 2, 3, 8, 9, 10, 11)]


def test_flaws_of_samples_are_counted_by_cause(tmp_path: Path) -> None:
    caption = WORDS[1].encode()
    write_shard(
        tmp_path / "flawed.tar",
        {
            "good": good(1),
            "corrupt": {"png": png(2)[:50], "txt": caption},
            "no-text": {"png": png(3)},
            "blank-text": {"png": png(3), "txt": b" \n"},
            "latin-1": {"png": png(3), "txt": b"caf\xe9"},
            "json": {"png": png(4), "json": json.dumps({"caption": "four"}).encode()},
            "other-json": {"png": png(5), "json": json.dumps({"title": "five"}).encode()},
            "list-json": {"png": png(5), "json": b"[1]"},
            "null-json": {"png": png(5), "json": b'{"caption": null}'},
            "number-json": {"png": png(5), "json": b'{"caption": 5}'},
            "broken-json": {"png": png(5), "json": b'{"caption": "fi'},
            "half-a-surrogate": {"png": png(5), "json": b'{"caption": "\\ud800"}'},
            "both": {"png": png(6), "json": json.dumps({"caption": "not this"}).encode(), "txt": b"six"},
            "text-alone": {"txt": caption},
            "upper-case": {"PNG": png(7), "TXT": b"seven"},
            "sound": {"wav": b"RIFF", "txt": caption},
        },
    )
    pairs, skipped = read_all(str(tmp_path / "flawed.tar"))
    assert pairs == [(1, "one"), (4, "four"), (6, "six"), (7, "seven")]
    assert skipped == {
        "truncated image": 1, "no caption": 6, "empty caption": 1, "caption not UTF-8": 2, "no image": 2,
    }  # fmt: skip


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp"])
def test_pictures_go_by_each_of_the_usual_extensions(extension: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    kind = "JPEG" if extension in ("jpg", "jpeg") else extension
    Image.new("RGB", (9, 9), (200, 200, 200)).save(file, kind)
    write_shard(tmp_path / "a.tar", {"0": {extension: file.getvalue(), "txt": b"grey"}})
    ((level, text),), skipped = read_all(str(tmp_path / "a.tar"))
    assert abs(level - 200) <= 2 and text == "grey" and not skipped


def test_a_truncated_shard_gives_its_whole_samples_and_the_next_shard_all_of_its_own(shards: str) -> None:
    first, second, third = map(Path, expand_shards(shards))
    content = second.read_bytes()
    # A sample takes four blocks of 512 bytes: two headers, a picture and a text. The cut is in the third picture.
    second.write_bytes(content[: 2 * 2048 + 512 + 20])
    pairs, skipped = read_all(shards)
    assert pairs == [(i, WORDS[i]) for i in (0, 1, 2, 3, 4, 5, 8, 9, 10, 11)]
    assert skipped == {"damaged shard": 1}
    first.write_bytes(b"")
    third.write_bytes(b"this is no tar at all" * 100)
    pairs, skipped = read_all(shards)
    assert pairs == [(4, "four"), (5, "five")]
    assert skipped == {"damaged shard": 1, "unreadable shard": 2}


def test_missing_shards_are_the_users_to_mend(shards: str) -> None:
    with pytest.raises(UserError, match=r"2 of 5 shards are missing, such as .*pairs-003\.tar"):
        expand_shards(shards.replace("002", "004"))
    with pytest.raises(UserError, match="cannot expand"):
        expand_shards(shards.replace("}", ""))


def shard_batches(pattern: str, size: int, seed: int = 0, **changes: Any) -> Iterator[Batch]:
    config = replace(CONFIG, data=pattern, **changes)
    return open_training_data(config, TOKENIZER, size, SIDE, seed).batches()


def test_batches_from_shards_pair_each_picture_with_its_caption(shards: str) -> None:
    for step, batch in enumerate(islice(shard_batches(shards, 5), 6)):
        assert batch.step == step and len(batch.squares) == 5
        for (number, text), group in zip(read_back(batch), batch.groups.tolist(), strict=True):
            assert text == WORDS[number] and group == caption_group(text)


def test_each_pass_over_shards_gives_every_pair_once_in_an_order_of_its_own(shards: str) -> None:
    passes = []
    batches = shard_batches(shards, 4)
    for _ in range(4):
        passes.append([number for batch in islice(batches, 3) for number, _ in read_back(batch)])
    assert all(sorted(one) == list(range(12)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4


def test_the_order_of_shards_is_a_function_of_the_seed(shards: str) -> None:
    def passes(seed: int) -> list[list[tuple[int, str]]]:
        return [read_back(batch) for batch in islice(shard_batches(shards, 12, seed), 3)]

    assert passes(1) == passes(1)
    orders = [tuple(one) for seed in range(4) for one in passes(seed)]
    assert len(set(orders)) == len(orders)


def test_twins_in_shards_do_not_share_a_batch_unless_allowed(tmp_path: Path) -> None:
    twins = {f"{i}": {"png": png(i), "txt": (b"Same", b"same ")[i % 2]} for i in range(6)}
    write_shard(tmp_path / "a.tar", twins | {f"x{i}": good(i) for i in range(6, 12)})
    pattern = str(tmp_path / "a.tar")
    for batch in islice(shard_batches(pattern, 3), 20):
        assert len(set(batch.groups.tolist())) == 3
    together = [batch.groups.tolist() for batch in islice(shard_batches(pattern, 3, twins="allow"), 20)]
    assert any(len(set(groups)) < 3 for groups in together)


def test_a_batch_larger_than_the_shards_is_refused_with_the_number_that_fits(tmp_path: Path) -> None:
    """Six pairs of two captions can never fill a batch of seven, nor one of three without twins."""
    write_shard(tmp_path / "a.tar", {f"{i}": {"png": png(i), "txt": (b"odd", b"even")[i % 2]} for i in range(6)})
    pattern = str(tmp_path / "a.tar")
    for size, twins, fit in ((7, "allow", 6), (7, "avoid", 2), (3, "avoid", 2)):
        with pytest.raises(UserError, match=f"--batch-size {size} is larger than the data: {fit} pairs"):
            next(shard_batches(pattern, size, twins=twins))
    assert len(next(shard_batches(pattern, 2, twins="avoid")).squares) == 2
    assert len(next(shard_batches(pattern, 6, twins="allow")).squares) == 6


def test_shards_without_one_good_pair_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match="0 pairs"):
        next(shard_batches(str(tmp_path / "a.tar"), 2))


def test_caption_noise_on_a_stream_is_refused(shards: str) -> None:
    with pytest.raises(UserError, match="--caption-noise"):
        shard_batches(shards, 4, caption_noise=0.1)


def test_a_batch_of_one_pair_is_refused(shards: str) -> None:
    with pytest.raises(UserError, match="must be at least 2, not 1"):
        shard_batches(shards, 1)


def test_data_is_told_apart_by_its_name(tmp_path: Path) -> None:
    assert is_shards("a/x-{000..012}.tar") and is_shards("a.tar.gz") and is_shards("pipe:cat a.tar")
    assert not is_shards("my.tarball/pairs.csv") and not is_shards("emoji")
    with pytest.raises(UserError, match="cannot tell what --data 'pictures' is"):
        open_training_data(DataConfig(data="pictures"), TOKENIZER, 4, SIDE, 0)


@pytest.mark.parametrize("style", ["name", "keywords", "mixed"])
def test_the_shipped_set_gives_pictures_with_the_captions_asked_for(style: Any) -> None:
    train = split_emoji(DataConfig()).train
    pairs = EmojiPairs(train, style)
    rows = np.array([5, 9000, 77])
    squares, kept = pairs.fetch(rows)
    assert kept == [0, 1, 2] and torch.equal(squares, train.images(rows))
    for row in rows:
        record = train.records[row]
        expected = {"name": [record.caption], "keywords": [record.described()]}
        assert list(pairs.captions(row)) == expected.get(style, [record.caption, record.described()])
        assert record.described().startswith(record.caption)
    # Groups go by the name whatever the caption says beside it.
    assert pairs.groups()[9000] == caption_group(train.records[9000].caption)


def test_noise_on_a_table_is_seeded_and_recorded(tmp_path: Path, pictures: Path) -> None:
    rows: Rows = [{"image": f"pictures/{i}.png", "caption": word} for i, word in enumerate(WORDS)]
    config = replace(CONFIG, data=str(write_csv(tmp_path / "data.csv", rows)), caption_noise=0.5)
    data = open_training_data(config, TOKENIZER, 6, SIDE, seed=4)
    assert isinstance(data, MapBatches)
    pairs = [pair for batch in islice(data.batches(), 2) for pair in read_back(batch)]
    assert all(text == WORDS[data.caption_rows[number]] for number, text in pairs)
    assert sum(text != WORDS[number] for number, text in pairs) == 6


def test_a_folder_per_class_gives_pictures_with_the_name_of_their_folder(tmp_path: Path) -> None:
    for i, name in enumerate(("red_apple", "pear", "plum")):
        (tmp_path / name / "more").mkdir(parents=True)
        (tmp_path / name / "a.png").write_bytes(png(10 * i))
        (tmp_path / name / "more" / "b.PNG").write_bytes(png(10 * i + 1))
        (tmp_path / name / "notes.txt").write_text("no picture")
    (tmp_path / "plum" / "damaged.jpg").write_bytes(b"damaged")
    found = open_class_folder(tmp_path)
    squares = list(found.squares(SIDE, batch_size=4))
    assert found.names == ["pear", "plum", "red apple"]
    named = zip(numbers(torch.cat(squares)), found.labels, strict=True)
    assert [(number, found.names[label]) for number, label in named] == [
        (10, "pear"), (11, "pear"), (20, "plum"), (21, "plum"), (0, "red apple"), (1, "red apple"),
    ]  # fmt: skip
    assert [len(batch) for batch in squares] == [4, 2]
    assert found.skipped == {"unreadable image": 1}


@pytest.mark.parametrize(("build", "message"), [([], "no sub-folders"), (["cat"], "no picture"), (None, "no such")])
def test_a_folder_without_classes_or_pictures_is_the_users_to_mend(
    build: list[str] | None, message: str, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    for name in build or []:
        (root / name).mkdir(parents=True)
    if build == []:
        root.mkdir()
    with pytest.raises(UserError, match=message):
        open_class_folder(root)
