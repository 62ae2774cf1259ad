"""Zero-shot accuracy on a folder of pictures a class, as ImageNet and its variants come.

python -m experiments.zero_shot.folders imagenet/val --models open_clip:ViT-B-32/laion2b_s34b_b79k runs/mine

A thousand folders take open_clip's 1,000 names of ImageNet, in the order of the folders' codes (n01440764 is the first);
any other number of folders takes `--classes`, a name a line in that order, or else the folders' own names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from oblique_clip.cli import run_script
from oblique_clip.evaluate.run import EvaluateConfig

from .table import Column, compare

IMAGENET = 1000
COLUMNS = (
    Column("top-1 %", ("classification", "top1")),
    Column("top-5 %", ("classification", "top5")),
    Column("mean per class %", ("classification", "mean_per_class")),
    Column("calibration error %", ("classification", "ece")),
    Column("chance %", ("classification", "chance")),
)


@dataclass(frozen=True)
class Folders:
    """Models on one folder of pictures a class."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder with a folder a class."""
    models: tuple[str, ...] = ("tiny-sphere", "tiny-oblique")
    """Whatever `oblique-clip evaluate` takes."""
    classes: Path | None = None
    """Class names, a line each, in the order of the folders."""
    templates: tuple[str, ...] = ("openai",)
    """As `oblique-clip evaluate --templates`."""
    out: Path = Path("runs/zero_shot/folders")
    """A result.json for each model, and results.json of all."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


def main(command: Folders) -> None:
    """Print the table and write it to `out`."""
    classes = command.classes
    if classes is None and command.data.is_dir() and sum(path.is_dir() for path in command.data.iterdir()) == IMAGENET:
        classes = write_imagenet_names(command.out)
    cases = {
        model: EvaluateConfig(
            model=Path(model), data=str(command.data), classes=classes, templates=command.templates,
            device=command.device,
        )
        for model in command.models
    }  # fmt: skip
    compare(cases, COLUMNS, command.out)


def write_imagenet_names(folder: Path) -> Path:
    """open_clip's class names, as a file with one a line."""
    from open_clip import IMAGENET_CLASSNAMES

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "imagenet_names.txt"
    path.write_text("".join(f"{name}\n" for name in IMAGENET_CLASSNAMES), encoding="utf-8")
    return path


if __name__ == "__main__":
    run_script(main, Folders, "python -m experiments.zero_shot.folders")
