"""Retrieval both ways on COCO's captions, or on Karpathy's split of Flickr30k and COCO.

python -m experiments.zero_shot.retrieval captions_val2017.json --images val2017 --models runs/mine
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from oblique_clip.cli import run_script
from oblique_clip.columns import Column
from oblique_clip.evaluate.run import EvaluateConfig

from .table import compare

WAYS = {"text to image": "text_to_image", "image to text": "image_to_text"}
COLUMNS = tuple(
    Column(f"{way} R@{k} %", ("retrieval", f"{name}_r@{k}")) for way, name in WAYS.items() for k in (1, 5, 10)
)


@dataclass(frozen=True)
class Retrieval:
    """Models on one caption file."""

    captions: Annotated[Path, tyro.conf.Positional]
    """Caption JSON: COCO's, or Karpathy's dataset_flickr30k.json and dataset_coco.json."""
    images: Path | None = None
    """Folder that the file names start at; default the JSON's own."""
    models: tuple[str, ...] = ("tiny-sphere", "tiny-oblique")
    """Whatever `oblique-clip evaluate` takes."""
    out: Path = Path("runs/zero_shot/retrieval")
    """A result.json for each model, and results.json of all."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


def main(command: Retrieval) -> None:
    """Print the table and write it to `out`."""
    cases = {
        model: EvaluateConfig(
            model=Path(model), data=str(command.captions), data_root=command.images, device=command.device
        )
        for model in command.models
    }
    compare(cases, COLUMNS, command.out)


if __name__ == "__main__":
    run_script(main, Retrieval, "python -m experiments.zero_shot.retrieval")
