"""Every way that data can be bad, each left out and counted by a cause of its own, and nothing good lost beside it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import encoded, noise, png, write_members, write_shard, write_table

from oblique_clip import cli
from oblique_clip.check import CheckCommand, read_fully
from oblique_clip.config import DataConfig
from oblique_clip.data.captioned import of_json
from oblique_clip.data.faults import BadSample, Lost, clean_caption, refuse_bad
from oblique_clip.data.images import MAX_PIXELS, decode_square
from oblique_clip.data.shards import pairs_of, read_records, read_shards
from oblique_clip.data.sources import open_training_data
from oblique_clip.data.tables import open_table
from oblique_clip.errors import UserError
from oblique_clip.tokenizer import get_tokenizer

# Every test has warning filters of its own, in which that of the library is not.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")

SIDE = 8
JPEG = 12
"""Largest error of a flat colour through JPEG, in grey levels of 255."""


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises a size, with next to no pixels behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def damaged(data: bytes) -> bytes:
    """The same length, the middle half made of other bytes."""
    quarter = len(data) // 4
    return data[:quarter] + b"\xff" * (len(data) - 2 * quarter) + data[-quarter:]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


BAD_PICTURES: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "empty file"),
    "cut.png": (half(encoded(noise(), "PNG")), "truncated image"),
    "cut.jpg": (half(encoded(noise(), "JPEG")), "truncated image"),
    "cut.gif": (half(encoded(noise(), "GIF")), "truncated image"),
    "damaged.png": (damaged(encoded(noise(), "PNG")), "unreadable image"),
    "damaged.webp": (damaged(encoded(noise(), "WEBP", lossless=True)), "unreadable image"),
    "text.jpg": (b"<html>404 Not Found</html>", "unreadable image"),
    "bomb.png": (png_of_size(50_000, 50_000), "image too large"),
    "large.png": (png_of_size(10_000, MAX_PIXELS // 10_000 + 1), "image too large"),
}
BAD_COUNTS = Counter(cause for _, cause in BAD_PICTURES.values())


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_has_a_cause_of_its_own(name: str, tmp_path: Path) -> None:
    data, cause = BAD_PICTURES[name]
    (tmp_path / name).write_bytes(data)
    for source in (data, tmp_path / name):
        with pytest.raises(BadSample) as error:
            decode_square(source, SIDE)
        assert error.value.cause == cause


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name, cause in (
        ("pipe.png", "unreadable image"),
        ("zero.png", "unreadable image"),
        ("no.png", "missing image"),
    ):
        with pytest.raises(BadSample) as error:
            decode_square(tmp_path / name, SIDE)
        assert error.value.cause == cause


def test_a_table_of_bad_pictures_counts_each_and_gives_the_good_ones(tmp_path: Path) -> None:
    for name, (data, _) in BAD_PICTURES.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "good.png").write_bytes(png(7))
    rows = [(name, "bad") for name in BAD_PICTURES] + [("good.png", "good"), ("missing.png", "bad"), ("good.png", "2")]
    found = read_fully(CheckCommand(str(write_table(tmp_path / "data.csv", rows))))
    assert found.good == 2 and found.lost == {**BAD_COUNTS, "missing image": 1}
    assert found.lost.examples["empty file"] == "empty.png" and found.lost.examples["missing image"] == "missing.png"


def test_a_shard_of_bad_pictures_counts_each_and_gives_the_good_ones(tmp_path: Path) -> None:
    samples = {
        str(number): {name.split(".")[1].replace("gif", "jpg"): data, "txt": b"bad"}
        for number, (name, (data, _)) in enumerate(BAD_PICTURES.items())
    }
    path = write_shard(tmp_path / "x.tar", {"a": {"png": png(7), "txt": b"good"}, **samples})
    found = read_fully(CheckCommand(str(path)))
    assert found.good == 1 and found.lost == BAD_COUNTS
    assert found.lost.examples["empty file"] == "x.tar/0"


def animated(kind: str) -> bytes:
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    return encoded(red, kind, save_all=True, append_images=[blue], duration=100)


def sideways() -> bytes:
    """A red left half, stored turned, as a camera does: upright by its EXIF tag alone."""
    image = Image.new("RGB", (16, 16), "white")
    image.paste("red", (0, 0, 8, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image.rotate(90), "PNG", exif=exif)


READ_RIGHT: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "CMYK": (encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
    "palette": (encoded(Image.new("RGB", (16, 16), "red").quantize(4), "PNG"), (255, 0, 0)),
    "16 bit": (encoded(Image.fromarray(np.full((16, 16), 51 * 257, np.uint16)), "PNG"), (51, 51, 51)),
    "transparent": (encoded(Image.new("RGBA", (16, 16), (255, 0, 0, 0)), "PNG"), (255, 255, 255)),
    "grey with alpha": (encoded(Image.new("LA", (16, 16), (51, 255)), "PNG"), (51, 51, 51)),
    "animated GIF": (animated("GIF"), (255, 0, 0)),
    "animated PNG": (animated("PNG"), (255, 0, 0)),
    "animated WebP": (animated("WEBP"), (255, 0, 0)),
    "turned": (sideways(), (255, 0, 0)),
}


@pytest.mark.parametrize("kind", READ_RIGHT)
def test_unusual_pictures_are_read_right(kind: str) -> None:
    """Of an animation the first frame. The colour is that near the left edge."""
    data, colour = READ_RIGHT[kind]
    gap = decode_square(data, SIDE)[:, SIDE // 2, 1].int() - torch.tensor(colour)
    assert gap.abs().max() <= JPEG


NUL = "unreadable row" if sys.version_info < (3, 11) else "caption with control characters"
BAD_CAPTIONS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty caption"),
    "blank": (b" \t \xe2\x80\x83", "empty caption"),
    "long": (b"a" * 100_000, "caption too long"),
    "latin-1": (b"caf\xe9", "caption not UTF-8"),
    "cut in a letter": ("naïve".encode()[:3], "caption not UTF-8"),
    "encoded surrogate": (b"\xed\xa0\x80", "caption not UTF-8"),
    "escape": (b"a \x1b[2J b", "caption with control characters"),
    "bell": (b"a\x07b", "caption with control characters"),
    "C1": ("a\x9bb".encode(), "caption with control characters"),
}
CAPTION_COUNTS = Counter(cause for _, cause in BAD_CAPTIONS.values())
GOOD_CAPTIONS = (b"a dog", "naïve 犬 🐕".encode(), b"two\nlines\tand a tab", b"a" * 10_000)


@pytest.mark.parametrize("name", BAD_CAPTIONS)
def test_a_bad_caption_has_a_cause_of_its_own(name: str) -> None:
    raw, cause = BAD_CAPTIONS[name]
    with pytest.raises(BadSample) as error:
        clean_caption(raw)
    assert error.value.cause == cause


@settings(max_examples=300, deadline=None, database=None)
@given(text=st.text(max_size=40))
def test_a_clean_caption_is_the_text_without_the_space_around_it_and_clean_itself(text: str) -> None:
    try:
        clean = clean_caption(text)
    except BadSample:
        return
    assert clean == text.strip() == clean_caption(clean) == clean_caption(clean.encode())


def test_a_table_counts_bad_captions_and_rows_and_keeps_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    captions = [raw for raw, _ in BAD_CAPTIONS.values()] + list(GOOD_CAPTIONS)
    rows = [b'a.png,"' + caption + b'"' for caption in captions]
    rows[1:1] = [b"a.png,one,more", b"a.png", b"", b"a.png," + b"b" * 140_000, b",no image", b"a\xff.png,a"]
    (tmp_path / "data.csv").write_bytes(b"image,caption\n" + b"\n".join(rows) + b"\n")
    pairs = open_table(tmp_path / "data.csv", DataConfig(), SIDE)
    assert [pairs.captions(row)[0].encode() for row in range(len(pairs))] == list(GOOD_CAPTIONS)
    assert pairs.skipped == {
        **CAPTION_COUNTS, "row with the wrong number of fields": 2, "unreadable row": 1, "no image": 1,
        "path not UTF-8": 1,
    }  # fmt: skip
    assert pairs.skipped.examples["unreadable row"] == "data.csv line 6"


def test_a_null_byte_spoils_its_own_row_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "data.csv").write_bytes(b"image,caption\na.png,a\x00b\na.png,fine\n")
    pairs = open_table(tmp_path / "data.csv", DataConfig(), SIDE)
    assert len(pairs) == 1 and pairs.skipped == {NUL: 1}


def test_shards_count_bad_captions_whether_in_text_or_json(tmp_path: Path) -> None:
    texts = {f"t{number}": {"png": png(1), "txt": raw} for number, (raw, _) in enumerate(BAD_CAPTIONS.values())}
    values = [None, 5, ["a"], "", "\ud800", "a" * 10_001, "a\x00b", "fine"]
    blobs = [json.dumps({"caption": value}).encode() for value in values] + [b"[" * 100_000, b"{", b"\xff"]
    jsons = {f"j{number}": {"png": png(1), "json": blob} for number, blob in enumerate(blobs)}
    lost = Lost()
    shard = write_shard(tmp_path / "x.tar", {**texts, **jsons})
    assert [sample.caption for sample in read_shards([str(shard)], SIDE, lost)] == ["fine"]
    of_json = {"empty caption": 1, "caption not UTF-8": 1, "caption too long": 1, "caption with control characters": 1}
    assert lost == CAPTION_COUNTS + Counter({"no caption": 6, **of_json})


def test_a_caption_json_counts_bad_captions_and_paths(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "b.png").write_bytes(b"")
    names = ["a.png", "b.png", "../a.png", 5]
    captions = ["fine", None, "\ud800", " ", "a\x00b"]
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"image_id": 0, "caption": text} for text in captions]
        + [{"image_id": number, "caption": "fine"} for number in (1, 2, 3)],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    pictures = of_json(tmp_path / "captions.json", None, SIDE)
    assert [texts for _, texts in pictures.batches] == [[["fine"]]]
    assert pictures.skipped() == {
        "no caption": 1, "caption not UTF-8": 1, "empty caption": 1, "caption with control characters": 1,
        "path outside the data folder": 1, "no image": 1, "empty file": 1,
    }  # fmt: skip


@pytest.mark.parametrize("relative", [False, True])
def test_paths_that_lead_out_of_the_data_folder_are_not_opened(
    relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    for path in (folder / "a.png", tmp_path / "secret.png", tmp_path / "data2.png"):
        path.write_bytes(png(1))
    outside = [
        "../secret.png",
        "more/../../secret.png",
        str(tmp_path / "secret.png"),
        "../data2.png",
        "/etc/passwd",
        "..",
    ]
    inside = ["a.png", "more/../a.png", str(folder / "a.png"), "./a.png"]
    table = write_table(folder / "data.csv", [(name, "a") for name in outside + inside])
    if relative:
        monkeypatch.chdir(folder)
        table = Path("data.csv")
    pairs = open_table(table, DataConfig(), SIDE)
    assert len(pairs.fetch(np.arange(len(pairs)))[1]) == len(pairs) == 4
    assert pairs.skipped == {"path outside the data folder": 6}
    pairs = open_table(table, DataConfig(image_root=tmp_path), SIDE)
    assert pairs.skipped == {"path outside the data folder": 5}
    with pytest.raises(UserError, match=r"6 x path outside the data folder; .*--image-root"):
        open_table(write_table(folder / "data.csv", [(name, "a") for name in outside]), DataConfig(), SIDE)


def link(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def keys(path: Path) -> tuple[list[str], Lost]:
    lost = Lost()
    return [record["__key__"] for record in read_records([str(path)], lost)], lost


def test_members_that_could_reach_outside_are_refused_with_their_samples(tmp_path: Path) -> None:
    members: list[tuple[str | tarfile.TarInfo, bytes]] = [
        ("a.txt", b"a"),
        ("/etc/b.txt", b"b"),
        ("../c.txt", b"c"),
        ("d/../../e.txt", b"e"),
        ("..\\f.txt", b"f"),
        (link("g.txt", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (link("h.txt", tarfile.LNKTYPE, "a.txt"), b""),
        ("i.png", png(1)),
        (link("i.txt", tarfile.SYMTYPE, "a.txt"), b""),
        (link("j.txt", tarfile.CHRTYPE), b""),
        (link("k.txt", tarfile.FIFOTYPE), b""),
        (link("folder", tarfile.DIRTYPE), b""),
        ("folder/l.txt", b"l"),
        ("__meta__.json", b"{}"),
        (".hidden", b""),
    ]
    found, lost = keys(write_members(tmp_path / "x.tar", members))
    assert found == ["a", "folder/l"]
    assert lost == {"member path outside the shard": 4, "link or device in a shard": 5}
    assert list(tmp_path.iterdir()) == [tmp_path / "x.tar"]


def test_a_member_too_large_is_passed_over_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oblique_clip.data.tar.LARGEST_MEMBER", 100)
    found, lost = keys(
        write_members(tmp_path / "x.tar", [("a.txt", b"a"), ("b.txt", b"b" * 101), ("c.txt", b"c" * 100)])
    )
    assert found == ["a", "c"] and lost == {"member too large": 1}


def test_of_repeated_keys_the_first_counts(tmp_path: Path) -> None:
    members = [
        ("a.txt", b"first"), ("a.png", b""), ("a.txt", b"second"), ("a.png", b""), ("b.txt", b"b"), ("a.txt", b"third"),
        ("c.txt", b"c"), ("c.txt", b"again"), ("c.txt", b"and again"), ("b.png", b""),
    ]  # fmt: skip
    path = write_members(tmp_path / "x.tar", list(members))
    lost = Lost()
    texts = [record["txt"] for record in read_records([str(path)], lost)]
    assert texts == [b"first", b"b", b"c"]
    assert lost == {"duplicate key": 5}
    # In another shard a key is another sample's.
    assert len(list(read_records([str(path)] * 2, Lost()))) == 6


def good_shard(path: Path) -> bytes:
    return write_members(path, [(f"{number}.txt", b"text") for number in range(6)]).read_bytes()


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


# A member takes 1,024 bytes: a header and a block. What is read before the damage, and what it is counted as.
DAMAGE = {
    "cut in a header": (lambda data: data[: 2 * 1024 + 100], 2, "damaged shard"),
    "cut in a member": (lambda data: data[: 2 * 1024 + 514], 2, "damaged shard"),
    "cut between members": (lambda data: data[: 2 * 1024], 2, "damaged shard"),
    "cut before its end mark": (lambda data: data[: 6 * 1024], 6, "damaged shard"),
    "a broken header": (lambda data: flipped(data, 2 * 1024 + 10), 2, "damaged shard"),
    "a hole of zeros": (lambda data: data[:2048] + bytes(1024) + data[3072:], 2, "damaged shard"),
    "two in one file": (lambda data: data + data, 6, "damaged shard"),
    "a broken first header": (lambda data: flipped(data, 10), 0, "unreadable shard"),
    "garbage": (lambda data: b"this is no tar" * 500, 0, "unreadable shard"),
    "empty": (lambda data: b"", 0, "unreadable shard"),
    "cut when compressed": (lambda data: half(gzip.compress(data + bytes(range(256)) * 40)), None, "damaged shard"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_gives_what_is_whole_and_is_counted_once(damage: str, tmp_path: Path) -> None:
    change, whole, cause = DAMAGE[damage]
    (tmp_path / "x.tar").write_bytes(change(good_shard(tmp_path / "y.tar")))
    found, lost = keys(tmp_path / "x.tar")
    assert found == [str(number) for number in range(len(found) if whole is None else whole)]
    assert lost.total() == 1 and set(lost) <= ({cause} if whole is not None else {cause, "unreadable shard"})


def test_a_header_that_asks_for_much_memory_is_refused(tmp_path: Path) -> None:
    """Such as a pax header of a gigabyte of zeros, which takes a megabyte when compressed: here two megabytes."""
    for size, whole in ((2**21, False), (2**19, True)):
        member = tarfile.TarInfo("a.txt")
        member.pax_headers = {"comment": "x" * size}
        found = keys(write_members(tmp_path / "x.tar", [(member, b"a")]))
        assert found == ((["a"], {}) if whole else ([], {"unreadable shard": 1}))


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_an_undamaged_shard_loses_nothing_from_a_file_or_a_pipe(compress: object, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(compress(good_shard(tmp_path / "y.tar")))  # type: ignore[operator]
    for url in (str(tmp_path / "x.tar"), f"file:{tmp_path}/x.tar", f"pipe:cat {tmp_path}/x.tar"):
        lost = Lost()
        assert [record["txt"] for record in read_records([url], lost)] == [b"text"] * 6 and not lost
    lost = Lost()
    assert not list(read_records([f"pipe:cat {tmp_path}/none.tar 2>/dev/null"], lost)) and lost == {
        "unreadable shard": 1
    }


def test_what_may_be_lost_is_a_share_that_the_user_sets() -> None:
    refuse_bad(Counter(a=5), 95, 0.05, "x")
    refuse_bad(Counter(), 0, 0.0, "x")
    with pytest.raises(UserError, match=r"x: 6 of 100 samples are lost \(4 x a, 2 x b\); --max-bad-fraction allows"):
        refuse_bad(Counter(a=4, b=2), 94, 0.05, "x")
    with pytest.raises(UserError):
        refuse_bad(Counter(a=1), 10**6, 0.0, "x")


def test_training_is_refused_on_a_table_with_too_many_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    rows = [("a.png", f"caption {number}") for number in range(18)] + [("", "none"), ("a.png", "")]
    config = DataConfig(data=str(write_table(tmp_path / "data.csv", rows)))
    with pytest.raises(UserError, match=r"2 of 20 samples are lost \(1 x no image, 1 x empty caption\)"):
        open_training_data(config, get_tokenizer("tiny", 16), 4, SIDE, 0)
    data = open_training_data(replace(config, max_bad_fraction=0.1), get_tokenizer("tiny", 16), 4, SIDE, 0)
    assert data.left_out == {"no image": 1, "empty caption": 1}
    assert all(not batch.failed for batch in islice(data.batches(), 9))


def check(*args: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.main(["data", "check", *map(str, args)])
    return status, *capsys.readouterr()


def test_data_check_prints_what_is_lost_and_fails_above_the_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(18):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "\x1b[31m.png").write_bytes(b"")
    rows = [(f"{number}.png", "a") for number in range(19)] + [("\x1b[31m.png", "steers the terminal")]
    table = write_table(tmp_path / "data.csv", rows)
    status, out, err = check(table, "--max-bad-fraction", 0.1, capsys=capsys)
    assert (status, err) == (0, "") and "20 samples, 2 lost (10.00%)" in out
    assert "18.png" in out and "empty file" in out and "\x1b" not in out
    status, out, err = check(table, capsys=capsys)
    assert status == 2 and "empty file" in out and err.count("\n") == 1
    assert "2 of 20 samples are lost (1 x missing image, 1 x empty file)" in err


def test_data_check_reads_every_kind_of_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "a.png").write_bytes(png(1))
    (tmp_path / "classes" / "dog" / "b.png").write_bytes(b"")
    coco = {"images": [{"id": 1, "file_name": "cat/a.png"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
    (tmp_path / "classes" / "captions.json").write_text(json.dumps(coco))
    write_shard(tmp_path / "x-0.tar", {"a": {"png": png(1), "txt": b"a"}})
    write_shard(tmp_path / "x-1.tar", {"b": {"png": png(1)}, "c": {"png": png(1), "txt": b"c"}})
    for data, counts in (
        (tmp_path / "classes", "3 samples, 1 lost"),
        (tmp_path / "classes" / "captions.json", "1 samples, 0 lost"),
        (tmp_path / "x-{0..1}.tar", "3 samples, 1 lost"),
        ("emoji", "16,150 samples, 0 lost"),
    ):
        status, out, err = check(data, "--max-bad-fraction", 0.5, capsys=capsys)
        assert (status, err) == (0, "") and counts in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.csv", "no such file or folder"),
        ("none-{0..1}.tar", "2 of 2 shards are missing"),
        ("none", "no such file or folder"),
        ("other.txt", "cannot tell what"),
        ("empty.tar", "holds no sample"),
        ("garbage.tar", "1 of 1 samples are lost"),
    ],
)
def test_data_check_of_a_source_that_is_missing_is_one_line(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.txt").touch()
    write_members(tmp_path / "empty.tar", [])
    (tmp_path / "garbage.tar").write_bytes(b"garbage")
    status, _, err = check(tmp_path / name, capsys=capsys)
    assert status == 2 and message in err and err.count("\n") == 1


@pytest.mark.filterwarnings("error")
def test_a_large_picture_has_its_cause_where_warnings_are_errors_too() -> None:
    with pytest.raises(BadSample, match="too large"):
        decode_square(BAD_PICTURES["large.png"][0], SIDE)


def test_no_warning_of_pillow_about_large_pictures_leaks(tmp_path: Path) -> None:
    """Nothing but the one line is said on standard error, in a process with the filters that a user has."""
    (tmp_path / "a.png").write_bytes(BAD_PICTURES["large.png"][0])
    table = write_table(tmp_path / "data.csv", [("a.png", "a")])
    command = [sys.executable, "-m", "oblique_clip", "data", "check", str(table)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "image too large" in done.stderr and done.stderr.count("\n") == 1


def test_a_csv_of_one_unclosed_quote_ends(tmp_path: Path) -> None:
    """It swallows the rows behind it, which no reader can tell, but no more than that."""
    (tmp_path / "a.png").write_bytes(png(1))
    file = io.StringIO()
    csv.writer(file).writerows([("image", "caption")] + [("a.png", "a")] * 4)
    (tmp_path / "data.csv").write_text(file.getvalue() + 'a.png,"' + "\na.png,b" * 20_000)
    pairs = open_table(tmp_path / "data.csv", DataConfig(), SIDE)
    assert pairs.left_out["unreadable row"] >= 1 and pairs.captions(0) == ("a",)


def test_a_key_that_is_no_text_has_a_name_that_can_be_written(tmp_path: Path) -> None:
    path = write_members(tmp_path / "x.tar", [("\udcff.png", png(1)), ("\udcfe.png", png(2)), ("\udcfe.txt", b"two")])
    lost = Lost()
    (pair,) = pairs_of(read_records([str(path)], lost), lost)
    assert pair.name.encode() == rb"x.tar/\udcfe" and lost.examples["no caption"].encode() == rb"x.tar/\udcff"


def test_no_picture_starts_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript by any name: Pillow would have Ghostscript run it."""

    def started(*args: object, **options: object) -> None:
        raise AssertionError(f"{args} was started")

    for name in ("run", "call", "check_call", "check_output", "Popen"):
        monkeypatch.setattr(subprocess, name, started)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(BadSample, match="unreadable image"):
        decode_square(script, 8)
