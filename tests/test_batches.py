"""From pairs to batches: no twin beside its twin, nothing twice, nothing lost that a batch could hold."""

import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oblique_clip.data.batches import (
    Batch,
    MapBatches,
    caption_group,
    prefetch,
)
from oblique_clip.data.faults import Lost
from oblique_clip.data.order import Rows, epoch_batches, noise_permutation, without_twins
from oblique_clip.errors import UserError
from oblique_clip.tokenizer import get_tokenizer

INDEPENDENT = 0.2
"""Largest correlation of two unrelated orders of 1,000 rows: six standard errors."""

laws = settings(max_examples=200, deadline=None, database=None)
groups_lists = st.lists(st.integers(0, 12), max_size=80)
sizes = st.integers(1, 10)


@laws
@given(groups=groups_lists, size=sizes, seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_no_twin_shares_a_batch_and_only_what_fills_none_is_left(
    groups: list[int], size: int, seed: int, epoch: int
) -> None:
    """Full batches of distinct groups, each row at most once, and rows of fewer groups left than a batch needs."""
    numbers = np.array(groups, dtype=np.int64)
    batches = epoch_batches(numbers, size, seed, epoch, "avoid")
    used = [int(row) for rows in batches for row in rows]
    assert all(len(rows) == size == len(set(numbers[rows].tolist())) for rows in batches)
    assert len(set(used)) == len(used)
    left = set(range(len(groups))) - set(used)
    assert len({groups[row] for row in left}) < size


@laws
@given(count=st.integers(0, 80), size=sizes, seed=st.integers(0, 99))
def test_with_twins_allowed_an_epoch_is_one_shuffle_cut_into_full_batches(count: int, size: int, seed: int) -> None:
    batches = epoch_batches(np.zeros(count, dtype=np.int64), size, seed, 0, "allow")
    used = [int(row) for rows in batches for row in rows]
    assert all(len(rows) == size for rows in batches)
    assert len(set(used)) == len(used) == count - count % size


@laws
@given(groups=groups_lists, size=sizes, twins=st.sampled_from(["avoid", "allow"]), seed=st.integers(0, 99))
def test_the_order_is_a_function_of_seed_and_epoch(groups: list[int], size: int, twins: str, seed: int) -> None:
    numbers = np.array(groups, dtype=np.int64)
    first, again = (epoch_batches(numbers, size, seed, 3, twins) for _ in range(2))  # type: ignore[arg-type]
    assert [rows.tolist() for rows in first] == [rows.tolist() for rows in again]


@pytest.mark.parametrize("twins", ["avoid", "allow"])
def test_epochs_and_seeds_have_orders_of_their_own(twins: str) -> None:
    groups = np.arange(1000) // 2
    orders = {
        (seed, epoch): np.concatenate(epoch_batches(groups, 10, seed, epoch, twins))  # type: ignore[arg-type]
        for seed in range(3)
        for epoch in range(3)
    }
    for one in orders:
        for other in orders:
            if one != other:
                shorter = min(len(orders[one]), len(orders[other]))
                alike = np.corrcoef(orders[one][:shorter], orders[other][:shorter])[0, 1]
                assert abs(alike) < INDEPENDENT


def test_a_twin_goes_into_the_next_batch_that_has_room_for_it() -> None:
    stream = [(0, "a1"), (0, "a2"), (1, "b1"), (0, "a3"), (2, "c1"), (1, "b2"), (1, "b3")]
    assert list(without_twins(iter(stream), 2)) == [["a1", "b1"], ["a2", "c1"], ["a3", "b2"]]


@laws
@given(groups=groups_lists, size=sizes, line=st.integers(0, 5))
def test_a_short_line_loses_only_what_it_counts(groups: list[int], size: int, line: int) -> None:
    skipped: Counter[str] = Counter()
    batches = list(without_twins(((g, i) for i, g in enumerate(groups)), size, line, skipped))
    used = [row for rows in batches for row in rows]
    assert len(set(used)) == len(used)
    assert all(len({groups[row] for row in rows}) == size for rows in batches)
    left = len(groups) - len(used) - skipped.total()
    assert 0 <= left < size + line


def test_a_stream_is_read_no_further_than_the_batch_that_is_asked_for() -> None:
    read: list[int] = []

    def stream() -> Iterator[tuple[int, int]]:
        for i in range(1000):
            read.append(i)
            yield i, i

    assert next(without_twins(stream(), 7)) == list(range(7))
    assert len(read) == 7


@laws
@given(count=st.integers(0, 200), share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_noise_moves_exactly_the_share_of_captions_that_was_asked_for(count: int, share: float, seed: int) -> None:
    source = noise_permutation(count, share, seed)
    assert sorted(source.tolist()) == list(range(count))
    chosen = round(share * count)
    # One pair alone has nobody to swap captions with.
    assert int((source != np.arange(count)).sum()) == (0 if chosen == 1 else chosen)
    assert np.array_equal(source, noise_permutation(count, share, seed))


def test_noise_of_another_seed_moves_other_captions() -> None:
    moved = [set(np.flatnonzero(noise_permutation(1000, 0.1, seed) != np.arange(1000))) for seed in range(5)]
    assert all(len(a & b) < 40 for i, a in enumerate(moved) for b in moved[:i])


@pytest.mark.parametrize("epoch", range(4))
def test_noisy_pairs_are_spread_over_every_epoch(epoch: int) -> None:
    """The order of no epoch may be the draw that chose the noisy pairs, or they would all come first in it."""
    noisy = noise_permutation(1000, 0.5, 0) != np.arange(1000)
    order = np.concatenate(epoch_batches(np.arange(1000), 10, 0, epoch, "allow"))
    # Half of 500 rows are noisy, give or take six standard deviations of a draw without replacement.
    assert abs(int(noisy[order[:500]].sum()) - 250) <= 6 * 7.9


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_of_noise_outside_of_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        noise_permutation(10, share, 0)


def folded(caption: str) -> str:
    """Case, space and Unicode form taken away, written another way than the code does."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", caption)).lower()
    words, word = [], ""
    for letter in text:
        if letter.isspace():
            words.append(word)
            word = ""
        else:
            word += letter
    return " ".join(filter(None, [*words, word]))


captions = st.text(st.sampled_from("aAbé\u0301eﬁf i\t\n\u00a0Å"), max_size=6)


@laws
@given(one=captions, other=captions)
def test_captions_share_a_group_where_they_differ_in_case_space_or_unicode_form_alone(one: str, other: str) -> None:
    assert (caption_group(one) == caption_group(other)) == (folded(one) == folded(other))


@pytest.mark.parametrize(
    "same", [("Red Apple", "red  apple", " RED\tapple\n"), ("caf\u00e9", "cafe\u0301"), ("ﬁre", "fire")]
)
def test_known_spellings_of_one_caption_share_a_group(same: tuple[str, ...]) -> None:
    assert len({caption_group(caption) for caption in same}) == 1


def test_captions_that_differ_in_words_accents_or_signs_do_not_share_a_group() -> None:
    apart = ["red apple", "red apples", "redapple", "café", "cafe", "red, apple", ""]
    groups = {caption_group(caption) for caption in apart}
    assert len(groups) == len(apart)
    assert all(0 <= group < 2**63 for group in groups)
    # Groups may be saved: the number of a caption must never change.
    assert caption_group("red apple") == 2382225412292013033


class Numbered:
    """Pairs of which picture and caption both tell the row; `broken` rows cannot be read."""

    def __init__(self, names: list[str], broken: tuple[int, ...] = (), styles: int = 1) -> None:
        self.names, self.broken, self.styles = names, broken, styles
        self.left_out = Lost()

    def __len__(self) -> int:
        return len(self.names)

    def captions(self, row: int) -> tuple[str, ...]:
        return tuple(f"{self.names[row]}{' again' * style}" for style in range(self.styles))

    def groups(self) -> Rows:
        return np.array([caption_group(name) for name in self.names])

    def fetch(self, rows: Rows) -> tuple[Tensor, list[int]]:
        kept = [i for i, row in enumerate(rows) if row not in self.broken]
        squares = torch.tensor(rows[kept], dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        return squares, kept

    def name(self, row: int) -> str:
        return f"row {row}"

    def cause(self, row: int) -> str:
        return "broken"


NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
TOKENIZER = get_tokenizer("tiny", 16)


def take(data: MapBatches, count: int) -> list[Batch]:
    batches = data.batches()
    return [next(batches) for _ in range(count)]


def read_back(batch: Batch) -> list[tuple[int, str]]:
    """Row of each picture and text of each caption."""
    texts = [TOKENIZER.decode(ids.tolist()) for ids in batch.ids]  # type: ignore[attr-defined]
    return list(zip(batch.squares[:, 0, 0, 0].tolist(), texts, strict=True))


def test_each_picture_comes_with_its_own_caption_group_and_step() -> None:
    data = MapBatches(Numbered(NUMBERS), TOKENIZER, 5, seed=3)
    for step, batch in enumerate(take(data, 6)):
        assert batch.step == step
        for (row, text), group in zip(read_back(batch), batch.groups.tolist(), strict=True):
            assert text == NUMBERS[row]
            assert group == caption_group(text)


def test_noise_gives_a_picture_the_caption_that_the_permutation_says_and_that_captions_group() -> None:
    data = MapBatches(Numbered(NUMBERS), TOKENIZER, 4, seed=0, noise=0.5)
    assert int((data.caption_rows != np.arange(12)).sum()) == 6
    for batch in take(data, 9):
        for (row, text), group in zip(read_back(batch), batch.groups.tolist(), strict=True):
            assert text == NUMBERS[data.caption_rows[row]]
            assert group == caption_group(text)


def test_an_epoch_shows_every_pair_once_and_the_next_in_another_order() -> None:
    batches = take(MapBatches(Numbered(NUMBERS), TOKENIZER, 4, seed=0), 6)
    first, second = ([row for batch in part for row, _ in read_back(batch)] for part in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_the_same_seed_gives_the_same_batches() -> None:
    one, other, another = (
        [read_back(batch) for batch in take(MapBatches(Numbered(NUMBERS, styles=2), TOKENIZER, 4, seed=seed), 8)]
        for seed in (1, 1, 2)
    )
    assert one == other != another


def test_of_several_ways_to_caption_a_pair_each_is_drawn_about_as_often() -> None:
    data = MapBatches(Numbered(NUMBERS, styles=2), TOKENIZER, 4, seed=0)
    texts = [text for batch in take(data, 300) for _, text in read_back(batch)]
    again = sum(text.endswith("again") for text in texts)
    # 1,200 fair draws: five standard deviations are 87.
    assert abs(again - 600) <= 87
    assert {text.removesuffix(" again") for text in texts} == set(NUMBERS)


def test_pairs_that_cannot_be_read_are_left_out_and_the_rest_keep_their_captions() -> None:
    source = Numbered(NUMBERS, broken=(2, 3, 7))
    data = MapBatches(source, TOKENIZER, 4, seed=0)
    batches = take(data, 6)
    for batch in batches:
        assert len(batch.squares) == len(batch.ids) == len(batch.groups)
        assert all(text == NUMBERS[row] for row, text in read_back(batch))
    assert sorted(row for batch in batches[:3] for row, _ in read_back(batch)) == [0, 1, 4, 5, 6, 8, 9, 10, 11]
    assert sum((batch.failed for batch in batches), Counter()) == {"broken": 3}  # the first epoch counts
    assert sum(batch.missing for batch in batches) == 6  # they are missed in both


def test_a_batch_of_which_nothing_can_be_read_is_passed_over() -> None:
    data = MapBatches(Numbered(NUMBERS, broken=tuple(range(7))), TOKENIZER, 3, seed=0)
    batches = take(data, 20)
    assert [batch.step for batch in batches] == list(range(20))
    # A pair alone has no negatives either.
    assert {len(batch.squares) for batch in batches} == {2, 3}


def test_data_of_which_nothing_can_be_read_is_the_users_to_mend() -> None:
    data = MapBatches(Numbered(NUMBERS, broken=tuple(range(12))), TOKENIZER, 4, seed=0)
    with pytest.raises(UserError, match="can be read"):
        next(data.batches())


@pytest.mark.parametrize(
    ("names", "size", "twins", "number"),
    [
        (NUMBERS, 13, "avoid", "12 pairs"),
        (NUMBERS, 13, "allow", "12 pairs"),
        (["cat", "Cat", "dog"], 3, "avoid", "2 pairs"),
        ([], 2, "avoid", "0 pairs"),
    ],
)
def test_a_batch_larger_than_the_data_is_refused_with_the_number_that_fits(
    names: list[str], size: int, twins: str, number: str
) -> None:
    with pytest.raises(UserError, match=f"--batch-size {size} is larger than the data: {number}"):
        MapBatches(Numbered(names), TOKENIZER, size, 0, twins)  # type: ignore[arg-type]


def test_twins_are_allowed_where_the_user_allows_them() -> None:
    data = MapBatches(Numbered(["cat", "Cat", "dog"]), TOKENIZER, 3, 0, "allow")
    assert sorted(text for _, text in read_back(take(data, 1)[0])) == ["cat", "cat", "dog"]


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_prefetched_items_are_the_same_in_the_same_order(depth: int) -> None:
    assert list(prefetch(iter(range(20)), depth)) == list(range(20))
    assert list(prefetch(iter([]), depth)) == []


def test_items_are_made_ahead_of_time_but_no_further_than_the_depth() -> None:
    made: list[int] = []
    items = prefetch((made.append(i) or i for i in range(100)), depth=3)
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    # Three in line, one in the thread's hand, one taken.
    assert 4 <= len(made) <= 5
    items.close()  # type: ignore[attr-defined]


def test_an_exception_surfaces_after_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise UserError("the third is broken")

    seen: list[int] = []
    with pytest.raises(UserError, match="the third is broken"):
        seen.extend(i for i in prefetch(broken()))
    items = prefetch(broken())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(UserError):
        next(items)


@pytest.mark.parametrize("endless", [True, False])
def test_closing_early_ends_the_thread(endless: bool) -> None:
    before = set(threading.enumerate())
    items = prefetch(iter(int, 1) if endless else iter(range(100)))
    next(items)
    (worker,) = set(threading.enumerate()) - before
    items.close()  # type: ignore[attr-defined]
    worker.join(timeout=10)
    assert not worker.is_alive()
