"""Captions and ids: the end token is the largest and last, padding is 0, and cutting it away loses nothing."""

import json
from importlib import resources

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oblique_clip.data.emoji import load_emoji
from oblique_clip.tokenizer import PAD_ID, TINY_VOCAB_SIZE, build_tiny_vocabulary, cut_to_longest, get_tokenizer

UNKNOWN_ID = 1
SHARED_PIECES = 0.995
"""Share of the pieces that a rebuilt vocabulary has in common with the shipped one (measured: 4,090 of 4,095)."""
SAME_LENGTH = 0.005
"""Relative difference allowed in the tokens that both need for all captions (measured: below 0.001)."""

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
texts = st.lists(unicode_text, min_size=1, max_size=5)
# Under the standard context of 77 both vocabularies must cut some of these, and pad others.
lengths = st.sampled_from([2, 5, 16, 32, 77])
quick = settings(max_examples=100, deadline=None, database=None)


@pytest.mark.parametrize("name", ["tiny", "clip"])
@quick
@given(texts=texts, length=lengths)
def test_the_end_token_is_the_largest_and_last_and_padding_stands_behind(
    name: str, texts: list[str], length: int
) -> None:
    tokenizer = get_tokenizer(name, length)
    ids = tokenizer(texts)
    assert ids.shape == (len(texts), length) and ids.dtype == torch.int64
    end = ids.argmax(1)
    assert (ids.max(1).values == tokenizer.vocab_size - 1).all()
    for row, last in zip(ids, end.tolist(), strict=True):
        assert (row[last + 1 :] == PAD_ID).all()
        assert (row == tokenizer.vocab_size - 1).sum() == 1


@pytest.mark.parametrize("name", ["tiny", "clip"])
@quick
@given(texts=texts, length=lengths)
def test_cutting_to_the_longest_drops_only_padding(name: str, texts: list[str], length: int) -> None:
    ids = get_tokenizer(name, length)(texts)
    cut = cut_to_longest(ids)
    restored = torch.nn.functional.pad(cut, (0, length - cut.shape[1]), value=PAD_ID)
    assert torch.equal(restored, ids)
    assert (cut[:, -1] != PAD_ID).any()


def test_a_batch_of_nothing_but_padding_keeps_one_column() -> None:
    assert cut_to_longest(torch.zeros(3, 7, dtype=torch.long)).tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("name", ["tiny", "clip"])
def test_a_long_caption_is_cut_before_its_end_token(name: str) -> None:
    tokenizer = get_tokenizer(name, 8)
    long = tokenizer("one two three four five six seven eight nine ten")[0]
    whole = get_tokenizer(name, 32)("one two three four five six seven eight nine ten")[0]
    assert long[-1] == tokenizer.vocab_size - 1
    assert torch.equal(long[:-1], whole[:7])


@pytest.mark.parametrize("name", ["tiny", "clip"])
def test_one_text_is_a_batch_of_one_and_rows_do_not_touch_each_other(name: str) -> None:
    tokenizer = get_tokenizer(name, 16)
    captions = ["red apple", "a very long caption about a red apple on a tree", ""]
    assert torch.equal(tokenizer(captions), torch.cat([tokenizer(caption) for caption in captions]))


@pytest.mark.parametrize(
    "same",
    [
        ("Piñata", "pinata", "PIN\u0303ATA"),
        ("São Tomé & Príncipe", "sao tome & principe"),
        ("red   apple", " red apple\n", "Red\tApple"),
        ("ﬁre", "fire"),
    ],
)
def test_case_accents_spaces_and_unicode_form_fold_to_the_same_ids(same: tuple[str, ...]) -> None:
    ids = get_tokenizer("tiny", 16)(list(same))
    assert (ids == ids[0]).all()
    assert not (ids == UNKNOWN_ID).any()


@pytest.mark.parametrize("spelt", ["<end>", "<pad>", "<unk>", "a <end> b <pad> c"])
def test_a_caption_that_spells_a_special_token_means_its_letters(spelt: str) -> None:
    tokenizer = get_tokenizer("tiny", 16)
    used = tokenizer(spelt)[0]
    used = used[: int(used.argmax())]
    assert len(used) > 2
    assert not ((used == PAD_ID) | (used == tokenizer.vocab_size - 1)).any()


def test_no_shipped_text_has_an_unknown_piece() -> None:
    records = load_emoji().records
    shipped = sorted({text for r in records for text in (r.caption, r.concept, r.described())})
    ids = get_tokenizer("tiny", 256)(shipped)
    assert not (ids == UNKNOWN_ID).any()


def test_shipped_names_fit_the_context_and_come_back_from_their_ids() -> None:
    names = sorted({record.concept for record in load_emoji().records})
    tokenizer = get_tokenizer("tiny", 32)
    ids = tokenizer(names)
    longest = int((ids != PAD_ID).sum(1).max())
    assert longest == 28  # 27 pieces and the end, of 32: no class name is cut
    plain = {name for name in names if name.isascii() and name.replace(" ", "").isalpha()}
    assert len(plain) > 3000
    decoded = {name: tokenizer.decode(row.tolist()) for name, row in zip(names, ids, strict=True)}  # type: ignore[attr-defined]
    assert [name for name in plain if decoded[name].split() != name.split()] == []


def test_the_vocabulary_rebuilt_from_the_shipped_metadata_is_the_shipped_one_up_to_ties() -> None:
    shipped_text = resources.files("oblique_clip.data").joinpath("assets/tokenizer.json").read_text(encoding="utf-8")
    shipped = json.loads(shipped_text)
    rebuilt_text = build_tiny_vocabulary(
        text for record in load_emoji().records for text in (record.caption, *record.keywords)
    )
    rebuilt = json.loads(rebuilt_text)
    pieces, again = shipped["model"].pop("vocab"), rebuilt["model"].pop("vocab")
    shipped["model"].pop("merges"), rebuilt["model"].pop("merges")
    assert rebuilt == shipped
    assert len(again) == len(pieces) == TINY_VOCAB_SIZE - 1
    assert len(again.keys() & pieces.keys()) >= SHARED_PIECES * len(pieces)
    assert get_tokenizer("tiny", 32).vocab_size == TINY_VOCAB_SIZE

    from tokenizers import Tokenizer

    captions = [record.caption for record in load_emoji().records]
    used, reused = (
        sum(len(encoding.ids) for encoding in Tokenizer.from_str(text).encode_batch(captions))
        for text in (shipped_text, rebuilt_text)
    )
    assert abs(reused - used) <= SAME_LENGTH * used


def test_the_standard_sizes_use_open_clips_tokenizer() -> None:
    import open_clip

    captions = ["a photo of a cat", "naïve café!", "", "word " * 100]
    ours = get_tokenizer("clip", 77)
    assert torch.equal(ours(captions), open_clip.get_tokenizer("ViT-B-32")(captions))
    assert ours.vocab_size == 49408
