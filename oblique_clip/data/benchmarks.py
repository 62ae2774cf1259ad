"""Classification sets as others lay them out: CLIP_benchmark's WebDataset folder, and torchvision's data sets by name.

CLIP_benchmark's folder (its `webdataset_builder`): `classnames.txt` with a name a line,
`zeroshot_classification_templates.txt` with a prompt a line, `{c}` in it for the name, and `test/*.tar` with samples
`key.jpg` (png, webp) and `key.cls`, the line of the class from 0. With `retrieval` in `dataset_type.txt` samples hold
`key.txt` instead, a caption a line.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UserError
from .faults import BadSample, Lost, cause_of
from .folders import ClassPictures
from .images import READ_ERRORS
from .shards import name_of, picture_of, read_records

PEER = "clip_benchmark"
"""CLIP_benchmark as engines, reports and lists of prompts call it."""
CLASS_NAMES, TYPE = "classnames.txt", "dataset_type.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
SPLIT = "test"

TORCHVISION = "torchvision:"
# By what selects the pictures that a data set is judged on: its test split, or what stands in for it.
_SELECTIONS: tuple[tuple[dict[str, Any], tuple[str, ...]], ...] = (
    ({"train": False}, ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS")),
    ({"train": False, "split": "balanced"}, ("EMNIST",)),
    ({"split": "test"}, ("Country211", "DTD", "FER2013", "FGVCAircraft", "Flowers102", "Food101", "GTSRB")),
    ({"split": "test"}, ("OxfordIIITPet", "PCAM", "RenderedSST2", "STL10", "StanfordCars", "SVHN")),
    # ImageNet's test labels are not public; the others have no test split.
    ({"split": "val"}, ("ImageNet", "Imagenette")),
    ({"split": "val", "small": True}, ("Places365",)),
    # All of their pictures.
    ({}, ("Caltech101", "Caltech256", "EuroSAT", "SUN397")),
)
TEST_SPLITS = {name: options for options, names in _SELECTIONS for name in names}


def is_webdataset(root: Path) -> bool:
    """Whether a folder has CLIP_benchmark's layout."""
    return (root / CLASS_NAMES).is_file() or (root / TYPE).is_file()


def webdataset_type(root: Path) -> str:
    """What `dataset_type.txt` says; `classification` where there is none."""
    return (root / TYPE).read_text(encoding="utf-8").strip().lower() if (root / TYPE).is_file() else "classification"


def webdataset_shards(root: Path) -> list[str]:
    """The shards of the test split by number.

    Raises:
        UserError: where there is none, or `nshards.txt` speaks of another number.
    """
    shards = sorted((root / SPLIT).glob("*.tar"), key=lambda path: (len(path.name), path.name))
    if not shards:
        raise UserError(f"{root} has {CLASS_NAMES if (root / CLASS_NAMES).is_file() else TYPE} but no {SPLIT}/*.tar")
    counted = root / SPLIT / "nshards.txt"
    if counted.is_file() and counted.read_text().strip() != str(len(shards)):
        raise UserError(
            f"{counted} says {counted.read_text().strip()}, but {root / SPLIT} has {len(shards)} .tar files"
        )
    return [str(path) for path in shards]


def open_webdataset(root: Path) -> ClassPictures:
    """Labelled pictures of CLIP_benchmark's layout, with its templates where it has them.

    Raises:
        UserError: for missing shards or class names, or, while it is read, a class beyond them.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import webdataset
        >>> from PIL import Image
        >>> from oblique_clip.data.benchmarks import open_webdataset
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "classnames.txt").write_text("dog")
        >>> _ = (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}")
        >>> (folder / "test").mkdir()
        >>> with webdataset.TarWriter(str(folder / "test" / "0.tar")) as shard:
        ...     _ = shard.write({"__key__": "0", "png": Image.new("RGB", (64, 64)), "cls": 0})
        >>> pictures = open_webdataset(folder)
        >>> [batch.shape for batch in pictures.squares(32)], pictures.labels, pictures.names, pictures.templates
        ([torch.Size([1, 3, 32, 32])], [0], ['dog'], ('a photo of a {c}',))
    """
    if webdataset_type(root) != "classification":
        raise UserError(f"{root / TYPE} says {webdataset_type(root)!r}; expected classification or retrieval")
    names = read_names(root / CLASS_NAMES)
    templates = tuple(read_lines(root / TEMPLATES)) if (root / TEMPLATES).is_file() else None
    skipped = Lost()
    samples = _labelled_records(webdataset_shards(root), names, skipped)
    return ClassPictures(names, samples, skipped=skipped, templates=templates)


def _labelled_records(shards: list[str], names: list[str], skipped: Lost) -> Iterator[tuple[bytes, int]]:
    for record in read_records(shards, skipped):
        try:
            label, picture = _label_of(record), picture_of(record)
        except BadSample as error:
            skipped.add(error.cause, name_of(record))
            continue
        if not 0 <= label < len(names):
            raise UserError(f"sample {record['__key__']} has class {label}, the class names are 0 to {len(names) - 1}")
        yield picture, label


def _label_of(record: dict[str, Any]) -> int:
    try:
        return int(record["cls"])
    except (KeyError, ValueError) as error:
        raise BadSample("no class", error) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that hold more than spaces.

    Raises:
        UserError: where there is no such file, or no such line.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip.data.benchmarks import read_lines
        >>> path = Path(tempfile.mkdtemp()) / "templates.txt"
        >>> with path.open("w") as templates:
        ...     print("a photo of a {}", "", "a drawing of a {}", sep=chr(10), file=templates)
        >>> read_lines(path)
        ['a photo of a {}', 'a drawing of a {}']
    """
    lines = [line for line in _all_lines(path) if line]
    if not lines:
        raise UserError(f"{path} is empty; expected one entry a line")
    return lines


def read_names(path: Path) -> list[str]:
    """Class names by number, a line each.

    Raises:
        UserError: as `read_lines`, or for an empty line, which would take a number.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip.data.benchmarks import read_names
        >>> path = Path(tempfile.mkdtemp()) / "classnames.txt"
        >>> with path.open("w") as names:
        ...     print("red apple", "dog", sep=chr(10), file=names)
        >>> read_names(path)
        ['red apple', 'dog']
    """
    names, lines = read_lines(path), _all_lines(path)
    if len(names) != len(lines):
        raise UserError(f"line {lines.index('') + 1} of {path} is empty; expected a class name on every line")
    return names


def _all_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").strip().splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: {error}") from error


def is_torchvision(data: str) -> bool:
    """Whether a text names a data set of torchvision, with or without the prefix."""
    return data.startswith(TORCHVISION) or data in TEST_SPLITS


def open_torchvision(data: str, root: Path, names: list[str] | None = None, download: bool = False) -> ClassPictures:
    """The test pictures (see `TEST_SPLITS`) of a data set of torchvision.

    Args:
        root: what torchvision calls root: where it looks for the files, and puts them where it may download.
        names: class names for a data set that has none of its own.

    Raises:
        UserError: for a name that is not known, files that are missing or cannot be fetched, or missing class names.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip.data.benchmarks import open_torchvision
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("Forest", "River"):  # as torchvision lays EuroSAT out
        ...     (root / "eurosat" / "2750" / name).mkdir(parents=True)
        ...     Image.new("RGB", (64, 64)).save(root / "eurosat" / "2750" / name / "0.jpg")
        >>> pictures = open_torchvision("EuroSAT", root)
        >>> [batch.shape for batch in pictures.squares(32)], pictures.names, pictures.labels
        ([torch.Size([2, 3, 32, 32])], ['Forest', 'River'], [0, 1])
    """
    import torchvision

    kind = data.removeprefix(TORCHVISION)
    if kind not in TEST_SPLITS:
        raise UserError(f"{data}: no such classification set; there is {', '.join(sorted(TEST_SPLITS, key=str.lower))}")
    build = getattr(torchvision.datasets, kind)
    options: dict[str, Any] = dict(TEST_SPLITS[kind])
    if download:
        if not _is_fetched(build):
            raise UserError(f"{kind} cannot be downloaded by torchvision: put its files under {root}")
        options["download"] = True
    try:
        dataset = build(root, **options)
    except ImportError as error:
        raise UserError(f"torchvision's {kind} needs {error.name}: pip install {error.name}") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(_missing(build, root, download, error)) from error
    classes = _class_names(dataset) or names
    if classes is None:
        raise UserError(f"torchvision's {kind} has no class names: give --classes FILE with one a line, in its order")
    skipped = Lost()
    return ClassPictures(classes, _labelled_items(dataset, len(classes), kind, skipped), skipped=skipped)


def _is_fetched(build: Any) -> bool:
    """Whether a data set of torchvision can be downloaded."""
    # EMNIST and its like take `download` among keywords that are not spelt out; ImageNet's only says that it cannot be.
    parameters = inspect.signature(build).parameters
    return build.__name__ != "ImageNet" and ("download" in parameters or "kwargs" in parameters)


def _missing(build: Any, root: Path, download: bool, error: Exception) -> str:
    kind, why = build.__name__, next(iter(str(error).strip().splitlines()), type(error).__name__)
    if download:
        return f"{kind} cannot be downloaded to {root}: {why}"
    hint = ", or give --download" if _is_fetched(build) else ""
    return f"the files of {kind} are not complete under {root} ({why}): name their folder with --data-root{hint}"


def _class_names(dataset: Any) -> list[str] | None:
    """Names as torchvision has them; the first of several, underscores as spaces."""
    found = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    if not found:
        return None
    return [(name if isinstance(name, str) else name[0]).replace("_", " ") for name in found]


def _labelled_items(dataset: Any, classes: int, kind: str, skipped: Lost) -> Iterator[tuple[Image.Image, int]]:
    for i in range(len(dataset)):
        try:
            picture, label = dataset[i]
        except READ_ERRORS as error:
            skipped.add(cause_of(error), f"picture {i} of {kind}")
            continue
        if not 0 <= int(label) < classes:
            raise UserError(f"picture {i} of {kind} has class {int(label)}, the class names are 0 to {classes - 1}")
        yield picture, int(label)
