"""Notebooks as they are committed: with their pictures, small, without what belongs to one machine, defining nothing.

`make test` also runs each from top to bottom, by nbmake.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 500_000
CELLS = 15

# A home or a temporary folder, or that of an installed package: what a warning or a traceback brings along.
OF_A_MACHINE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|usr|opt|mnt|Users|private|content)/|site-packages")
# What a figure that nothing has drawn shows as.
UNDRAWN = re.compile(r"<Figure size .* Axes>|<matplotlib\.figure\.Figure")

of_each = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def code(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    """The cell as Python, its magic lines taken for nothing."""
    return re.sub(r"^(\s*)%.*$", r"\1pass", "".join(cell["source"]), flags=re.MULTILINE)


def texts(output: dict[str, Any]) -> str:
    """All that an output says in words; pictures and the data of interactive figures are none."""
    data = {kind: value for kind, value in output.get("data", {}).items() if kind.startswith("text/")}
    return "\n".join("".join(part) for part in (output.get("text", ""), *data.values()))


def test_the_readme_lists_every_notebook() -> None:
    listed = re.findall(r"\[[^\]]*\]\((\w+\.ipynb)\)", (FOLDER / "README.md").read_text("utf-8"))
    assert listed == [path.name for path in NOTEBOOKS]


@of_each
def test_a_notebook_is_small(path: Path) -> None:
    assert path.stat().st_size <= LARGEST and len(code(path)) <= CELLS


@of_each
def test_a_notebook_defines_nothing(path: Path) -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in code(path):
        defined = [node for node in ast.walk(ast.parse(source(cell))) if isinstance(node, kinds)]
        assert not defined, f"line {defined[0].lineno} of: {source(cell)}"


@of_each
def test_the_first_cell_installs_the_package_only_where_it_is_missing(path: Path) -> None:
    """Under a condition, or where an import fails: so the line is indented."""
    first, *others = ("".join(cell["source"]) for cell in code(path))
    assert re.search(r"^ +%pip install .*oblique-clip\[explore\]", first, re.MULTILINE)
    assert not re.search(r"^%pip", first, re.MULTILINE) and "%pip" not in "".join(others)


@of_each
def test_a_notebook_was_run_from_top_to_bottom_or_its_counts_were_left_out(path: Path) -> None:
    counts = [cell["execution_count"] for cell in code(path)]
    assert counts == list(range(1, len(counts) + 1)) or not any(counts)


@of_each
def test_a_notebook_shows_its_pictures_and_no_warning_or_error(path: Path) -> None:
    outputs = [output for cell in code(path) for output in cell["outputs"]]
    assert not [texts(output) for output in outputs if output["output_type"] == "error"]
    assert not [texts(output) for output in outputs if output.get("name") == "stderr"]
    for output in outputs:
        drawn = any(kind.startswith("image/") for kind in output.get("data", {}))
        assert drawn or not UNDRAWN.search(texts(output)), texts(output)
    assert any(kind.startswith("image/") for output in outputs for kind in output.get("data", {}))


@of_each
def test_a_notebook_names_no_folder_of_one_machine(path: Path) -> None:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    said = [texts(output) for cell in cells for output in cell.get("outputs", [])]
    for text in (*("".join(cell["source"]) for cell in cells), *said):
        assert not OF_A_MACHINE.search(text), OF_A_MACHINE.search(text)
