"""report.html: what it shows is worked out run by run, so that one model at a time is held."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import read_run_config
from ..data.emoji import EmojiSet
from ..device import pick_device
from ..figures import draw_curves, draw_retrieval
from ..files import write_whole
from ..topology import parse_topology
from .confusion import Confusion, confusion
from .curves import curves
from .examples import SHOWN, Retrieval, draw_examples
from .family import Seen, look
from .map import Map, draw_map, sampled
from .render import picture_address, render
from .runs import differences_grid, facts, runs_grid
from .spread import Spread, spread


@dataclass(frozen=True)
class Look:
    """What is shown of one model."""

    run: int
    """Its number among all runs."""
    name: str
    topology: str
    test: EmojiSet
    retrieval: Retrieval
    confusion: Confusion
    spread: Spread
    rows: list[int]
    """Pictures on its map."""
    map: Map
    predicted: list[str]
    """The most similar name of each."""
    right: list[bool]

    def picture(self, row: int) -> int:
        """Number of a picture, the same for all runs."""
        return int(self.test.rows[row])


def write_page(
    out: Path,
    runs: dict[str, Path],
    results: dict[str, dict[str, Any]],
    remaining: dict[str, dict[str, Any]],
    seed: int = 0,
    device: str = "cpu",
) -> Path:
    """Write `out/report.html`, and beside it curves and, for each run with a model to look at, retrieval as PNG.

    Args:
        runs: folder of each run, by its name.
        results: its result.json.
        remaining: see `report.differences`.
        seed: of what is drawn at random.
        device: that the models compute on.

    Raises:
        UserError: for a damaged checkpoint, or a device that is not there.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip.config import TrainConfig, to_json, write_json
        >>> from oblique_clip.page.write import write_page
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_json(folder / "config.json", to_json(TrainConfig()))
        >>> (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 4.0, "scale": 1.8, "margin": 0.1}')
        53
        >>> result = {"topology": "oblique(16,8)", "scale": 1.8}
        >>> page = write_page(folder, {"mine": folder}, {"mine": result}, {"mine": {"projection": "per_token"}})
        >>> "is without a checkpoint" in page.read_text(encoding="utf-8")
        True
    """
    looks: list[Look] = []
    blind: dict[str, list[str]] = {}
    out.mkdir(parents=True, exist_ok=True)
    draw_curves(runs).savefig(out / "curves.png", dpi=110)
    for number, (name, run) in enumerate(runs.items()):
        seen = look(run, pick_device(device))
        if isinstance(seen, str):
            blind.setdefault(seen, []).append(name)
            continue
        looks.append(_look(number, name, seen, looks, seed))
        figure = draw_retrieval(looks[-1].retrieval, seen.test)
        figure.savefig(out / f"retrieval-{name.replace('/', '-')}.png", dpi=110)
    page = out / "report.html"
    write_whole(page, _html(runs, results, remaining, looks, blind))
    return page


def _look(number: int, name: str, seen: Seen, before: list[Look], seed: int) -> Look:
    rows = sampled(seen.test, seed)
    numbers = seen.test.rows[rows].tolist()
    like = next((one.map for one in before if [one.picture(row) for row in one.rows] == numbers), None)
    predicted = [seen.names[place] for place in seen.predicted[rows].tolist()]
    return Look(
        number, name, seen.topology.spec, seen.test, draw_examples(seen, seed=seed), confusion(seen), spread(seen),
        rows.tolist(), draw_map(seen.points[rows], seen.topology, like), predicted,
        seen.right[rows].tolist(),
    )  # fmt: skip


def _html(
    runs: dict[str, Path],
    results: dict[str, dict[str, Any]],
    remaining: dict[str, dict[str, Any]],
    looks: list[Look],
    blind: dict[str, list[str]],
) -> str:
    data = {
        "runs": list(runs),
        "curves": curves(runs),
        "spreads": [{"run": one.run, "topology": one.topology, **asdict(one.spread)} for one in looks],
        "maps": [_map(one) for one in looks],
        "pictures": _pictures(looks),
    }
    return render(
        "report.html.jinja",
        title="Oblique CLIP against CLIP",
        data=data,
        looks=looks,
        blind=blind,
        unbounded=_unbounded(runs),
        grid_of_runs=runs_grid(runs, results),
        differences=differences_grid(remaining),
        facts=facts(results),
        shown=SHOWN,
    )


def _unbounded(runs: dict[str, Path]) -> list[str]:
    """Runs whose topology has no bounded range."""
    specs = {name: read_run_config(run).model.topology for name, run in runs.items()}
    return [name for name, spec in specs.items() if not all(map(math.isfinite, parse_topology(spec).range))]


def _map(one: Look) -> dict[str, Any]:
    return {
        "run": one.run,
        "pictures": [one.picture(row) for row in one.rows],
        "x": [round(x, 3) for x in one.map.places[:, 0].tolist()],
        "y": [round(y, 3) for y in one.map.places[:, 1].tolist()],
        "predicted": one.predicted,
        "right": one.right,
    }


def _pictures(looks: list[Look]) -> dict[int, dict[str, str]]:
    """Each picture that is shown anywhere, once, by its number."""
    found: dict[int, dict[str, str]] = {}
    for one in looks:
        asked = {example.row for example in one.retrieval.pictures}
        answers = {row for example in one.retrieval.names for row, _ in example.found}
        confused = {row for pair in one.confusion.pairs for row in pair.rows}
        for row in sorted({*asked, *answers, *confused, *one.rows}):
            number, record = one.picture(row), one.test.records[row]
            if number not in found:
                address = picture_address(one.test.pixels[number])
                found[number] = {"address": address, "caption": record.caption, "source": record.source}
    return found
