"""Finished runs in; tables on the terminal and one HTML page out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .columns import COLUMNS, DIGITS, NOTHING, Column
from .config import ModelConfig, check_folder, check_ranges, read_json, read_run_config
from .data.benchmarks import PEER
from .errors import UserError
from .page.write import write_page

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True)
class ReportConfig:
    """Compare finished runs: tables on the terminal, and a page to explore in a browser.

    The page's map is a t-SNE where scikit-learn is installed (the extra `explore`), else principal coordinates.

    Examples:
        >>> from pathlib import Path
        >>> from oblique_clip.report import ReportConfig
        >>> ReportConfig((Path("runs/sphere"), Path("runs/oblique")), seed=1).out.as_posix()
        'runs/report'
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders; or answers of `ablate --preset`, which are written again (as of runs/evidence/*)."""
    out: Path = Path("runs/report")
    """Folder for report.html, and curves and retrieval as PNG files."""
    seed: int = 0
    """Seed of the pictures and names that are drawn as examples."""
    device: str = "auto"
    """Where the runs' models look at the test pictures: auto, cpu, cuda, cuda:N or mps."""


def report(config: ReportConfig) -> None:
    """Print the comparison of finished runs and write it to `out/report.html`, its figures beside it as PNG files.

    Raises:
        UserError: for a folder that is no finished run, one that is named twice, or a device that is not there.

    Examples:
        >>> from pathlib import Path
        >>> from oblique_clip.report import ReportConfig, report
        >>> report(ReportConfig((Path("runs/nowhere"),)))
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: runs/nowhere is no finished run: it has no config.json
    """
    check_ranges(config)
    check_folder(config.out)
    if not config.runs:
        raise UserError("name at least one run folder")
    from .sweep.answer import is_answer, rebuild

    answers = [folder for folder in config.runs if is_answer(folder)]
    for folder in answers:
        rebuild(folder)
    # The page of an answer has the runs of its arms, which lie beside it.
    folders = [run for run in config.runs if run not in answers and not (answers and any(run.glob("seed-*")))]
    if answers and not folders:
        return
    runs = named(folders)
    for run in folders:
        missing = [name for name in ("config.json", "metrics.jsonl", "result.json") if not (run / name).is_file()]
        if missing:
            raise UserError(f"{run} is no finished run: it has no {missing[0]}")
    remaining = differences({name: read_run_config(run).model for name, run in runs.items()})
    results = {name: read_json(run / "result.json") for name, run in runs.items()}
    page = write_page(config.out, runs, results, remaining, config.seed, config.device)
    print_tables(results, remaining)
    print(f"page: {page}")


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """Run folders by the shortest ends of their paths that tell them apart.

    Raises:
        UserError: for a folder that is named twice.

    Examples:
        >>> from pathlib import Path
        >>> from oblique_clip.report import named
        >>> list(named([Path("runs/sphere"), Path("runs/oblique")]))
        ['sphere', 'oblique']
        >>> list(named([Path("x/sphere/seed-0"), Path("x/oblique/seed-0")]))
        ['sphere/seed-0', 'oblique/seed-0']
    """
    paths = [folder.resolve() for folder in folders]
    if twice := [str(folder) for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1]:
        raise UserError(f"{twice[0]} is named twice")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return {"/".join(path.parts[-depth:]): folder for path, folder in zip(paths, folders, strict=True)}


Table = tuple[list[str], list[list[str]]]


def comparison(results: dict[str, dict[str, Any]]) -> Table:
    """Headings and a row a form, as text."""
    rows = [[name, *(column.text(result) for column in COLUMNS)] for name, result in results.items()]
    return ["form", *(column.heading for column in COLUMNS)], rows


def differences(models: dict[str, ModelConfig], caption_tokens: int = 8) -> dict[str, dict[str, Any]]:
    """What remains different between forms: tokens, parameters, and operations of one forward pass of one pair.

    Args:
        caption_tokens: length of the caption that operations are counted for, class tokens not included.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from .model import create_model

    table: dict[str, dict[str, Any]] = {}
    for name, config in models.items():
        with torch.random.fork_rng(devices=[]):
            model = create_model(config, pretrained=False)
        size = config.arch.image_size
        caption = torch.ones(1, caption_tokens, dtype=torch.long)
        # open_clip's end token is the largest; what follows it is no work.
        caption[:, -1] = model.text.vocab_size - 1
        counter = FlopCounterMode(display=False)
        # Plain attention, training mode: the counter is blind to fused kernels and to torch's fast path of evaluation.
        with sdpa_kernel(SDPBackend.MATH), counter:
            model.encode_image(torch.zeros(1, 3, size, size))
            model.encode_text(caption)
        clip = config.form == "clip"
        # open_clip's text tower reads the end token, which is one of the caption's.
        own = 0 if clip else model.text.num_tokens
        table[name] = {
            "text attention": "causal" if clip else "both ways",
            "text read at": "end token" if clip else "class tokens",
            "start of image blocks": "open_clip's" if clip else "CLIP's text rule",
            "image positions": f"{getattr(model.visual, 'places', '?')} + {model.visual.num_tokens}",
            "text positions": f"{caption_tokens} + {own}",
            "projection": config.projection if config.form == "oblique" else "one matrix",
            "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
            "MFLOPs a pair": f"{counter.get_total_flops() / 1e6:.1f}",
        }
    return table


def print_tables(results: dict[str, dict[str, Any]], remaining: dict[str, dict[str, Any]]) -> None:
    """The comparison and what remains different, on the terminal; figures as rows, forms as columns."""
    headings, rows = comparison(results)
    _print_transposed("Zero-shot on what training left out", headings, rows)
    _print_transposed("What differs besides the topology", *_difference_rows(remaining))


def print_evaluation(evaluation: dict[str, Any]) -> None:
    """The figures of one evaluation in percent: a row for each classification, and for each way of retrieval."""
    from rich.console import Console

    console = Console()
    for table in (*_zero_shot_tables(evaluation), *_recall_tables(evaluation.get("retrieval", {}))):
        console.print(table)


def _zero_shot_tables(evaluation: dict[str, Any]) -> Iterator[RichTable]:
    """The tables of `ZERO_SHOT`: a row for each classification and a column for each figure, where there are any."""
    from rich.table import Table as RichTable

    found = _classifications(evaluation)
    for title, paths in ZERO_SHOT.items():
        every = [Column(heading, path) for heading, path in paths.items()]
        columns = [column for column in every if any(column.text(figures) != NOTHING for _, figures in found)]
        table = RichTable(title=title, title_justify="left")
        table.add_column("zero-shot", no_wrap=True)
        for column in columns:
            table.add_column(column.heading, justify="right")
        for name, figures in found:
            texts = [column.text(figures) for column in columns]
            if set(texts) - {NOTHING}:
                table.add_row(name, *texts)
        if table.rows:
            yield table


def _recall_tables(recalls: dict[str, Any]) -> list[RichTable]:
    """One table of both ways, where there is retrieval, CLIP_benchmark's figures under ours where there are some."""
    from rich.table import Table as RichTable

    ranks = [name.removeprefix("image_to_text_") for name in recalls if name.startswith("image_to_text_r@")]
    table = RichTable("retrieval", *(f"{rank} (chance)" for rank in ranks), title="Recall in %", title_justify="left")
    peers = recalls.get(PEER, {})
    for way, peer_way in PEER_WAYS.items():
        cells = [(f"{way}_{rank}", f"{way}_chance_{rank}") for rank in ranks]
        texts = [f"{100 * recalls[own]:.{DIGITS}f} ({100 * recalls[chance]:.{DIGITS}f})" for own, chance in cells]
        table.add_row(way.replace("_", " "), *texts)
        if peers:
            theirs = (Column(rank, (rank.replace("r@", f"{peer_way}@"),)) for rank in ranks)
            table.add_row("  CLIP_benchmark", *(column.text(peers) for column in theirs))
    return [table] * bool(ranks)


def print_skipped(skipped: dict[str, int]) -> None:
    """What was left out, by cause; nothing where nothing was."""
    if skipped:
        print("skipped:", ", ".join(f"{count} x {cause}" for cause, count in skipped.items()))


# CLIP_benchmark names retrieval after what is found.
PEER_WAYS = {"image_to_text": "text_retrieval_recall", "text_to_image": "image_retrieval_recall"}
# Tables of classifications, and of their columns the heading and where the figure is found.
ZERO_SHOT: dict[str, dict[str, tuple[str, ...]]] = {
    "Accuracies in %": {
        "images": ("images",),
        "top-1": ("top1",),
        "top-5": ("top5",),
        "per class": ("mean_per_class",),
        "pixel floor": ("pixel_floor", "top1"),
        "chance": ("chance",),
    },
    "Expected calibration error in %": {
        "own scale": ("ece",),
        "stored scale": ("ece_stored",),
        "fitted scale": ("ece_calibrated",),
    },
    "Accuracies of CLIP_benchmark in %": {
        "top-1": (PEER, "acc1"),
        "top-5": (PEER, "acc5"),
        "per class": (PEER, "mean_per_class_recall"),
    },
}


def _classifications(evaluation: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Everything with a top-1, the parts of a whole behind it."""
    found: list[tuple[str, dict[str, Any]]] = []
    for name, figures in evaluation.items():
        if "top1" in figures:
            found += [(name, figures), *((f"  {part}", own) for part, own in figures.get("parts", {}).items())]
    return found


def _print_transposed(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    table = RichTable(title=title, title_justify="left")
    table.add_column(headings[0])
    for row in rows:
        table.add_column(row[0], justify="right")
    for i, heading in enumerate(headings[1:], 1):
        table.add_row(heading, *(row[i] for row in rows))
    Console().print(table)


def _difference_rows(remaining: dict[str, dict[str, Any]]) -> Table:
    names = list(next(iter(remaining.values())))
    return ["form", *names], [[form, *(str(entry[name]) for name in names)] for form, entry in remaining.items()]
