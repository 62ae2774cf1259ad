"""The shipped set: what is in it, that pictures are those of the sheets, and that nothing held out is trained on."""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from oblique_clip.config import DataConfig
from oblique_clip.data import emoji as module
from oblique_clip.data.batches import caption_key
from oblique_clip.data.emoji import FAMILIES, EmojiSet, cache_folder, concept_split, load_emoji
from oblique_clip.data.sources import open_pairs
from oblique_clip.data.splits import split_emoji
from oblique_clip.errors import UserError

COUNTS = {
    "noto": 1678, "noto-v1": 1261, "twemoji": 1940, "emojione": 1375, "fxemoji": 671, "streamline-emojis": 766,
    "fluent-color": 1590, "fluent-flat": 1594, "fluent-3d": 1609, "openclipart": 3666,
}  # fmt: skip
ASSETS = Path(module.__file__).parent / "assets"
ALL = tuple(sorted(set(FAMILIES.values())))


def pictures_of(emoji: EmojiSet) -> set[int]:
    return set(emoji.rows.tolist())


def test_the_set_has_as_many_pairs_of_each_source_as_its_notice_says() -> None:
    whole = load_emoji()
    assert Counter(record.source for record in whole.records) == COUNTS
    assert len(whole) == len(whole.pixels) == 16_150


@pytest.mark.parametrize("source", COUNTS)
def test_a_picture_is_the_tile_of_its_sheet_cut_by_hand(source: str) -> None:
    whole = load_emoji()
    own = [row for row, record in enumerate(whole.records) if record.source == source]
    with Image.open(ASSETS / f"{source}-64.webp") as sheet:
        pixels = sheet.convert("RGB")
    for place in (0, 49, 50, COUNTS[source] // 2, COUNTS[source] - 1):
        down, right = divmod(place, 50)
        tile = pixels.crop((64 * right, 64 * down, 64 * right + 64, 64 * down + 64))
        loaded = whole.images(np.array([own[place]]))[0]
        assert np.array_equal(loaded.permute(1, 2, 0).numpy(), np.asarray(tile))


def test_known_pictures_have_the_colour_that_their_caption_names() -> None:
    whole = load_emoji()
    for caption, channel in (("red circle", 0), ("green circle", 1), ("blue circle", 2)):
        rows = [i for i, r in enumerate(whole.records) if r.caption.lower() == caption and r.source != "openclipart"]
        assert len(rows) >= 5
        middle = whole.images(np.array(rows))[:, :, 24:40, 24:40].float().mean((2, 3))
        assert (middle.argmax(1) == channel).all()


def test_a_selection_keeps_each_record_with_its_own_picture() -> None:
    whole = load_emoji()
    keep = np.zeros(len(whole), bool)
    keep[[7, 1000, 16_149]] = True
    part = whole.select(keep).select(np.array([False, True, True]))
    assert part.records == (whole.records[1000], whole.records[16_149])
    assert torch.equal(part.images(), whole.images(np.array([1000, 16_149])))
    assert torch.equal(part.images(np.array([1])), whole.images(np.array([16_149])))


def test_of_families_takes_every_picture_of_those_families_and_no_other() -> None:
    whole = load_emoji()
    parts = [whole.of_families((family,)) for family in ALL]
    assert sum(map(len, parts)) == len(whole)
    for family, part in zip(ALL, parts, strict=True):
        assert {record.family for record in part.records} == {family}
    assert len(whole.of_families(("emoji-fluent",))) == 1590 + 1594 + 1609


def test_keywords_follow_the_caption_once_each_and_never_repeat_it() -> None:
    record = replace(load_emoji().records[0], caption="Red Apple", keywords=("fruit", "red apple", "fruit", "food"))
    assert record.described() == "Red Apple, fruit, food"


@pytest.mark.parametrize("held_out", [("test",), ("val",), ("val", "test"), ()])
@pytest.mark.parametrize(
    ("test_families", "val_families"),
    [(("emoji-fluent",), ("emoji-fxemoji",)), (("emoji-noto", "emoji-twemoji"), ()), ((), ("openclipart",))],
)
def test_what_is_held_out_is_neither_trained_on_nor_chosen_by_and_nothing_else_is_lost(
    test_families: tuple[str, ...], val_families: tuple[str, ...], held_out: tuple[str, ...]
) -> None:
    config = DataConfig(test_families=test_families, val_families=val_families, held_out_concepts=held_out)
    splits = split_emoji(config)
    held_families = {*test_families, *val_families}
    assert not {record.family for record in (*splits.train.records, *splits.concepts.records)} & held_families
    assert {record.family for record in splits.test.records} == set(test_families)
    assert {record.family for record in splits.val.records} == set(val_families)
    trained = {caption_key(record.caption) for record in splits.train.records}
    assert not trained & {caption_key(record.caption) for record in splits.concepts.records}
    assert not any(concept_split(record.concept) in held_out for record in splits.train.records)
    assert not any(concept_split(record.concept) in held_out for record in splits.val.records)
    parts = [splits.train, splits.val, splits.test, splits.concepts]
    in_use = set().union(*map(pictures_of, parts))
    assert sum(map(len, parts)) == len(in_use)
    # Only the validation family's pictures of held-out concepts are in no part.
    unused = [load_emoji().records[row] for row in set(range(16_150)) - in_use]
    assert all(r.family in val_families and concept_split(r.concept) in held_out for r in unused)
    held_in_val = sum(r.family in val_families and r.split in held_out for r in load_emoji().records)
    assert len(unused) == held_in_val


@pytest.mark.parametrize("style", ["keywords", "mixed"])
def test_a_held_out_name_is_no_keyword_of_a_training_pair(style: Literal["keywords", "mixed"]) -> None:
    splits = split_emoji(DataConfig())
    hidden = {record.concept for record in splits.concepts.records}
    pairs = open_pairs(DataConfig(captions=style), image_size=32)
    behind = [pairs.captions(i)[-1].removeprefix(record.caption) for i, record in enumerate(splits.train.records)]
    words = {word.strip().lower() for text in behind for word in text.split(", ")}
    assert "person" in hidden and not words & hidden


def test_sources_that_share_artwork_are_held_out_together() -> None:
    splits = split_emoji(DataConfig(test_families=("emoji-noto",), val_families=()))
    assert {record.source for record in splits.test.records} == {"noto", "noto-v1"}


def test_the_split_of_concepts_is_a_function_of_the_name_alone_and_about_80_10_10() -> None:
    names = sorted({record.concept for record in load_emoji().records})
    parts = Counter(map(concept_split, names))
    shares = [parts[part] / len(names) for part in ("train", "val", "test")]
    # 4,736 names: three standard errors of a share of 0.1 are 0.013, of 0.8 0.017.
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.018)
    for name in names[::97]:
        digit = int(hashlib.md5(name.encode()).hexdigest(), 16) % 10
        assert concept_split(name) == {0: "test", 1: "val"}.get(digit, "train")
    for record in load_emoji().records[::501]:
        assert record.split == concept_split(record.caption.lower())
    # The split is part of every published figure: these names must never move.
    pinned = {"grinning face": "train", "red apple": "train", "dog face": "test", "umbrella": "val"}
    assert {name: concept_split(name) for name in pinned} == pinned


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(test_families=("fluent",)), "no family 'fluent'; there is emoji-emojione, "),
        (DataConfig(val_families=("noto",)), "no family 'noto'"),
        (DataConfig(held_out_concepts=("train",)), "takes val and test, not 'train'"),
        (DataConfig(test_families=ALL, val_families=()), "nothing is left to train on"),
        (DataConfig(test_families=("emoji-fxemoji",)), "emoji-fxemoji cannot be both"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(config: DataConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_emoji(config)


def test_an_interrupted_decoding_leaves_nothing_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = tuple(r for r in load_emoji().records if r.source in ("fxemoji", "streamline-emojis"))
    path = tmp_path / "cache" / "pixels.npy"
    cut = module._cut

    def interrupted(sheet: Path, count: int) -> np.ndarray:
        if "streamline" in sheet.name:
            raise KeyboardInterrupt
        return cut(sheet, count)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_cut", interrupted)
        with pytest.raises(KeyboardInterrupt):
            module._decode_sheets(records, path)
    assert not path.exists()
    module._decode_sheets(records, path)
    whole = load_emoji()
    rows = [i for i, r in enumerate(whole.records) if r.source in ("fxemoji", "streamline-emojis")]
    assert np.array_equal(np.load(path), whole.pixels[rows])


def test_leftovers_of_another_process_in_the_cache_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_emoji()
    shared = next(cache_folder().glob("emoji-64-*.npy"))
    monkeypatch.setenv("OBLIQUE_CLIP_CACHE", str(tmp_path))
    (tmp_path / shared.with_suffix(".4242.part").name).write_bytes(b"half of a file")
    assert cache_folder() == tmp_path
    fresh = load_emoji.__wrapped__()
    try:
        assert (tmp_path / shared.name).is_file()
        assert all(np.array_equal(fresh.pixels[i::997], load_emoji().pixels[i::997]) for i in range(3))
    finally:
        (tmp_path / shared.name).unlink()


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("OBLIQUE_CLIP_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set OBLIQUE_CLIP_CACHE"):
        load_emoji.__wrapped__()
