"""Every public name has an example, and every example does what it says. The names are those of the reference."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

import oblique_clip

ROOT = Path(__file__).parents[1]
# White space is that of a line of 120 letters, and "..." stands for anything.
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NEEDS = dict.fromkeys(
    (f"oblique_clip.interop.clip_benchmark.{name}" for name in ("register", "load_model", "zero_shot", "retrieval")),
    "clip_benchmark",
)
"""Packages that an example cannot do without and that the extra `dev` lacks."""


def reference() -> ModuleType:
    """The hook of mkdocs, which needs mkdocs only when it is called by it."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / ".ci" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PUBLIC = [(module, name) for page in reference().PAGES.values() for module, names in page.items() for name in names]


@pytest.mark.parametrize("module, name", PUBLIC, ids=map(".".join, PUBLIC))
def test_the_example_of(module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs as it stands: with nothing imported for it, and leaving nothing where it runs."""
    if package := NEEDS.get(f"{module}.{name}"):
        pytest.importorskip(package)
    thing = getattr(importlib.import_module(module), name)
    docstring = inspect.cleandoc(thing.__doc__ or "")
    assert "\nExamples:\n    >>> " in docstring, f"{module}.{name} has no example"
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for example in doctest.DocTestFinder(recurse=False).find(thing, name, globs={}):
        runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)
    assert not any(here.iterdir())


def test_what_the_package_exports_is_public() -> None:
    homes = {getattr(importlib.import_module(module), name) for module, name in PUBLIC}
    exported = {name for name in oblique_clip.__all__ if name != "__version__"}
    assert not {name for name in exported if getattr(oblique_clip, name) not in homes}


def test_whatever_a_module_with_a_page_defines_is_public_or_said_to_be_internal() -> None:
    pages, internal = reference().PAGES, reference().INTERNAL
    public = {module: set(names) for page in pages.values() for module, names in page.items()}
    for module, names in public.items():
        defined = {
            name
            for name, thing in vars(importlib.import_module(module)).items()
            if not name.startswith("_") and getattr(thing, "__module__", None) == module
            and (inspect.isclass(thing) or inspect.isroutine(inspect.unwrap(thing)))
        }  # fmt: skip
        hidden = set(internal.get(module, ()))
        assert defined == names | hidden and not names & hidden, module
    assert not internal.keys() - public.keys()


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """`make docs`, into another folder."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="the site needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert built.returncode == 0, built.stderr
    pages = "".join(page.read_text("utf-8") for page in tmp_path.glob("reference/*.html"))
    assert not [name for name in map(".".join, PUBLIC) if f'id="{name}"' not in pages]
