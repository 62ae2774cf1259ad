"""Monochrome icon packs, each with its own form of metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from .captions import words
from .iconify import black
from .packages import Raw, read_json
from .sample import Found, Sample, Skip

PHOSPHOR_STYLES = ("fill", "duotone")
PHOSPHOR_ENTRY = re.compile(
    r'readonly name: "(?P<name>[^"]+)".*?'
    r"figma_category: FigmaCategory\.(?P<category>\w+);\s*"
    r"readonly tags: readonly \[(?P<tags>.*?)\];",
    re.DOTALL,
)


def from_file(
    path: Path, key: str, caption: str, keywords: Iterable[str] = (), group: str = "", subgroup: str = ""
) -> Sample | Skip:
    """An icon whose caption is also its concept, or a Skip when its file is missing."""
    if not path.is_file():
        return Skip("no file in this style")
    markup = black(path.read_text(encoding="utf8"))
    return Sample(key, markup, caption, concept=caption, keywords=tuple(keywords), group=group, subgroup=subgroup)


def material(raw: Raw, package: str) -> Found:
    """Material Design Icons: aliases as keywords, first tag as group."""
    folder = raw.npm(package)
    for entry in read_json(folder / "meta.json"):
        name = entry["name"]
        group = (entry["tags"] or [""])[0]
        yield from_file(folder / "svg" / f"{name}.svg", name, words(name), map(words, entry["aliases"]), group)


def lucide(raw: Raw, package: str) -> Found:
    """Lucide: tags as keywords; files without tags are old names of others."""
    folder = raw.npm(package)
    tags = read_json(folder / "tags.json")
    for path in sorted((folder / "icons").glob("*.svg")):
        name = path.stem
        yield from_file(path, name, words(name), tags[name]) if name in tags else Skip("old name")


def tabler(raw: Raw, package: str) -> Found:
    """Tabler's outline icons, without brands."""
    folder = raw.npm(package)
    for name, entry in read_json(folder / "icons.json").items():
        if name.startswith("brand-"):
            yield Skip("brand")
            continue
        path = folder / "icons" / "outline" / f"{name}.svg"
        yield from_file(path, name, words(name), map(str, entry.get("tags", [])), entry.get("category", ""))


def phosphor(raw: Raw, package: str) -> Found:
    """Phosphor in two styles that differ at 64 pixels; its metadata is a TypeScript declaration."""
    folder = raw.npm(package)
    declarations = (folder / "dist" / "icons.d.ts").read_text(encoding="utf8")
    for entry in PHOSPHOR_ENTRY.finditer(declarations):
        name = entry["name"]
        # Tags such as *new* say when an icon came, not what it shows.
        tags = [tag for tag in re.findall(r'"([^"]+)"', entry["tags"]) if not tag.startswith("*")]
        for style in PHOSPHOR_STYLES:
            path = folder / "assets" / style / f"{name}-{style}.svg"
            yield from_file(path, f"{style}/{name}", words(name), tags, entry["category"].lower(), style)


def font_awesome(raw: Raw, package: str) -> Found:
    """Font Awesome's free solid icons: labels as captions, search terms as keywords."""
    folder = raw.npm(package)
    for name, entry in read_json(folder / "metadata" / "icon-families.json").items():
        path = folder / "svgs" / "solid" / f"{name}.svg"
        yield from_file(path, name, entry["label"].lower(), map(str, entry["search"]["terms"]))


def health(raw: Raw, package: str) -> Found:
    """Health Icons, filled: titles as captions; tags with a colon are identifiers of another system."""
    pictures = raw.npm(package) / "public" / "icons"
    for entry in read_json(pictures / "meta-data.json"):
        path = pictures / "svg" / "filled" / f"{entry['path']}.svg"
        caption = entry["title"].replace("_", " ").lower()
        tags = [tag.lower() for tag in entry["tags"] if ":" not in tag]
        yield from_file(path, entry["path"], caption, tags, entry["category"])


def carbon(raw: Raw, package: str) -> Found:
    """IBM's Carbon pictograms; the markup lies in the metadata."""
    for entry in read_json(raw.npm(package) / "metadata.json")["icons"]:
        if entry.get("deprecated") or not entry["assets"]:
            yield Skip("deprecated or without a picture")
            continue
        name = entry["name"]
        caption = (entry.get("friendlyName") or words(name)).lower()
        yield Sample(
            key=name,
            picture=black(entry["assets"][0]["source"]),
            caption=caption,
            concept=caption,
            keywords=tuple(alias for alias in entry.get("aliases", []) if alias != name),
            group=entry.get("category") or "",
        )
