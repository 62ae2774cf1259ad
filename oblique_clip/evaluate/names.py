"""Class names: named lists, a file of one's own, and ImageNet's by the folders of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.benchmarks import PEER, read_names
from ..data.folders import ClassPictures
from ..errors import UserError
from .templates import from_clip_benchmark

IMAGENET = "imagenet"
CLASSES = 1000
SHOWN = 5
"""Class names that a message shows of more."""


def imagenet_names(folders: Sequence[str]) -> list[str] | None:
    """open_clip's names of the ImageNet classes that folders name; None where they do not.

    Args:
        folders: WordNet codes, of any of the classes (ImageNet, -Sketch, -A, -R), or the numbers of all from 0 (-V2).

    Examples:
        >>> from oblique_clip.evaluate.names import imagenet_names
        >>> imagenet_names(["n01443537", "n01440764"])
        ['goldfish', 'tench']
        >>> imagenet_names(["0", "1"]) is None  # digits of some other data, it may be
        True
    """
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    numbers = {str(i): i for i in range(CLASSES)}
    codes = {code: i for i, code in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    for known, complete in ((codes, False), (numbers, True)):
        if folders and all(name in known for name in folders) and (len(folders) == CLASSES or not complete):
            return [IMAGENET_CLASSNAMES[known[name]] for name in folders]
    return None


def read_class_names(word: str) -> list[str]:
    """What `--classes` says: `imagenet` (open_clip's names), `clip_benchmark:NAME` (its English ones), or a file.

    Raises:
        UserError: for a list or a file that does not exist, and as `read_names`.

    Examples:
        >>> from oblique_clip.evaluate.names import read_class_names
        >>> names = read_class_names("imagenet")
        >>> len(names), names[:2]
        (1000, ['tench', 'goldfish'])
    """
    if word == IMAGENET:
        from open_clip import IMAGENET_CLASSNAMES

        return list(IMAGENET_CLASSNAMES)
    if word.startswith(f"{PEER}:"):
        return from_clip_benchmark("en_classnames.json", word.removeprefix(f"{PEER}:"), "class names")
    if not Path(word).is_file():
        raise UserError(f"--classes {word!r} is no file, and neither {IMAGENET} nor {PEER}:NAME")
    return read_names(Path(word))


def rename(pictures: ClassPictures, word: str) -> None:
    """Give the classes of `pictures` the names that `--classes` says.

    Raises:
        UserError: for another number of names, the classes' own names in another order, ImageNet's for folders that do
            not say which class they are, and as `read_class_names`.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip.data.folders import ClassPictures
        >>> from oblique_clip.evaluate.names import rename
        >>> path = Path(tempfile.mkdtemp()) / "names.txt"
        >>> with path.open("w") as names:
        ...     print("a kitten", "a hound", sep=chr(10), file=names)
        >>> pictures = ClassPictures(["cat", "dog"], [])
        >>> rename(pictures, str(path))
        >>> pictures.names
        ['a kitten', 'a hound']
    """
    own = pictures.names
    if word == IMAGENET and pictures.folders:
        names = imagenet_names(pictures.folders)
        if names is None:
            raise UserError(
                f"--classes {IMAGENET} needs folders named by WordNet codes (n01440764, ...), or all {CLASSES} by "
                f"number from 0, not {_listed(pictures.folders)}"
            )
        pictures.names = names
        return
    names = read_class_names(word)
    wanted = f"give one a line, in this order: {_listed(own)}"
    if len(names) != len(own):
        raise UserError(f"--classes {word} has {len(names)} names, the data {len(own)} classes: {wanted}")
    if _letters(names) != _letters(own) and sorted(_letters(names)) == sorted(_letters(own)):
        raise UserError(f"--classes {word} has the names of the data in another order: {wanted}")
    pictures.names = names


def _letters(names: Sequence[str]) -> list[str]:
    return [name.replace("_", " ").lower() for name in names]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= SHOWN + 1 else (*names[:SHOWN], "...", names[-1]))
