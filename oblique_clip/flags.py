"""Flags to configuration dataclasses, through tyro; its framed complaints become one line."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

import tyro

from .errors import UserError


def parse(kind: Any, program: str, args: list[str], default: Any = None) -> Any:
    """A configuration dataclass from flags, tyro's table of options where help is asked for.

    Raises:
        UserError: tyro's complaint, in one line.
    """
    options = {} if default is None else {"default": default}
    markers = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, prog=program, args=args, config=markers, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{_one_line(complaint.getvalue())} (see {program} --help)") from stop


def _one_line(panel: str) -> str:
    """The first paragraph of tyro's framed complaint, and the flags that it suggests."""
    lines = [line.strip("│ ").strip() for line in panel.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = re.split(r"\n[─-]{3,}\n", "\n".join(lines))
    # Where the terminal has no letters for a frame, its title is a paragraph too.
    paragraphs = paragraphs if "╭" in panel else paragraphs[1:]
    suggested = re.findall(r"^--[\w-]+", paragraphs[1] if len(paragraphs) > 1 else "", re.M)
    hint = f"; perhaps you meant {', '.join(dict.fromkeys(suggested))}" if "meant" in panel and suggested else ""
    return " ".join(paragraphs[0].split()) + hint
