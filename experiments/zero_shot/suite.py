"""The CLIP_benchmark suite: every data set of a folder in its WebDataset layout, its own figures beside ours.

python -m experiments.zero_shot.suite wds/ --models open_clip:ViT-B-32/laion2b_s34b_b79k runs/mine

A data set is a folder with `classnames.txt`, or with `dataset_type.txt` that says `retrieval`, and `test/*.tar`: what
`clip_benchmark_export_wds` writes, and what CLIP_benchmark's authors publish as `wds_<name>` on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from oblique_clip.cli import run_script
from oblique_clip.columns import Column
from oblique_clip.data.benchmarks import PEER, is_webdataset, webdataset_shards
from oblique_clip.errors import UserError
from oblique_clip.evaluate.run import EvaluateConfig

from .table import compare

COLUMNS = (
    Column("top-1 %", ("classification", "top1")),
    Column("same, CLIP_benchmark", ("classification", PEER, "acc1")),
    Column("per class %", ("classification", "mean_per_class")),
    Column("same, CLIP_benchmark", ("classification", PEER, "mean_per_class_recall")),
    Column("text to image R@5 %", ("retrieval", "text_to_image_r@5")),
    Column("same, CLIP_benchmark", ("retrieval", PEER, "image_retrieval_recall@5")),
    Column("image to text R@5 %", ("retrieval", "image_to_text_r@5")),
    Column("same, CLIP_benchmark", ("retrieval", PEER, "text_retrieval_recall@5")),
)


@dataclass(frozen=True)
class Suite:
    """Models on every data set of a folder."""

    root: Annotated[Path, tyro.conf.Positional]
    """Folder with a folder a data set."""
    models: tuple[str, ...] = ("tiny-sphere", "tiny-oblique")
    """Whatever `oblique-clip evaluate` takes."""
    datasets: tuple[str, ...] = ()
    """Names of the data sets to take; default all."""
    engine: Literal["oblique_clip", "clip_benchmark"] = "clip_benchmark"
    """`oblique_clip` leaves CLIP_benchmark's own metrics out."""
    out: Path = Path("runs/zero_shot/suite")
    """A result.json for each model and data set, and results.json of all."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


def main(command: Suite) -> None:
    """Print the table and write it to `out`.

    Raises:
        UserError: see `datasets_in`.
    """
    cases: dict[str, EvaluateConfig] = {
        f"{model} {name}": EvaluateConfig(
            model=Path(model), data=str(command.root / name), engine=command.engine, device=command.device
        )
        for name in datasets_in(command.root, command.datasets)
        for model in command.models
    }
    compare(cases, COLUMNS, command.out)


def datasets_in(root: Path, datasets: Sequence[str] = ()) -> Sequence[str]:
    """Names of the data sets of a folder; default all.

    Raises:
        UserError: where the folder has no data set, not those asked for, or one without shards.
    """
    if not root.is_dir():
        raise UserError(f"no such folder: {root}")
    found = sorted(path.name for path in root.iterdir() if is_webdataset(path))
    wanted = datasets or found
    if missing := [name for name in wanted if name not in found]:
        raise UserError(f"{root} has no data set {missing[0]!r}; it has {', '.join(found) or 'none'}")
    if not wanted:
        raise UserError(f"{root} has no folder in CLIP_benchmark's layout (classnames.txt, test/*.tar)")
    for name in wanted:
        webdataset_shards(root / name)
    return wanted


if __name__ == "__main__":
    run_script(main, Suite, "python -m experiments.zero_shot.suite")
