"""`oblique-clip <verb>`: flags to a configuration, mistakes to one line and exit status 2."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from . import __version__
from .errors import UserError

# Verb: what it does, and the function in `commands` that does it. Nothing heavy loads before a verb is chosen.
VERBS = {
    "train": "train one model",
    "evaluate": "zero-shot classification and retrieval with a trained model",
    "ablate": "train the forms under one budget and compare them",
    "report": "compare finished runs: tables, curves, pictures and one HTML page",
    "data": "describe a data set and show some of its pairs",
}
USAGE = f"""\
usage: oblique-clip VERB [OPTIONS]

CLIP on an oblique manifold, beside an exact CLIP baseline. Version {__version__}.

verbs:
{chr(10).join(f"  {verb:<10} {text}" for verb, text in VERBS.items())}

oblique-clip VERB --help lists a verb's options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; 0 on success, 2 on a user's mistake, 130 when interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    # geoopt 0.5 compiles its functions in a way that torch now warns of at import; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
    if args and args[0] in ("-h", "--help", "--version"):
        print(f"oblique-clip {__version__}" if args[0] == "--version" else USAGE)
        return 0
    try:
        if not args or args[0] not in VERBS:
            found = f"unknown verb {args[0]!r}" if args else "a verb is missing"
            raise UserError(f"{found}; there is {', '.join(VERBS)}")
        commands: Any = importlib.import_module(".commands", __package__)
        getattr(commands, args[0])(args[1:])
    except UserError as error:
        return _fail(str(error))
    except (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
        return _fail(f"{error.strerror}: {error.filename}")
    except KeyboardInterrupt:
        print("oblique-clip: interrupted", file=sys.stderr)
        return 130
    return 0


def parse(kind: Any, verb: str, args: list[str], default: Any = None) -> Any:
    """A configuration dataclass from flags, tyro's table of options where help is asked for.

    Raises:
        UserError: tyro's complaint, in one line.
    """
    import tyro

    options = {} if default is None else {"default": default}
    markers = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, prog=f"oblique-clip {verb}", args=args, config=markers, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{_one_line(complaint.getvalue())} (see oblique-clip {verb} --help)") from stop


def _one_line(panel: str) -> str:
    """The first paragraph of tyro's framed complaint, and the flags that it suggests."""
    lines = [line.strip("│╭╮╰╯ ").strip() for line in panel.splitlines() if line.startswith("│")]
    paragraphs = re.split(r"\n─+\n", "\n".join(lines))
    suggested = re.findall(r"^--[\w-]+", paragraphs[1] if len(paragraphs) > 1 else "", re.M)
    hint = f"; perhaps you meant {', '.join(dict.fromkeys(suggested))}" if "meant" in panel and suggested else ""
    return " ".join(paragraphs[0].split()) + hint


def _fail(message: str) -> int:
    print(f"oblique-clip: {' '.join(message.split())}", file=sys.stderr)
    return 2
