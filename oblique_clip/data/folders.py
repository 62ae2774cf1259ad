"""Pictures with a class each, for zero-shot evaluation, and the folder of `DATA/<class name>/<any>.png`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from .faults import Lost, cause_of
from .images import READ_ERRORS, decode_square, formats


@cache
def picture_suffixes() -> frozenset[str]:
    """Endings of the files that PIL reads, in small letters.

    Examples:
        >>> from oblique_clip.data.folders import picture_suffixes
        >>> {".png", ".jpg", ".tiff", ".webp"} <= picture_suffixes()
        True
        >>> ".txt" in picture_suffixes(), ".pdf" in picture_suffixes()  # PIL writes some that it cannot read
        (False, False)
    """
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in formats())


def is_picture(path: Path) -> bool:
    """Whether a path ends as a file that PIL reads.

    Examples:
        >>> from pathlib import Path
        >>> from oblique_clip.data.folders import is_picture
        >>> is_picture(Path("a.JPEG")), is_picture(Path("notes.txt"))
        (True, False)
    """
    return path.suffix.lower() in picture_suffixes()


@dataclass
class ClassPictures:
    """Pictures by class; `labels` holds those read so far, unreadable ones are counted in `skipped`.

    Examples:
        >>> from PIL import Image
        >>> from oblique_clip.data.folders import ClassPictures
        >>> samples = [(Image.new("RGB", (64, 64), "red"), 1), (b"no picture", 0)]
        >>> pictures = ClassPictures(["dog", "red apple"], samples)
        >>> [batch.shape for batch in pictures.squares(32)], pictures.labels, pictures.skipped
        ([torch.Size([1, 3, 32, 32])], [1], Lost({'unreadable image': 1}))
    """

    names: list[str]
    samples: Iterable[tuple[Path | bytes | Image.Image, int]]
    """Pictures and their places in `names`, read once."""
    labels: list[int] = field(default_factory=list)
    skipped: Lost = field(default_factory=Lost)
    templates: tuple[str, ...] | None = None
    """Prompts that came with the data."""
    folders: tuple[str, ...] = ()
    """Names of the folders that the classes were read from, as they are; none for other data."""

    def merged(self) -> ClassPictures:
        """The same pictures with classes of one name made one class: no text can tell those apart.

        `squares` may be called of the one or the other.
        """
        place = {name: i for i, name in enumerate(dict.fromkeys(self.names))}
        samples = ((picture, place[self.names[label]]) for picture, label in self.samples)
        return replace(self, names=list(place), samples=samples, labels=[])

    def squares(self, side: int, batch_size: int = 256) -> Iterator[Tensor]:
        """Batches of uint8 (B, 3, side, side), in the order of `labels`."""
        batch: list[Tensor] = []
        for number, (picture, label) in enumerate(self.samples):
            try:
                batch.append(decode_square(picture, side))
            except READ_ERRORS as error:
                self.skipped.add(cause_of(error), str(picture) if isinstance(picture, Path) else f"picture {number}")
                continue
            self.labels.append(label)
            if len(batch) == batch_size:
                yield torch.stack(batch)
                batch = []
        if batch:
            yield torch.stack(batch)


def open_class_folder(root: Path) -> ClassPictures:
    """Classes are the sub-folders by name; an underscore in a name reads as a space.

    Raises:
        UserError: for a folder that is missing, has no sub-folders, or no picture in them.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip.data.folders import open_class_folder
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("red_apple", "dog"):
        ...     (folder / name).mkdir()
        ...     Image.new("RGB", (64, 64)).save(folder / name / "0.png")
        >>> pictures = open_class_folder(folder)
        >>> [batch.shape for batch in pictures.squares(32)], pictures.names, pictures.labels
        ([torch.Size([2, 3, 32, 32])], ['dog', 'red apple'], [0, 1])
    """
    if not root.is_dir():
        raise UserError(f"no such folder: {root}")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise UserError(f"{root} has no sub-folders; expected one folder a class")
    paths = [
        (path, label) for label, folder in enumerate(folders) for path in sorted(folder.rglob("*")) if is_picture(path)
    ]
    if not paths:
        raise UserError(f"no picture in the sub-folders of {root}; looked for files such as .jpg, .png and .webp")
    names = tuple(folder.name for folder in folders)
    return ClassPictures([name.replace("_", " ") for name in names], paths, folders=names)
