"""What a question's runs answer: tables, pictures, verdicts; on the terminal, as a page, and for a README."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..config import read_json, to_json, write_json
from ..errors import UserError
from ..files import write_whole
from ..page.render import data_address, render
from ..page.runs import Grid
from ..resume import differences as changes
from .pictures import draw_curves, draw_forest
from .question import Finding, open_question, shipped_questions
from .results import COMPARED, ELSEWHERE, HEADLINES, MEASURES, Difference, Measure, Results, found_of, points
from .spaces import rows_of
from .statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = "results.json"
T = TypeVar("T")


@dataclass(frozen=True)
class Table:
    """A title and rows of texts under headings."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As in a README, without the title."""
        lines = [self.headings, ("---",) * len(self.headings), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def tables(results: Results, measures: Sequence[Measure] = MEASURES) -> Iterator[Table]:
    """Means with half of their 95 % interval, every seed, differences, what sets arms apart, and what the runs took."""
    asked = [m for m in measures if any(results.values(arm.name, m) for arm in results.begun)]
    yield means(results, asked)
    yield Table("Every seed, in %", *_rows(results, asked, _every))
    if results.question.contrasts or results.question.primary:
        yield differences(results, [m for m in asked if m in COMPARED])
    yield settings(results)
    yield costs(results)
    if results.question.spaces:
        yield spaces(results)


def means(results: Results, measures: Sequence[Measure]) -> Table:
    """A row an arm, with half of the 95 % interval of each mean."""
    return Table("Mean over seeds ± half of its 95 % interval, in %", *_rows(results, measures, _mean))


def settings(results: Results) -> Table:
    """In which settings each arm is another than the first."""
    first, *others = results.begun
    rows = [(first.name, "-")]
    for arm in others:
        found = changes(results.config(first.name), results.config(arm.name))
        changed = (f"{name} {after}" for name, _, after in found if name not in (*ELSEWHERE, "seed"))
        rows.append((arm.name, ", ".join(changed) or "none"))
    return Table(f"Settings that are others than those of {first.name}", ("arm", "settings"), tuple(rows))


def spaces(results: Results) -> Table:
    """How the spaces of the arms that the question names differ, by figures of `explore.summarise`."""
    return Table("Embedding spaces of Fluent, mean over seeds ± half of its 95 % interval", *rows_of(
        results, results.question.spaces
    ))  # fmt: skip


def _rows(
    results: Results, measures: Sequence[Measure], cell: Callable[[Results, str, Measure], str]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    headings = ("arm", "seeds", *(measure.title for measure in measures))
    rows = [
        (a.name, str(len(results.runs(a.name))), *(cell(results, a.name, m) for m in measures)) for a in results.begun
    ]
    return headings, tuple(rows)


def _mean(results: Results, arm: str, measure: Measure) -> str:
    found = results.mean(arm, measure)
    return "-" if found is None else plus_minus(found)


def _every(results: Results, arm: str, measure: Measure) -> str:
    return ", ".join(f"{value:.2f}" for value in results.values(arm, measure).values()) or "-"


def plus_minus(found: Interval) -> str:
    """A mean and half of its interval; the mean alone where one value says nothing of the spread."""
    return f"{found.mean:.2f}" + (f" ± {found.half:.2f}" if math.isfinite(found.half) else "")


def between(found: Interval | None) -> str:
    """A mean and the ends of its interval; a single value has none."""
    return "-" if found is None else points(found).replace(" points", "")


def contrasts(results: Results, measures: Sequence[Measure]) -> list[Difference]:
    """Every difference that the question asks for, the primary one first."""
    question = results.question
    pairs = dict.fromkeys([*([question.primary] if question.primary else []), *question.contrasts])
    found = [results.ahead(first, second, measure) for first, second in pairs for measure in measures]
    return [one for one in found if one is not None]


def differences(results: Results, measures: Sequence[Measure]) -> Table:
    """How far arms are ahead of others in points, paired by seed, with both intervals."""
    headings = ("first", "second", "measure", "over seeds", "over concepts", "verdict", "every seed")
    rows = [
        (
            one.first, one.second, one.measure.title, between(one.over_seeds), between(one.over_classes), one.sign,
            _every_seed(one),
        )
        for one in contrasts(results, measures)
    ]  # fmt: skip
    return Table("How far the first is ahead of the second, in points, with 95 % intervals", headings, tuple(rows))


def _every_seed(one: Difference) -> str:
    return ", ".join(f"{value:+.2f}" for value in one.seeds.values())


def primary_measures(results: Results) -> Table:
    """Every measure of the primary contrast: both means and the difference over seeds; no rows where there is none."""
    first, second = results.question.primary or ("", "")
    rows = [
        (
            measure.title, _mean(results, second, measure), _mean(results, first, measure), between(one.over_seeds),
            _every_seed(one),
        )
        for measure in (MEASURES if first else ())
        if (one := results.ahead(first, second, measure))
    ]  # fmt: skip
    headings = ("measure, in %", second, first, "ahead, over seeds", "every seed")
    return Table("Every measure of the primary contrast, with 95 % intervals", headings, tuple(rows))


def costs(results: Results) -> Table:
    """What runs took, on each kind of device; beside each other they share a machine, so that times are rough."""
    rows = []
    for arm in results.begun:
        every = [run.result for run in results.runs(arm.name).values()]
        for device in sorted({one["device"] for one in every}, reverse=True):
            own = [one for one in every if one["device"] == device]
            speed = statistics.median(one["images_per_second"] for one in own)
            minutes = statistics.fmean(one["train_seconds"] for one in own) / 60
            counts = (f"{own[0]['parameters']:,}", f"{own[0]['steps']:,}")
            taken = (f"{len(own)} on {device}", f"{speed:.0f}", f"{minutes:.1f}")
            rows.append((arm.name, own[0]["topology"], *counts, *taken))
    headings = ("arm", "topology", "parameters", "steps", "runs", "images/s, median", "minutes, mean")
    return Table("What runs took, beside others on the same machine", headings, tuple(rows))


def findings(results: Results) -> list[Finding]:
    """The primary contrast on both headline measures, where it is asked for, then what the question itself finds."""
    question = results.question
    found: list[Finding] = []
    for one in results.compare(*question.primary) if question.primary else ():
        found += found_of(f"primary: {one.first} is better than {one.second} on {one.measure.title}", [one])
    return [*found, *(_of_contrasts(results) if question.findings is None else _own(results, question.findings))]


def _of_contrasts(results: Results) -> Iterator[Finding]:
    for first, second in results.question.contrasts:
        if (first, second) != results.question.primary:
            yield from found_of(f"{first} is better than {second}", results.compare(first, second))


def _own(results: Results, part: Callable[[Results], Iterable[T]]) -> list[T]:
    """What the question's own code makes of its runs.

    Raises:
        UserError: where the code of a question that did not ship fails.
    """
    try:
        return list(part(results))
    except Exception as error:
        if results.question.source in shipped_questions() or isinstance(error, UserError):
            raise
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"{results.question.source}: {part.__name__} cannot be run: {said}") from error


def pictures(results: Results) -> dict[str, Figure]:
    """The figures that every question has, then its own."""
    return {
        "headlines": draw_forest(results),
        "curves": draw_curves(results),
        **dict(_own(results, results.question.pictures)),
    }


def summary(results: Results) -> dict[str, Any]:
    """Everything that was found, as JSON: configurations, every run's figures, differences and verdicts."""
    question = results.question
    arms = {}
    for arm in results.begun:
        figures = {m.title: results.values(arm.name, m) for m in MEASURES}
        ran = to_json(results.config(arm.name))
        config = {name: value for name, value in ran.items() if name not in (*ELSEWHERE, "seed")}
        arms[arm.name] = {
            "config": _without_infinity(config),
            "figures": {title: own for title, own in figures.items() if own},
        }
    told = [
        {
            "first": one.first, "second": one.second, "measure": one.measure.title, "sign": one.sign,
            "seeds": one.seeds,
            "over_seeds": _ends(one.over_seeds), "over_classes": _ends(one.over_classes),
        }
        for one in contrasts(results, MEASURES)
    ]  # fmt: skip
    verdicts = [vars(finding) for finding in findings(results)]
    seeds = {arm.name: arm.seeds for arm in question.arms}
    return {"format_version": 1, "question": question.name, "source": question.source, "asks": question.asks,
            "seeds": seeds, "findings": verdicts, "contrasts": told, "arms": arms}  # fmt: skip


def _ends(found: Interval | None) -> dict[str, float | None] | None:
    """A single value has no ends, and JSON no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in vars(found).items()} if found else None


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_infinity(own) for name, own in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_answer(results: Results) -> Path:
    """Write `answer.html`, results.json and the pictures of a question into a folder of its name beside its runs.

    Tables and verdicts are printed too.
    """
    folder = results.out / results.question.name
    drawn = write_files(results, folder)
    page = folder / "answer.html"
    write_whole(page, _html(results, drawn))
    print_answer(results)
    print(f"page: {page}")
    return page


def is_answer(folder: Path) -> bool:
    """Whether a folder is one that `write_answer` wrote."""
    return (folder / RESULTS).is_file() and not (folder / "config.json").exists()


def rebuild(folder: Path) -> Path:
    """Write an answer again, from the runs beside its folder.

    Raises:
        UserError: where its question is gone or has other arms, or none of its runs is finished.
    """
    before = read_json(folder / RESULTS)
    if not {"source", "seeds"} <= before.keys():
        raise UserError(f"{folder / RESULTS} is not what a sweep writes")
    if before["source"] not in shipped_questions() and not Path(before["source"]).is_file():
        raise UserError(f"{folder} answers a question of {before['source']}, which is gone")
    question = open_question(before["source"])
    if gone := sorted(before["seeds"].keys() - {arm.name for arm in question.arms}):
        raise UserError(f"{before['source']} has no arm {gone[0]} any more, which {folder} answers with")
    arms = tuple(replace(arm, seeds=before["seeds"].get(arm.name, arm.seeds)) for arm in question.arms)
    results = Results(replace(question, arms=arms), folder.parent)
    if not results.begun:
        raise UserError(f"{folder.parent} holds no finished run of the question {question.name!r}")
    return write_answer(results)


def write_files(results: Results, folder: Path) -> list[Path]:
    """Write results.json and the pictures, and give the paths of these."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, figure in pictures(results).items():
        drawn.append(folder / f"{name}.png")
        figure.savefig(drawn[-1], dpi=100)
    write_json(folder / RESULTS, summary(results))
    return drawn


def verdicts(results: Results) -> Table:
    """A row a finding."""
    rows = tuple((finding.claim, finding.verdict, finding.sentence) for finding in findings(results))
    return Table("Verdicts", ("claim", "verdict", "figures"), rows)


def _html(results: Results, drawn: Sequence[Path]) -> str:
    """Verdicts first, then pictures and tables."""
    return render(
        "answer.html.jinja",
        title=results.question.asks,
        missing=unfinished(results),
        command=f"oblique-clip ablate --preset {results.question.source} --out {results.out}",
        findings=findings(results),
        pictures=[(path.stem, data_address(path.read_bytes(), "png")) for path in drawn],
        tables=[Grid(table.title, table.headings, table.rows) for table in tables(results)],
    )


def print_answer(results: Results) -> None:
    """Headline means, differences and verdicts on the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    console = Console()
    for table in (means(results, HEADLINES), differences(results, HEADLINES)):
        shown = RichTable(*table.headings, title=table.title, title_justify="left")
        for row in table.rows:
            shown.add_row(*(escape(cell) for cell in row))
        if table.rows:
            console.print(shown)
    for finding in findings(results):
        said = escape(f"{finding.claim}\n  {finding.sentence}")
        console.print(f"[bold]{finding.verdict}[/bold]: {said}", highlight=False)


def unfinished(results: Results) -> int:
    """Runs that the question asks for and that are not finished."""
    return sum(arm.seeds - len(results.runs(arm.name)) for arm in results.question.arms)
