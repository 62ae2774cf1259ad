"""Draws report.png, parts of the page of `oblique-clip report`, for the README.

    python -m experiments.idea.screenshot runs/ablate/report.html

It wants playwright and a Chromium.
"""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from oblique_clip.cli import run_script
from oblique_clip.errors import UserError

OUT = Path(__file__).with_name("report.png")
WIDTH, GAP, MARGIN = 1200, 6, 6
# The first and the last element of each part.
PARTS = (
    ("header", "#runs .scroll"),
    ("#training-title", "#curves .chart"),
    ("#retrieval-title", "[data-run='{run}'] .cards"),
    ("#map-canvas", "#map-canvas"),
)


@dataclass(frozen=True)
class ScreenshotConfig:
    """Draw parts of a report's page below each other."""

    page: Annotated[Path, tyro.conf.Positional]
    """report.html."""
    run: int = 2
    """Number of the run that is looked through, counted from 0."""


def screenshot(config: ScreenshotConfig) -> None:
    """Write `OUT`.

    Raises:
        UserError: where there is no page, or no browser.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None or not config.page.is_file():
        raise UserError(f"no such file: {config.page}" if browser else "no Chromium is installed")
    with sync_playwright() as started:
        page = started.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(
            viewport={"width": WIDTH, "height": 900}, color_scheme="light"
        )
        page.goto(config.page.resolve().as_uri())
        page.locator("#shown").select_option(str(config.run))
        page.locator("#map-canvas .point.is-right").first.dispatch_event("pointerenter")
        parts = [_part(page, first, last.format(run=config.run)) for first, last in PARTS]
    height = sum(part.height for part in parts) + GAP * (len(parts) - 1)
    whole, top = Image.new("RGB", (WIDTH, height), "#8a919c"), 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height + GAP
    whole.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(OUT, optimize=True)


def _part(page: Page, first: str, last: str) -> Image.Image:
    above, below = (page.locator(selector).first.bounding_box() for selector in (first, last))
    assert above is not None and below is not None
    top, bottom = above["y"] - MARGIN, below["y"] + below["height"] + MARGIN
    scrolled = page.evaluate("scrollY")
    clip = {"x": 0, "y": max(0, top + scrolled), "width": WIDTH, "height": bottom - max(top, -scrolled)}
    return Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))  # type: ignore[arg-type]


if __name__ == "__main__":
    run_script(screenshot, ScreenshotConfig, "python -m experiments.idea.screenshot")
