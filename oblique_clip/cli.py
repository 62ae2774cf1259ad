"""`oblique-clip <verb>`: flags to a configuration, mistakes to one line and exit status 2."""

from __future__ import annotations

import errno
import importlib
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from . import __version__
from .errors import UserError

# Verb: what it does, and the function in `commands` that does it. Nothing heavy loads before a verb is chosen.
VERBS = {
    "train": "train one model",
    "evaluate": "zero-shot classification and retrieval with a trained model",
    "ablate": "train the forms under one budget and compare them",
    "report": "compare finished runs: tables, curves, pictures and one HTML page",
    "explain": "draw what each class token looks at in a picture",
    "embed": "encode pictures once, into a Parquet file of vectors",
    "search": "find the stored pictures most similar to a text or a picture",
    "export": "write both towers as ONNX or torch.export files",
    "data": "describe a data set and show some of its pairs; `data check PATH` reads it to its end",
    "bench": "measure speed and memory against the peers installed here",
}
USAGE = f"""\
usage: oblique-clip VERB [OPTIONS]

CLIP on an oblique manifold, beside an exact CLIP baseline. Version {__version__}.

verbs:
{chr(10).join(f"  {verb:<10} {text}" for verb, text in VERBS.items())}

oblique-clip VERB --help lists a verb's options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; 0 on success, 2 on a user's mistake, 130 or 143 when a signal ended it."""
    args = list(sys.argv[1:] if argv is None else argv)
    # geoopt 0.5 compiles its functions in a way that torch now warns of at import; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
    if args and args[0] in ("-h", "--help", "--version"):
        print(f"oblique-clip {__version__}" if args[0] == "--version" else USAGE)
        return 0
    return _guarded(lambda: _run(args))


def run_script(function: Callable[[Any], None], kind: Any, program: str) -> NoReturn:
    """Run a script, as those in `experiments`, with its flags as a dataclass, and exit as `main` does."""
    from .flags import parse

    sys.exit(_guarded(lambda: function(parse(kind, program, sys.argv[1:]))))


def command_line() -> str:
    """What began this process, as it would be typed again.

    Examples:
        >>> import sys
        >>> from oblique_clip.cli import command_line
        >>> sys.argv[1:] = ["train", "--seed", "1"]
        >>> command_line().endswith(" train --seed 1")
        True
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    # A module that `python -m` runs knows its own name; a package runs its __main__.
    module = spec.name.removesuffix(".__main__") if spec else ""
    program = f"python -m {module}" if module and module != __package__ else "oblique-clip"
    return shlex.join([*program.split(), *sys.argv[1:]])


def _run(args: list[str]) -> None:
    if not args or args[0] not in VERBS:
        found = f"unknown verb {args[0]!r}" if args else "a verb is missing"
        raise UserError(f"{found}; there is {', '.join(VERBS)}")
    commands: Any = importlib.import_module(".commands", __package__)
    getattr(commands, args[0])(args[1:])


def _guarded(work: Callable[[], None]) -> int:
    """Do the work; what a user did wrong becomes one line and an exit status."""
    try:
        work()
    except UserError as error:
        return _fail(str(error))
    except (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
        return _fail(f"{error.strerror}: {error.filename}")
    except BrokenPipeError:
        # The reader has left, as in `| head`; what Python would flush at exit has no place to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return _fail(f"{error.strerror}: {str(error.filename)[:60]}...")
    except KeyboardInterrupt as stop:
        print(f"oblique-clip: {stop if stop.args else 'interrupted'}", file=sys.stderr)
        # A run that has stopped in good order knows the signal that asked for it.
        return int(getattr(stop, "status", 130))
    return 0


def _fail(message: str) -> int:
    print(f"oblique-clip: {' '.join(message.split())}", file=sys.stderr)
    return 2
