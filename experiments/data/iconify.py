"""Emoji of several vendors and icon packs, most of them in Iconify's JSON form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .captions import EmojiName, code_of, emoji_names, slug, without_number, words
from .packages import Raw, read_json
from .sample import Found, Sample, Skip

FLAGS = ("country-flag", "subdivision-flag")


def markup_of(icon: dict[str, Any], pack: dict[str, Any]) -> str:
    """An icon's body as a whole SVG document in black; measures that the icon lacks are its pack's."""

    def measure(name: str, default: float) -> float:
        return float(icon.get(name, pack.get(name, default)))

    left, top = measure("left", 0), measure("top", 0)
    width, height = measure("width", 16), measure("height", 16)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">'
        f"{black(icon['body'])}</svg>"
    )


def black(markup: str) -> str:
    """Monochrome icons take the page's text colour: here black."""
    return markup.replace("currentColor", "#000")


def categories(folder: Path) -> dict[str, list[str]]:
    """Icon name to the categories that hold it, in the pack's order."""
    table: dict[str, list[str]] = {}
    for category, icons in (read_json(folder / "metadata.json").get("categories") or {}).items():
        for icon in icons:
            table.setdefault(icon, []).append(category)
    return table


def emoji(raw: Raw, package: str, extras: bool = False) -> Found:
    """The emoji of one vendor, each named by its code points or, failing that, by its icon name.

    With `extras`, icons that are no Unicode emoji are kept under their own names.
    """
    names = emoji_names(raw)
    folder = raw.npm(package)
    pack = read_json(folder / "icons.json")
    codes = {icon: code_of(hexcode) for hexcode, icon in read_json(folder / "chars.json").items()}
    places = categories(folder)
    for icon, entry in pack["icons"].items():
        if entry.get("hidden"):
            yield Skip("hidden in its package")
            continue
        name = names.by_code.get(codes.get(icon, "")) or names.find(icon)
        if name is None and extras and icon in places:
            name = EmojiName(words(icon), words(icon), (), "openmoji-extra", slug(places[icon][-1]))
        yield name.sample(icon, markup_of(entry, pack)) if name else Skip("not a Unicode emoji")


def fluent_3d(raw: Raw, package: str) -> Found:
    """Microsoft's rendered emoji, files named by code points; its flags are another vendor's and left out."""
    names = emoji_names(raw)
    for path in sorted((raw.npm(package) / "assets").glob("*.webp")):
        name = names.by_code.get(code_of(path.stem))
        if name is None:
            yield Skip("not a Unicode emoji")
        elif name.subgroup in FLAGS:
            yield Skip("flag")
        else:
            yield name.sample(path.stem, path.read_bytes())


def openmoji_black(raw: Raw, package: str) -> Found:
    """OpenMoji's line drawings, without skin tones and flags, which lines alone do not tell apart."""
    names = emoji_names(raw)
    for path in sorted((raw.npm(package) / "black" / "svg").glob("*.svg")):
        name = names.by_code.get(code_of(path.stem))
        if name is None:
            yield Skip("not a Unicode emoji")
        elif name.skin or name.group == "flags":
            yield Skip("skin tone or flag")
        else:
            yield name.sample(path.stem, path.read_text(encoding="utf8"))


def icons(raw: Raw, package: str, numbered: bool = False) -> Found:
    """An icon pack whose names are its only texts.

    With `numbered`, a number at the end tells sizes or variants of one icon apart; the last of them is taken.
    """
    folder = raw.npm(package)
    pack = read_json(folder / "icons.json")
    places = categories(folder)
    seen: set[str] = set()
    for icon in sorted(pack["icons"], reverse=numbered):
        caption = words(without_number(icon) if numbered else icon)
        if numbered and caption in seen:
            yield Skip("another size or variant")
            continue
        seen.add(caption)
        markup = markup_of(pack["icons"][icon], pack)
        yield Sample(icon, markup, caption, concept=caption, group=places.get(icon, [""])[0])
