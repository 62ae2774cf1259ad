"""Runs in; tables and one HTML page out. The page stands alone: no server, no network."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .config import ModelConfig, read_run_config
from .data.benchmarks import PEER
from .errors import UserError
from .figures import draw_curves, draw_retrieval

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table as RichTable

DIGITS = 2


@dataclass(frozen=True)
class ReportConfig:
    """Compare finished runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""
    out: Path = Path("runs/report")
    """Folder for report.html and its pictures as PNG files."""


def report(config: ReportConfig) -> None:
    """Print the comparison of finished runs and write it to `out/report.html`, its pictures beside it.

    Raises:
        UserError: for a folder that is no finished run, or two runs of one name.
    """
    if not config.runs:
        raise UserError("name at least one run folder")
    runs = {run.name: run for run in config.runs}
    if len(runs) < len(config.runs):
        raise UserError("two of the run folders have the same name, which names them in the report")
    for run in config.runs:
        missing = [name for name in ("config.json", "metrics.jsonl", "result.json") if not (run / name).is_file()]
        if missing:
            raise UserError(f"{run} is no finished run: it has no {missing[0]}")
    remaining = differences({name: read_run_config(run).model for name, run in runs.items()})
    results = {name: json.loads((run / "result.json").read_text()) for name, run in runs.items()}
    config.out.mkdir(parents=True, exist_ok=True)
    page = write_page(config.out, runs, results, remaining)
    print_tables(results, remaining)
    print(f"page: {page}")


@dataclass(frozen=True)
class Column:
    """One column of the comparison: its heading and where its figure is found in a result.json."""

    heading: str
    path: tuple[str, ...]
    percent: bool = True

    def text(self, result: dict[str, Any]) -> str:
        value: Any = result
        for key in self.path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            return "-"
        if not isinstance(value, float):
            return str(value)
        return f"{100 * value:.{DIGITS}f}" if self.percent else f"{value:.{DIGITS}f}"


_FAMILY = ("evaluation", "family")
_CONCEPTS = ("evaluation", "concepts")
_RETRIEVAL = ("evaluation", "retrieval")
COLUMNS = (
    Column("topology", ("topology",)),
    Column("family top-1 %", (*_FAMILY, "top1")),
    Column("same, last step %", ("last_evaluation", "family", "top1")),
    Column("top-5 %", (*_FAMILY, "top5")),
    Column("pixel floor top-1 %", (*_FAMILY, "pixel_floor", "top1")),
    Column("chance %", (*_FAMILY, "chance")),
    Column("known names top-1 %", (*_FAMILY, "parts", "known_names", "top1")),
    Column("pixel floor of these %", (*_FAMILY, "parts", "known_names", "pixel_floor", "top1")),
    Column("no flags top-1 %", (*_FAMILY, "parts", "without_flags", "top1")),
    Column("concepts top-1 %", (*_CONCEPTS, "top1")),
    Column("same, last step %", ("last_evaluation", "concepts", "top1")),
    Column("chance %", (*_CONCEPTS, "chance")),
    Column("image to text R@1 %", (*_RETRIEVAL, "image_to_text_r@1")),
    Column("chance %", (*_RETRIEVAL, "image_to_text_chance_r@1")),
    Column("text to image R@1 %", (*_RETRIEVAL, "text_to_image_r@1")),
    Column("chance %", (*_RETRIEVAL, "text_to_image_chance_r@1")),
    Column("scale", ("scale",), percent=False),
    Column("images/s", ("images_per_second",), percent=False),
    Column("train s", ("train_seconds",), percent=False),
)

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
        columns = [column for column in every if any(column.text(figures) != "-" for _, figures in found)]
        table = RichTable(title=title, title_justify="left")
        table.add_column("zero-shot", no_wrap=True)
        for column in columns:
            table.add_column(column.heading, justify="right")
        for name, figures in found:
            texts = [column.text(figures) for column in columns]
            if set(texts) - {"-"}:
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


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem }}
th, td {{ border-bottom: 1px solid #ccc; padding: 0.3rem 0.7rem; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
img {{ max-width: 100% }} code {{ background: #f3f3f3; padding: 0 0.2rem }} figcaption {{ color: #555 }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""


def write_page(
    out: Path, runs: dict[str, Path], results: dict[str, dict[str, Any]], remaining: dict[str, dict[str, Any]]
) -> Path:
    """Write `out/report.html` with tables, curves and retrieval pictures of finished runs, and the pictures as PNG.

    Args:
        runs, results: folder and result.json of each run, by its name.
        remaining: see `differences`.
    """
    first = next(iter(results.values()))
    parts = [
        *_facts(results),
        "<h2>Zero-shot on what training left out</h2>",
        html_table(*_transpose(*comparison(results))),
        "<p><em>Family</em>: every picture of the held-out artists, among all their names; the pixel floor is "
        "the nearest training picture on 16 x 16 pixels. <em>Concepts</em>: emoji whose names training never saw, "
        "among those names alone. Accuracies are of the checkpoint that was best on the validation family; "
        "nothing chose those of the last step.</p>",
        "<h2>What differs besides the topology</h2>",
        html_table(*_transpose(*_difference_rows(remaining))),
        "<h2>Training</h2>",
        _html_figure(
            out / "curves.png",
            draw_curves(runs),
            "Scale and margin are in units of the width of each topology's range.",
        ),
    ]
    if "family" in first["evaluation"]:
        for name, run in runs.items():
            picture = _html_figure(out / f"retrieval-{name}.png", draw_retrieval(run), "Drawn at random, not chosen.")
            parts += [f"<h2>Retrieval: {html.escape(name)}</h2>", picture]
    page = out / "report.html"
    page.write_text(PAGE.format(title="Oblique CLIP against CLIP", body="\n".join(parts)), encoding="utf-8")
    return page


def _facts(results: dict[str, dict[str, Any]]) -> list[str]:
    """What was run, a paragraph for each different answer."""
    runs: dict[str, list[str]] = {}
    for name, result in results.items():
        # What a result.json says may be a stranger's.
        text = html.escape(
            f"{result['steps']} steps of {result['batch_size']} pairs, seed {result['seed']}, "
            f"{result['threads']} threads on {result['device']}, torch {result['versions']['torch']}: "
        )
        text += f"<code>{html.escape(result['command'])}</code>"
        runs.setdefault(text, []).append(name)
    return [f"<p>{html.escape(', '.join(names))}: {text}</p>" for text, names in runs.items()]


def _transpose(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return [headings[0], *(row[0] for row in rows)], [
        [h, *(row[i] for row in rows)] for i, h in enumerate(headings[1:], 1)
    ]


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, each escaped."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html_figure(path: Path, figure: Figure, caption: str) -> str:
    figure.savefig(path, dpi=110)
    return html_image(path, caption)


def html_image(path: Path, caption: str) -> str:
    """A PNG file as a figure that is part of the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"
