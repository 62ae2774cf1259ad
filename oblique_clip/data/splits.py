"""The shipped set, cut into what is trained on and what a model is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from ..config import DataConfig
from ..errors import UserError
from .batches import caption_group
from .emoji import EmojiSet, load_emoji
from .faults import Lost
from .order import Rows


@dataclass(frozen=True)
class EmojiSplits:
    """The shipped set cut as a `DataConfig` says.

    No picture is in two parts; a concept that is held out is neither trained on nor used to choose a checkpoint.

    Examples:
        >>> from oblique_clip.config import DataConfig
        >>> from oblique_clip.data.splits import split_emoji
        >>> splits = split_emoji(DataConfig())
        >>> trained = {record.concept for record in splits.train.records}
        >>> any(record.concept in trained for record in splits.concepts.records)
        False
    """

    train: EmojiSet
    val: EmojiSet
    """Pictures of the validation families, but for those of held-out concepts."""
    test: EmojiSet
    """Every picture of the test families, held-out concepts among them."""
    concepts: EmojiSet
    """Pictures of the training families whose concepts (`held_out_concepts`) were kept out of training."""


def split_emoji(config: DataConfig) -> EmojiSplits:
    """Cut the shipped set.

    Raises:
        UserError: for a family or a split of concepts that does not exist, a family named for both validation and
            test, or where nothing is left to train on.

    Examples:
        >>> from oblique_clip.config import DataConfig
        >>> from oblique_clip.data.splits import split_emoji
        >>> splits = split_emoji(DataConfig())
        >>> len(splits.train), len(splits.val), len(splits.test), len(splits.concepts)
        (9662, 608, 4793, 1024)
        >>> split_emoji(DataConfig(test_families=("emoji-openmoji",)))
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: the shipped set has no family 'emoji-openmoji'; there is emoji-emojione,
        emoji-fluent, emoji-fxemoji, emoji-noto, emoji-streamline, emoji-twemoji, openclipart
    """
    whole = load_emoji()
    families = sorted({record.family for record in whole.records})
    for family in (*config.test_families, *config.val_families, *config.train_families):
        if family not in families:
            raise UserError(f"the shipped set has no family {family!r}; there is {', '.join(families)}")
    for family in config.test_families:
        if family in config.val_families:
            raise UserError(f"{family} cannot be both a test and a validation family: name another --val-families")
    if kept := sorted({*config.test_families, *config.val_families} & set(config.train_families)):
        raise UserError(f"--train-families {kept[0]} is kept for validation or test")
    for name in config.held_out_concepts:
        if name not in ("val", "test"):
            raise UserError(f"--held-out-concepts takes val and test, not {name!r}")
    held_families = {*config.test_families, *config.val_families}
    own = np.array([record.family not in held_families for record in whole.records])
    val = np.array([record.family in config.val_families for record in whole.records])
    held = np.array([record.split in config.held_out_concepts for record in whole.records])
    trained = np.array([record.family in (config.train_families or families) for record in whole.records])
    train = whole.select(own & trained & ~held)
    if not len(train):
        raise UserError("every family is held out: nothing is left to train on")
    return EmojiSplits(
        train, whole.select(val & ~held), whole.of_families(config.test_families), whole.select(own & held)
    )


class EmojiPairs:
    """The shipped set as a `PairSource`.

    Args:
        hidden: concepts that must not occur as a keyword either.

    Examples:
        >>> from oblique_clip.data.emoji import load_emoji
        >>> from oblique_clip.data.splits import EmojiPairs
        >>> pairs = EmojiPairs(load_emoji(), "keywords")
        >>> pairs.captions(0)
        ('1st place medal, 1st, first, gold, medal, place',)
    """

    def __init__(
        self,
        emoji: EmojiSet,
        captions: Literal["name", "keywords", "mixed"],
        hidden: frozenset[str] = frozenset(),
    ) -> None:
        self._emoji, self._style, self._hidden = emoji, captions, hidden
        self.left_out = self.skipped = Lost()

    def __len__(self) -> int:
        return len(self._emoji)

    def captions(self, row: int) -> tuple[str, ...]:
        record = self._emoji.records[row]
        described = record.described(self._hidden)
        styles = {"name": (record.caption,), "keywords": (described,), "mixed": (record.caption, described)}
        return styles[self._style]

    def groups(self) -> Rows:
        return np.array([caption_group(record.caption) for record in self._emoji.records])

    def image_key(self, row: int) -> str:
        return str(row)

    def name(self, row: int) -> str:
        record = self._emoji.records[row]
        return f"{record.source}: {record.caption}"

    def cause(self, row: int) -> str:
        raise AssertionError("every shipped picture can be read")

    def fetch(self, rows: Rows) -> tuple[Tensor, list[int]]:
        return self._emoji.images(rows), list(range(len(rows)))
