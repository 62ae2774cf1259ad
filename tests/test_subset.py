"""Training on some families, or on a share of the pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from oblique_clip import UserError
from oblique_clip.config import DataConfig
from oblique_clip.data.sources import open_pairs, open_training_data
from oblique_clip.data.splits import split_emoji
from oblique_clip.data.subset import Subset
from oblique_clip.tokenizer import get_tokenizer


def test_training_families_are_all_that_is_trained_on_and_judging_stays() -> None:
    plain, own = split_emoji(DataConfig()), split_emoji(DataConfig(train_families=("openclipart",)))
    assert {record.family for record in own.train.records} == {"openclipart"}
    assert len(own.train) == sum(record.family == "openclipart" for record in plain.train.records)
    for part in ("val", "test", "concepts"):
        assert getattr(own, part).records == getattr(plain, part).records


@pytest.mark.parametrize("family, said", [("emoji-fluent", "is kept for"), ("emoji-openmoji", "has no family")])
def test_families_that_cannot_be_trained_on_are_refused(family: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        split_emoji(DataConfig(train_families=(family,)))


def test_a_share_has_the_pairs_of_its_source_and_a_smaller_one_is_within() -> None:
    source = open_pairs(DataConfig(), 32)
    parts = {share: Subset(source, share, seed=3) for share in (0.1, 0.5)}
    keys = {share: [part.image_key(row) for row in range(len(part))] for share, part in parts.items()}
    assert len(keys[0.1]) == 966 and len(set(keys[0.5])) == 4831
    assert set(keys[0.1]) < set(keys[0.5])
    rows = np.array([5, 17, 900])
    pictures, places = parts[0.1].fetch(rows)
    assert places == [0, 1, 2]
    for picture, row in zip(pictures, rows, strict=True):
        there = int(keys[0.1][row])
        assert torch.equal(picture, source.fetch(np.array([there]))[0][0])
        assert parts[0.1].captions(row) == source.captions(there)
        assert parts[0.1].groups()[row] == source.groups()[there]


def test_another_seed_draws_another_share() -> None:
    source = open_pairs(DataConfig(), 32)
    one, other = ({part.name(row) for row in range(len(part))} for part in (Subset(source, 0.1, s) for s in (0, 1)))
    assert len(one & other) < 0.5 * len(one)


def test_an_epoch_of_a_share_has_each_of_its_pairs_at_most_once() -> None:
    config = replace(DataConfig(), train_share=0.1, twins="allow")
    data = open_training_data(config, get_tokenizer("tiny", 32), batch_size=64, image_size=32, seed=0)
    assert data.pairs == 966
    seen: list[str] = []
    for batch in data.batches():
        if batch.next.epoch:
            break
        seen += batch.keys
    part = Subset(open_pairs(DataConfig(), 32), 0.1, seed=0)
    assert Counter(seen) <= Counter(part.name(row) for row in range(966))
    assert len(seen) >= 966 - 64


def test_shards_have_no_share(tmp_path: object) -> None:
    with pytest.raises(UserError, match="--train-share needs data that can be read in any order"):
        open_training_data(DataConfig(data="x.tar", train_share=0.5), get_tokenizer("tiny", 32), 64, 32, 0)
