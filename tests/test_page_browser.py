"""The page of finished runs, as a person uses it: in Chromium, by pointer and by keyboard, wide and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from made_runs import make_run
from matplotlib.figure import Figure

from oblique_clip.config import read_json
from oblique_clip.data.emoji import EmojiSet, load_emoji
from oblique_clip.page import family, write

playwright = pytest.importorskip("playwright.sync_api", reason="the page is tried where playwright is installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine; .ci/run installs it as root")

SCRIPT = "<script>alert(1)</script>"
RUNS = {"sphere": ("tiny-sphere", 0.08), "oblique": ("tiny-oblique", 0.1), f"kept {SCRIPT}": (None, 0.012)}
WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 375, "height": 700}


WORST_CONTRAST = """() => {
    const parse = (colour) => {
        const scale = colour.startsWith("color(") ? 255 : 1;
        const [r, g, b, alpha = 1] = colour.replace("srgb", "").match(/[-.\\de]+/g).slice(-4).map(Number);
        return { rgb: [r, g, b].map((v) => scale * v), alpha };
    };
    const over = (top, below) => top.rgb.map((v, i) => top.alpha * v + (1 - top.alpha) * below[i]);
    const behind = (element) => {
        const own = parse(getComputedStyle(element).backgroundColor);
        return own.alpha === 1 || !element.parentElement ? own.rgb : over(own, behind(element.parentElement));
    };
    const light = (rgb) => rgb.map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    let worst = [21, ""];
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const empty = !walker.currentNode.textContent.trim();
        if (empty || element.closest("script, svg") || !element.checkVisibility()) continue;
        const below = behind(element);
        const text = over(parse(getComputedStyle(element).color), below);
        const [high, low] = [light(text), light(below)].sort((a, b) => b - a);
        const contrast = (high + 0.05) / (low + 0.05);
        if (contrast < worst[0]) worst = [contrast, element.outerHTML.slice(0, 200)];
    }
    return worst;
}"""
FAULTS = """() => {
    const all = (selector) => [...document.querySelectorAll(selector)];
    const levels = all("h1, h2, h3, h4").filter((e) => e.checkVisibility()).map((e) => Number(e.tagName[1]));
    const ids = all("[id]").map((e) => e.id);
    const named = (e) => e.getAttribute("aria-label") || e.textContent.trim() || (e.labels && e.labels.length);
    const interactive = all("button, input, select, a, [role=img], [role=region], [role=group]");
    return {
        lang: document.documentElement.lang,
        first: levels.filter((level) => level === 1).length,
        skipped: levels.filter((level, i) => i && level > levels[i - 1] + 1),
        pictures: all("img").filter((e) => !e.alt || !e.src.startsWith("data:")).length,
        unnamed: interactive.filter((e) => !named(e)).length,
        twice: ids.filter((id, i) => ids.indexOf(id) !== i),
        targets: all("a[href^='#']").filter((e) => !document.querySelector(e.getAttribute("href"))).length,
        headless: all("table").filter((e) => !e.querySelector("th[scope=col]") || !e.querySelector("th[scope=row]"))
            .length,
    };
}"""
STOP = """() => {
    const one = document.activeElement;
    if (one === document.body) return null;
    const name = one.id || one.getAttribute("aria-label") || one.textContent.trim();
    const seen = getComputedStyle(one).outlineStyle !== "none" || one.matches(".point");
    return [name, seen, one.getBoundingClientRect().top + scrollY];
}"""


def few() -> EmojiSet:
    """Fluent's pictures of sixty names, one of which is a script."""
    whole = load_emoji().of_families(("emoji-fluent",))
    names = sorted({record.concept for record in whole.records})[::27]
    test = whole.select(np.array([record.concept in names for record in whole.records]))
    records = (replace(one, caption=SCRIPT) if one.concept == names[3] else one for one in test.records)
    return EmojiSet(tuple(records), test.pixels, test.rows)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the page of two shipped models and of a run of which the results alone are kept is."""
    folder = tmp_path_factory.mktemp("runs")
    runs = {name: make_run(folder / str(i), *what) for i, (name, what) in enumerate(RUNS.items())}
    results = {name: read_json(run / "result.json") for name, run in runs.items()}
    with pytest.MonkeyPatch.context() as patch:
        test = few()
        for figure in ("draw_curves", "draw_retrieval"):  # for print, which takes seconds
            patch.setattr(write, figure, lambda *parts: Figure((1, 1)))
        patch.setattr(family, "split_emoji", lambda data: SimpleNamespace(test=test))
        page = write.write_page(folder, runs, results, {name: {"projection": name} for name in runs})
    return page.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, opened wide; nothing may go wrong in it, ask for anything, or reach out for anything."""
    context = browser.new_context(viewport=WIDE, color_scheme="light")
    opened, wrong = context.new_page(), []
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    opened.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else wrong.append(request.url)
    )
    opened.goto(address)
    opened.locator("#curves path").first.wait_for()
    yield opened
    context.close()
    assert not wrong


def names(page: Any) -> list[str]:
    """Runs in the order of the table, without those filtered away."""
    return list(page.locator("#runs-table tbody tr:visible th").all_inner_texts())


def heading(page: Any, name: str) -> Any:
    return page.locator("#runs-table").get_by_role("button", name=name, exact=True)


def test_headings_sort_by_click_and_by_keyboard_numbers_as_numbers(page: Any) -> None:
    sphere, oblique, kept = RUNS
    assert names(page) == [sphere, oblique, kept]
    top1 = heading(page, "held-out family, %: top-1")
    top1.click()  # 10.00, 8.00, 1.20, which as texts would be 8, 10, 1.2
    assert names(page) == [oblique, sphere, kept]
    cell = page.locator("#runs-table th[aria-sort=descending]")
    assert cell.inner_text() == "top-1"
    top1.focus()
    page.keyboard.press("Enter")
    assert names(page) == [kept, sphere, oblique]
    assert page.locator("#runs-table th[aria-sort=ascending]").inner_text() == "top-1"
    heading(page, "run").focus()
    page.keyboard.press("Space")
    assert names(page) == [kept, oblique, sphere]
    assert page.locator("#runs-table th[aria-sort=descending]").count() == 0


def test_a_filter_leaves_the_rows_that_have_all_its_words(page: Any) -> None:
    page.get_by_label("Show rows with").fill("OBLIQUE(16,8) 0.10 10.00")
    assert names(page) == []
    page.get_by_label("Show rows with").fill("oblique 10.00")
    assert names(page) == ["oblique"]
    assert page.locator("#runs-table-filter + output").inner_text() == "1 of 3 rows"
    page.get_by_label("Show rows with").fill("")
    assert len(names(page)) == 3


def test_the_legend_hides_a_run_in_every_chart_and_shows_it_again(page: Any) -> None:
    charts = page.locator("#curves .chart").count()
    button = page.locator("#legend").get_by_role("button", name="oblique", exact=True)
    for pressed, lines in (("true", charts), ("false", 0), ("true", charts)):
        assert button.get_attribute("aria-pressed") == pressed
        assert page.locator("#curves path[data-line='1']").count() == lines
        assert page.locator("#curves path[data-line='0']").count() == charts
        button.press("Enter")
    dashes = (
        page.locator("#curves .chart")
        .first.locator("path[data-line]")
        .evaluate_all("lines => lines.map(line => line.getAttribute('stroke-dasharray'))")
    )
    assert len(set(dashes)) == len(dashes)  # they differ in grey as well


def test_charts_are_read_by_pointer_and_by_keyboard(page: Any) -> None:
    chart = page.locator("#curves .chart", has_text="Scale of the logits")
    chart.locator("svg").hover()
    tip = chart.get_by_role("status")
    assert "step" in tip.inner_text() and "oblique: " in tip.inner_text()
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    chart.get_by_role("img").focus()
    page.keyboard.press("ArrowRight")
    before = tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert tip.inner_text() != before
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    histogram = page.locator("#spreads .chart").first
    histogram.locator("svg").hover()
    assert "own name (solid)" in histogram.get_by_role("status").inner_text()


def test_the_map_shows_a_picture_under_the_pointer_and_by_arrow_keys(page: Any) -> None:
    found, points = page.locator("#map-picture"), page.locator("#map-canvas .point")
    assert points.count() > 100
    page.locator("#map-canvas").scroll_into_view_if_needed()
    last = page.locator("#map-canvas .point").last  # drawn last, so that nothing covers it
    last.hover(position={"x": 8, "y": 8})
    caption = last.get_attribute("aria-label").split("; taken for")[0]
    assert found.locator(".name").inner_text() == caption
    assert found.locator("img").evaluate("image => image.naturalWidth") == 64
    page.locator("#map-filter").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('class')").startswith("point")
    seen = set()
    for key in ("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown") * 2:
        page.keyboard.press(key)
        focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert focused.startswith(found.locator(".name").inner_text())
        seen.add(focused)
    assert len(seen) > 2
    assert page.locator("#map-canvas [tabindex='0']").count() == 1


def test_a_caption_stays_text_wherever_it_is_shown(page: Any) -> None:
    """No dialog has opened by the end, which the fixture watches."""
    own = page.locator(f"#map-canvas [aria-label^='{SCRIPT}']")
    assert own.count() == 3
    own.first.dispatch_event("pointerenter")
    assert page.locator("#map-picture .name").inner_text() == SCRIPT
    assert page.locator(f"#map-picture img[alt='{SCRIPT}']").count() == 1
    page.get_by_label("Highlight captions with").fill("<SCRIPT>")
    assert page.locator("#map-canvas .point:not(.faint)").count() == 3
    assert page.locator("script").count() == 2


def test_another_run_is_looked_through_by_the_chooser(page: Any) -> None:
    ranks = page.locator("#retrieval .rank:visible")
    labels = "points => points.map(point => point.getAttribute('aria-label')).join()"
    before = ranks.all_inner_texts(), page.locator("#map-canvas .point").evaluate_all(labels)
    page.get_by_label("Below, look through").select_option(label="oblique: oblique(16,8)")
    after = ranks.all_inner_texts(), page.locator("#map-canvas .point").evaluate_all(labels)
    assert len(before[0]) == len(after[0]) and before[0] != after[0] and before[1] != after[1]
    assert "oblique(16,8)" in page.locator("#map p:visible").first.inner_text()
    assert page.locator("#retrieval .right:visible").count() > 2  # the shipped model knows some of sixty names
    assert page.get_by_text(f"kept {SCRIPT} is without a checkpoint").is_visible()


def test_colours_follow_the_system_and_the_button(page: Any) -> None:
    shade = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((sum, n) => sum + Number(n), 0)"
    light = page.evaluate(shade)
    page.get_by_role("button", name="Dark colours").click()
    assert page.evaluate(shade) < 200 < 600 < light
    page.reload()
    page.get_by_role("button", name="Light colours").click()  # it was remembered
    assert page.evaluate(shade) == light
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(shade) == light  # the button outweighs the system
    page.evaluate("localStorage.clear()")
    page.reload()
    assert page.evaluate(shade) < 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(page: Any, scheme: str) -> None:
    """WCAG's contrast of 4.5 between every text and the colours behind it, the cells of heat maps among them."""
    page.emulate_media(color_scheme=scheme)
    contrast, where = page.evaluate(WORST_CONTRAST)
    assert contrast >= 4.5, where


def test_a_phone_shows_it_without_scrolling_sideways(page: Any) -> None:
    page.set_viewport_size(PHONE)
    for run in ("0", "1"):
        page.locator("#shown").select_option(run)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    wide = page.locator("#runs-table").evaluate("table => [table.offsetWidth, table.parentElement.clientWidth]")
    assert wide[0] > wide[1]  # what is wider scrolls within its own box
    assert page.locator("#runs .scroll").first.evaluate("box => getComputedStyle(box).overflowX") == "auto"
    chart = page.locator("#curves svg").first
    assert chart.evaluate("svg => svg.getBoundingClientRect().width") < PHONE["width"]


def test_it_is_built_for_readers_of_every_kind(page: Any) -> None:
    """What assistive tools rely on: a language, one h1 and no level left out, names for all, no id twice."""
    assert page.evaluate(FAULTS) == {
        "lang": "en", "first": 1, "skipped": [], "pictures": 0, "unnamed": 0, "twice": [], "targets": 0, "headless": 0,
    }  # fmt: skip


def test_the_keyboard_reaches_everything_and_its_place_is_seen(page: Any) -> None:
    """From the first stop of the Tab key to the last, each with an outline, in the order of the page."""
    stops: list[tuple[str, bool, float]] = []
    while len(stops) < 200:
        page.keyboard.press("Tab")
        if (stop := page.evaluate(STOP)) is None:
            break
        stops.append(tuple(stop))
    reached, seen, places = zip(*stops, strict=True)
    assert all(seen), stops
    assert reached[0] == "Skip to the content"
    assert {"theme", "Runs", "Map", "runs-table-filter", "oblique", "shown", "map-filter"} <= set(reached)
    assert any(name.endswith(("right", "wrong")) for name in reached)  # a picture on the map
    # Those of one line need not be at one height.
    assert all(after > before - 60 for before, after in pairwise(places[1:]))
