"""What `--data` may name: the shipped set, a table of files, or WebDataset shards; and how verbs tell kinds apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..config import DataConfig
from ..errors import UserError
from ..tokenizer import Tokenizer
from .batches import MapBatches, PairSource, TrainingData
from .faults import refuse_bad
from .order import ALONE, Share
from .splits import EmojiPairs, split_emoji
from .stream import ShardBatches
from .subset import Subset
from .tables import SUFFIXES, open_table

EMOJI = "emoji"
# Files are kept a little larger than the model's input, so that a random crop has something to crop.
CROP_MARGIN = 8 / 7

T = TypeVar("T")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A form that data may take for a verb.

    Examples:
        >>> from pathlib import Path
        >>> from oblique_clip.data.sources import Kind
        >>> lines = Kind("a .txt file", lambda data: data.endswith(".txt"), lambda data: Path(data).read_text())
        >>> lines.fits("a.txt"), lines.flags
        (True, ())
    """

    name: str
    """In messages, such as "a .csv file"."""
    fits: Callable[[str], bool]
    """Whether a text names such data."""
    open: Callable[..., T]
    """What the verb reads, from the arguments that it gives all kinds."""
    flags: tuple[str, ...] = ()
    """Of the settings that only some kinds read, those that this one does."""


def kind_of(kinds: Sequence[Kind[T]], data: str) -> Kind[T]:
    """The first kind that fits.

    Raises:
        UserError: where none does.

    Examples:
        >>> from oblique_clip.data.sources import PAIRS, kind_of
        >>> kind_of(PAIRS, "emoji").name
        "'emoji'"
    """
    for kind in kinds:
        if kind.fits(data):
            return kind
    there = "" if Path(data).exists() else f" (no such file or folder: {data})"
    known = ", ".join(kind.name for kind in kinds)
    raise UserError(f"cannot tell what --data {data!r} is{there}: expected {known}")


def open_as(kinds: Sequence[Kind[T]], data: str, *settings: Any) -> T:
    """What `data` names, as the first kind that fits opens it with `settings`.

    Raises:
        UserError: where none fits, and as the kind does.

    Examples:
        >>> from oblique_clip.config import DataConfig
        >>> from oblique_clip.data.sources import PAIRS, open_as
        >>> len(open_as(PAIRS, "emoji", DataConfig(), 32))
        9662
        >>> open_as(PAIRS, "mscoco", DataConfig(data="mscoco"), 32)
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: cannot tell what --data 'mscoco' is (no such file or folder: mscoco): expected
        'emoji', a .csv, .tsv, .parquet file
    """
    return kind_of(kinds, data).open(*settings)


def open_training_data(
    config: DataConfig, tokenizer: Tokenizer, batch_size: int, image_size: int, seed: int, share: Share = ALONE
) -> TrainingData:
    """The batches that `config.data` names.

    Args:
        batch_size: pairs of all processes together.
        share: which process of how many this is.

    Raises:
        UserError: for data that is missing or unreadable, more bad rows than `config.max_bad_fraction` allows, a batch
            that is larger than the data or not to be shared evenly, or noise asked of a stream.

    Examples:
        >>> from oblique_clip.config import DataConfig
        >>> from oblique_clip.data.sources import open_training_data
        >>> from oblique_clip.tokenizer import get_tokenizer
        >>> data = open_training_data(DataConfig(), get_tokenizer("tiny", 32), batch_size=64, image_size=32, seed=0)
        >>> batch = next(data.batches())
        >>> data.pairs, batch.squares.shape
        (9662, torch.Size([64, 3, 64, 64]))
    """
    if batch_size < 2:
        raise UserError(f"--batch-size must be at least 2, not {batch_size}: the other pairs are the negatives")
    return open_as(TRAINING, config.data, config, tokenizer, batch_size, image_size, seed, share)


def open_pairs(config: DataConfig, image_size: int) -> PairSource:
    """The shipped set's training part, or a table.

    Examples:
        >>> from oblique_clip.config import DataConfig
        >>> from oblique_clip.data.sources import open_pairs
        >>> pairs = open_pairs(DataConfig(captions="mixed"), image_size=32)
        >>> len(pairs), pairs.captions(0)
        (9662, ('1st place medal', '1st place medal, 1st, first, gold, medal, place'))
    """
    return open_as(PAIRS, config.data, config, image_size)


def is_shards(data: str) -> bool:
    """Whether `--data` names tar files, not one of the tables.

    Examples:
        >>> from oblique_clip.data.sources import is_shards
        >>> is_shards("shards/x-{000..012}.tar"), is_shards("pairs.csv")
        (True, False)
    """
    return ".tar" in data and not is_table(data)


def is_table(data: str) -> bool:
    """Whether `--data` names a file of rows, by its suffix.

    Examples:
        >>> from oblique_clip.data.sources import is_table
        >>> is_table("pairs.TSV"), is_table("pairs.json")
        (True, False)
    """
    return Path(data).suffix.lower() in SUFFIXES


def is_emoji(data: str) -> bool:
    """Whether `--data` names the shipped set."""
    return data == EMOJI


def _open_emoji(config: DataConfig, image_size: int) -> PairSource:
    splits = split_emoji(config)
    return EmojiPairs(splits.train, config.captions, frozenset(r.concept for r in splits.concepts.records))


def _open_table(config: DataConfig, image_size: int) -> PairSource:
    return open_table(Path(config.data), config, round(image_size * CROP_MARGIN))


def _open_shards(
    config: DataConfig, tokenizer: Tokenizer, batch_size: int, image_size: int, seed: int, share: Share
) -> TrainingData:
    if config.caption_noise:
        raise UserError("--caption-noise needs data that can be read in any order; shards are a stream")
    if config.train_share < 1:
        raise UserError("--train-share needs data that can be read in any order; name fewer shards")
    side = round(image_size * CROP_MARGIN)
    return ShardBatches(config.data, tokenizer, batch_size, seed, side, config.twins, config.workers, share)


def _in_batches(kind: Kind[PairSource]) -> Kind[TrainingData]:
    """Pairs that can be read in any order, as training reads them."""

    def open(
        config: DataConfig, tokenizer: Tokenizer, batch_size: int, image_size: int, seed: int, share: Share
    ) -> TrainingData:
        source = kind.open(config, image_size)
        if config.train_share < 1:
            source = Subset(source, config.train_share, seed)
        refuse_bad(source.left_out, len(source), config.max_bad_fraction, config.data)
        return MapBatches(source, tokenizer, batch_size, seed, config.twins, config.caption_noise, share)

    return Kind(kind.name, kind.fits, open)


EMOJI_NAME, SHARDS_NAME, TABLE_NAME = f"{EMOJI!r}", ".tar shards", f"a {', '.join(SUFFIXES)} file"
PAIRS: tuple[Kind[PairSource], ...] = (
    Kind(EMOJI_NAME, is_emoji, _open_emoji),
    Kind(TABLE_NAME, is_table, _open_table),
)
TRAINING: tuple[Kind[TrainingData], ...] = (
    *(_in_batches(kind) for kind in PAIRS),
    Kind(SHARDS_NAME, is_shards, _open_shards),
)
