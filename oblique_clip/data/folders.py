"""Pictures with a class each, for zero-shot evaluation, and the folder of `DATA/<class name>/<any>.png`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from .faults import Lost, cause_of
from .images import READ_ERRORS, decode_square

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


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
        (path, label)
        for label, folder in enumerate(folders)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not paths:
        raise UserError(f"no picture in the sub-folders of {root}; looked for {', '.join(SUFFIXES)}")
    return ClassPictures([folder.name.replace("_", " ") for folder in folders], paths)
