"""HTML from the templates beside this file: every text is escaped, style and script are part of the one file."""

from __future__ import annotations

import base64
import hashlib
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

HERE = Path(__file__).parent
# Parts of the one script, in this order; each does nothing on a page without its section.
SCRIPTS = ("helpers", "theme", "tables", "pictures", "curves", "spread", "map")


def render(template: str, **values: Any) -> str:
    """A whole page.

    Args:
        template: a file beside this one.
        values: what it speaks of. Texts are escaped, also within the JSON that the script reads.

    Examples:
        >>> from oblique_clip.page.render import render
        >>> nothing = {"missing": 0, "findings": [], "pictures": [], "tables": []}
        >>> page = render("answer.html.jinja", title="1 < 2?", command="compare 1 2", **nothing)
        >>> "<h1>1 &lt; 2?</h1>" in page
        True
    """
    style, script = _style(), _script()
    return environment().get_template(template).render(
        style=Markup(style), script=Markup(script), policy=_policy(style, script), **values
    )  # fmt: skip


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Jinja's, as the templates want it."""
    made = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # JSON that a browser reads: a NaN in it would be an error there, and is one here.
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return made


def data_address(content: bytes, kind: str) -> str:
    """A picture as the address of an <img>."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def picture_address(pixels: Any) -> str:
    """Pixels (H, W, 3), uint8, as the address of an <img>; a shipped picture of 64 x 64 takes about 0.9 kB."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=75, method=6)
    return data_address(file.getvalue(), "webp")


def _style() -> str:
    return (HERE / "style.css").read_text(encoding="utf-8")


def _script() -> str:
    parts = [(HERE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return "\n".join(['"use strict";', "(() => {", *parts, "})();"])


def _policy(style: str, script: str) -> str:
    """A content security policy: nothing is fetched, and no other style or script than these is obeyed."""
    return f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
