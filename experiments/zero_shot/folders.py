"""Zero-shot accuracy on a folder of pictures a class, as ImageNet and its variants come.

python -m experiments.zero_shot.folders imagenet/val --models open_clip:ViT-B-32/laion2b_s34b_b79k runs/mine

Folders named by WordNet codes (n01440764, ...: ImageNet, -Sketch, and the 200 of -A and -R) or by ImageNet's numbers
from 0 (-V2) take open_clip's names of these classes; others their own names, or those of `--classes`, a name a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from oblique_clip.cli import run_script
from oblique_clip.errors import UserError
from oblique_clip.evaluate.run import EvaluateConfig

from .table import Column, compare

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
    """Class names, a line each, in the order of the folders, which is that of their names as texts."""
    templates: tuple[str, ...] = ("openai",)
    """As `oblique-clip evaluate --templates`."""
    out: Path = Path("runs/zero_shot/folders")
    """A result.json for each model, and results.json of all."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


def main(command: Folders) -> None:
    """Print the table and write it to `out`.

    Raises:
        UserError: where there is no such folder, and see `compare`.
    """
    if not command.data.is_dir():
        raise UserError(f"no such folder: {command.data}")
    classes = command.classes or write_imagenet_names(command.data, command.out)
    cases = {
        model: EvaluateConfig(
            model=Path(model), data=str(command.data), classes=classes, templates=command.templates,
            device=command.device,
        )
        for model in command.models
    }  # fmt: skip
    compare(cases, COLUMNS, command.out)


def write_imagenet_names(data: Path, out: Path) -> Path | None:
    """open_clip's names of the classes that folders name by code or number, a line each; None where they do not."""
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    codes = ImageNetInfo("imagenet-1k").label_names()
    known = {**{code: i for i, code in enumerate(codes)}, **{str(i): i for i in range(len(codes))}}
    # In the order in which classes are read from a folder.
    folders = sorted(path.name for path in data.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders or not all(name in known for name in folders):
        return None
    out.mkdir(parents=True, exist_ok=True)
    path = out / "names.txt"
    path.write_text("".join(f"{IMAGENET_CLASSNAMES[known[name]]}\n" for name in folders), encoding="utf-8")
    return path


if __name__ == "__main__":
    run_script(main, Folders, "python -m experiments.zero_shot.folders")
