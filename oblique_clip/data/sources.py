"""What `--data` may name: the shipped set, a table of files, or WebDataset shards."""

from __future__ import annotations

from pathlib import Path

from ..config import DataConfig
from ..errors import UserError
from ..tokenizer import Tokenizer
from .batches import MapBatches, PairSource, TrainingData
from .faults import refuse_bad
from .order import ALONE, Share
from .splits import EmojiPairs, split_emoji
from .stream import ShardBatches
from .tables import SUFFIXES, open_table

# Files are kept a little larger than the model's input, so that a random crop has something to crop.
CROP_MARGIN = 8 / 7


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
    if is_shards(config.data):
        if config.caption_noise:
            raise UserError("--caption-noise needs data that can be read in any order; shards are a stream")
        side = round(image_size * CROP_MARGIN)
        return ShardBatches(config.data, tokenizer, batch_size, seed, side, config.twins, config.workers, share)
    source = open_pairs(config, image_size)
    refuse_bad(source.left_out, len(source), config.max_bad_fraction, config.data)
    return MapBatches(source, tokenizer, batch_size, seed, config.twins, config.caption_noise, share)


def open_pairs(config: DataConfig, image_size: int) -> PairSource:
    """The shipped set's training part, or a table.

    Examples:
        >>> from oblique_clip.config import DataConfig
        >>> from oblique_clip.data.sources import open_pairs
        >>> pairs = open_pairs(DataConfig(captions="mixed"), image_size=32)
        >>> len(pairs), pairs.captions(0)
        (9662, ('1st place medal', '1st place medal, 1st, first, gold, medal, place'))
    """
    if config.data == "emoji":
        splits = split_emoji(config)
        return EmojiPairs(splits.train, config.captions, frozenset(r.concept for r in splits.concepts.records))
    if Path(config.data).suffix.lower() in SUFFIXES:
        return open_table(Path(config.data), config, round(image_size * CROP_MARGIN))
    raise UserError(
        f"cannot tell what --data {config.data!r} is: expected 'emoji', a .csv, .tsv or .parquet file, or .tar shards"
    )


def is_shards(data: str) -> bool:
    """Whether `--data` names tar files, not one of the tables.

    Examples:
        >>> from oblique_clip.data.sources import is_shards
        >>> is_shards("shards/x-{000..012}.tar"), is_shards("pairs.csv")
        (True, False)
    """
    return ".tar" in data and Path(data).suffix.lower() not in SUFFIXES
