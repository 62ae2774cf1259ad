"""Zero-shot accuracy on a folder of pictures a class, as ImageNet and its variants come.

python -m experiments.zero_shot.folders imagenet/val --models open_clip:ViT-B-32/laion2b_s34b_b79k runs/mine

Folders named by WordNet codes (n01440764, ...: ImageNet, -Sketch, and the 200 of -A and -R), or 1,000 of them by
numbers from 0 (-V2), take open_clip's names of these classes, others their own; unless `--classes` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from oblique_clip.cli import run_script
from oblique_clip.columns import Column
from oblique_clip.data.folders import open_class_folder
from oblique_clip.evaluate.names import IMAGENET, imagenet_names
from oblique_clip.evaluate.run import EvaluateConfig

from .table import compare

COLUMNS = (
    Column("top-1 %", ("classification", "top1")),
    Column("top-5 %", ("classification", "top5")),
    Column("mean per class %", ("classification", "mean_per_class")),
    Column("calibration error %", ("classification", "ece")),
    Column("same, stored scale %", ("classification", "ece_stored")),
    Column("chance %", ("classification", "chance")),
)


@dataclass(frozen=True)
class Folders:
    """Models on one folder of pictures a class."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder with a folder a class."""
    models: tuple[str, ...] = ("tiny-sphere", "tiny-oblique")
    """Whatever `oblique-clip evaluate` takes."""
    classes: str | None = None
    """As `oblique-clip evaluate --classes`."""
    templates: tuple[str, ...] = ("openai",)
    """As `oblique-clip evaluate --templates`."""
    out: Path = Path("runs/zero_shot/folders")
    """A result.json for each model, and results.json of all."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


def main(command: Folders) -> None:
    """Print the names and the table, and write it to `out`.

    Raises:
        UserError: see `open_class_folder` and `compare`.
    """
    classes = command.classes or names_for(command.data)
    print(f"class names: {classes or 'those of the folders'}")
    cases = {
        model: EvaluateConfig(
            model=Path(model), data=str(command.data), classes=classes, templates=command.templates,
            device=command.device,
        )
        for model in command.models
    }  # fmt: skip
    compare(cases, COLUMNS, command.out)


def names_for(data: Path) -> str | None:
    """The word of `--classes` that fits folders of these names; None for their own."""
    return IMAGENET if imagenet_names(open_class_folder(data).folders) else None


if __name__ == "__main__":
    run_script(main, Folders, "python -m experiments.zero_shot.folders")
