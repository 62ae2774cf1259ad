"""What `evaluate` judges a model on: each kind of data, how it is opened, and the flags that it reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import DataConfig
from ..data.benchmarks import (
    is_torchvision,
    is_webdataset,
    open_torchvision,
    open_webdataset,
    webdataset_shards,
    webdataset_type,
)
from ..data.captioned import CaptionedPictures, of_json, of_pairs, of_shards
from ..data.folders import ClassPictures, open_class_folder
from ..data.shards import expand_shards
from ..data.sources import EMOJI_NAME, SHARDS_NAME, TABLE_NAME, Kind, is_emoji, is_shards, is_table, kind_of, open_as
from ..data.tables import open_table
from ..errors import UserError
from .names import read_class_names, rename

if TYPE_CHECKING:
    from .run import EvaluateConfig

Pictures = ClassPictures | CaptionedPictures
TORCHVISION_ROOT = Path("data")


def open_pictures(config: EvaluateConfig, side: int) -> Pictures:
    """What `config.data` names, its classes named as `config.classes` says where that is given.

    Raises:
        UserError: for data of no known kind, as its opener does, and see `rename`.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip.evaluate.pictures import open_pictures
        >>> from oblique_clip.evaluate.run import EvaluateConfig
        >>> folder = Path(tempfile.mkdtemp())
        >>> for code in ("n01440764", "n01443537"):
        ...     (folder / code).mkdir()
        ...     Image.new("RGB", (64, 64)).save(folder / code / "0.png")
        >>> open_pictures(EvaluateConfig(Path("tiny-oblique"), str(folder), classes="imagenet"), side=32).names
        ['tench', 'goldfish']
    """
    pictures = open_as(KINDS, config.data, config, side)
    if config.classes is not None and isinstance(pictures, ClassPictures):
        rename(pictures, config.classes)
    return pictures


def check_flags(config: EvaluateConfig) -> None:
    """Refuse settings that the data asked for does not read.

    Raises:
        UserError: for the first one, and for data of no known kind.
    """
    sources = [config.data] if config.calibrate_on is None else [config.data, config.calibrate_on]
    kinds = [kind_of(KINDS, source) for source in sources]
    read = {flag for kind in kinds for flag in kind.flags}
    for field in dataclasses.fields(config):
        if field.name in SOME and field.name not in read and getattr(config, field.name) != field.default:
            raise UserError(f"--{field.name.replace('_', '-')} does nothing for {kinds[0].name}: leave it out")
    if config.calibrate_on is None:
        return
    if "calibrate_on" not in kinds[0].flags:
        raise UserError(f"--calibrate-on does nothing for {kinds[0].name}: leave it out")
    if "calibrate_on" not in kinds[1].flags:
        raise UserError(f"--calibrate-on needs pictures by class, not {kinds[1].name}")
    if config.calibrate_on == config.data:
        raise UserError(f"--calibrate-on {config.data} is what the model is judged on: name other pictures")


def _open_emoji(config: EvaluateConfig, side: int) -> Pictures:
    raise UserError("the shipped set is judged part by part: see evaluate_emoji")


def _open_torchvision(config: EvaluateConfig, side: int) -> Pictures:
    names = None if config.classes is None else read_class_names(config.classes)
    return open_torchvision(config.data, config.data_root or TORCHVISION_ROOT, names, config.download)


def _open_table(config: EvaluateConfig, side: int) -> Pictures:
    table = DataConfig(data=config.data, image_column=config.image_column, caption_column=config.caption_column)
    # Nothing is cropped here: files are read at the model's own size.
    return of_pairs(open_table(Path(config.data), table, side))


def _open_captions(config: EvaluateConfig, side: int) -> Pictures:
    return of_json(Path(config.data), config.data_root, side)


def _open_caption_shards(config: EvaluateConfig, side: int) -> Pictures:
    return of_shards(webdataset_shards(Path(config.data)), side, by_line=True)


def _has_captions(data: str) -> bool:
    return is_webdataset(Path(data)) and webdataset_type(Path(data)) == "retrieval"


def _is_json(data: str) -> bool:
    return Path(data).suffix.lower() == ".json" and Path(data).is_file()


PROMPTS = ("templates", "descriptions")
CLASSES = ("classes", "calibrate_on", *PROMPTS)
# The first that fits: a file or folder of the name of a torchvision set is meant before that.
KINDS: tuple[Kind[Pictures], ...] = (
    Kind(EMOJI_NAME, is_emoji, _open_emoji, PROMPTS),
    Kind("retrieval in CLIP_benchmark's layout", _has_captions, _open_caption_shards),
    Kind(
        "CLIP_benchmark's layout",
        lambda data: is_webdataset(Path(data)),
        lambda config, side: open_webdataset(Path(config.data)),
        CLASSES,
    ),
    Kind(
        "a folder a class",
        lambda data: Path(data).is_dir(),
        lambda config, side: open_class_folder(Path(config.data)),
        CLASSES,
    ),
    Kind("a data set of torchvision", is_torchvision, _open_torchvision, (*CLASSES, "data_root", "download")),
    Kind(SHARDS_NAME, is_shards, lambda config, side: of_shards(expand_shards(config.data), side)),
    Kind(TABLE_NAME, is_table, _open_table, ("image_column", "caption_column")),
    Kind("a caption .json", _is_json, _open_captions, ("data_root",)),
)
SOME = {flag for kind in KINDS for flag in kind.flags}
"""Settings that only some kinds read."""
