"""Furniture, fantasy units and electronic parts: pictures whose texts lie in other files."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from .captions import clean, slug
from .clipart import files, plain, read_loose
from .packages import Raw
from .sample import Found, Sample, Skip

# Library file -> licence, as the package's copyright file gives them.
FURNITURE = {
    "BlendSwap-CC-0": "CC0-1.0",
    "BlendSwap-CC-BY": "CC-BY-3.0",
    "KatorLegaz": "CC-BY-3.0",
    "Reallusion": "CC-BY-3.0",
    "Scopia": "CC-BY-3.0",
}
LONGEST_DESCRIPTION = 300


def sweethome3d(raw: Raw, package: str) -> Found:
    """Sweet Home 3D's furniture: the catalogue's small renderings, names and tags."""
    folder = raw.apt(package) / "usr" / "share" / "sweethome3d" / "furniture"
    for library, licence in FURNITURE.items():
        with zipfile.ZipFile(folder / f"{library}.sh3f") as archive:
            catalogue = read_properties(archive.read("PluginFurnitureCatalog.properties"))
            present = set(archive.namelist())
            numbers = (key.removeprefix("name#") for key in catalogue if key.startswith("name#"))
            for number in numbers:
                icon = catalogue.get(f"icon#{number}", "").lstrip("/")
                if icon not in present:
                    yield Skip("no picture")
                    continue
                caption = clean(catalogue[f"name#{number}"]).lower()
                tags = (tag.strip().lower() for tag in catalogue.get(f"tags#{number}", "").split(","))
                yield Sample(
                    key=f"{library}/{number}",
                    picture=archive.read(icon),
                    caption=caption,
                    concept=re.sub(r"\s*\d+$", "", caption),
                    # Some tags only name the site that the model came from.
                    keywords=tuple(tag for tag in tags if tag and "swap" not in tag),
                    group=catalogue.get(f"category#{number}", ""),
                    crop=True,
                    licence=licence,
                )


def read_properties(data: bytes) -> dict[str, str]:
    """A Java properties file without continued lines: Latin-1 with backslash-u escapes."""
    table: dict[str, str] = {}
    for line in data.decode("latin-1").splitlines():
        key, sign, value = line.partition("=")
        if sign and not line.startswith("#"):
            table[key.strip()] = value.strip().encode("latin-1").decode("unicode_escape")
    return table


def wesnoth(raw: Raw, package: str) -> Found:
    """Battle for Wesnoth's units: the sprite and the portrait of each, the unit's name as caption."""
    core = raw.apt(package) / "usr" / "share" / "games" / "wesnoth" / "1.16" / "data" / "core"
    images = core / "images"
    seen: set[Path] = set()
    for relative in files(core / "units", ".cfg"):
        path = core / "units" / relative
        unit = read_loose(path)
        # A name may carry a note for translators before a caret.
        name = attribute(unit, "name").lower().split("^")[-1]
        if not name:
            yield Skip("file without a unit")
            continue
        race = attribute(unit, "race")
        text = re.search(r'description\s*=\s*_\s*"([^"]*)"', unit)
        for kind, picture in unit_pictures(unit, images):
            if picture is None or picture in seen:
                yield Skip("no picture of its own")
                continue
            seen.add(picture)
            yield Sample(
                key=f"{kind}/{slug(name)}-{picture.stem}",
                picture=picture.read_bytes(),
                caption=name,
                concept=name,
                keywords=(race, path.parent.name),
                description=clean(text[1])[:LONGEST_DESCRIPTION] if text else "",
                group=kind,
                subgroup=race,
                crop=True,
            )


def attribute(unit: str, name: str) -> str:
    """The first value of `name` in a Wesnoth file: `name= _ "Elvish Archer"`; empty when it is not set."""
    found = re.search(rf'^\s*{name}\s*=\s*_?\s*"?([^"\n]*)', unit, re.MULTILINE)
    return clean(found[1]) if found else ""


def unit_pictures(unit: str, images: Path) -> Iterator[tuple[str, Path | None]]:
    """The files of a unit's sprite and portrait; what follows a tilde only asks for other colours."""
    yield "sprite", existing(images, attribute(unit, "image").split("~")[0])
    portrait = attribute(unit, "profile").split("~")[0]
    if not portrait.startswith("portraits"):
        portrait = f"portraits/{portrait}"
    found = existing(images, portrait)
    if found is None and portrait.endswith((".png", ".webp")):
        # The game also looks for portraits in the folders of its image path.
        found = next(iter(sorted((images / "portraits").rglob(Path(portrait).name))), None)
    yield "portrait", found


def existing(images: Path, name: str) -> Path | None:
    """The path of a picture, if there is such a file."""
    # Macros of the game's language, in braces, are not expanded here and can be too long for a file name.
    path = images / name
    return path if "{" not in name and path.is_file() else None


def fritzing(raw: Raw, package: str) -> Found:
    """Fritzing's electronic parts as they look on a breadboard; the texts come from the part files."""
    parts = raw.apt(package) / "usr" / "share" / "fritzing" / "parts"
    seen: set[Path] = set()
    for path in [*sorted((parts / "core").glob("*.fzp")), *sorted((parts / "contrib").glob("*.fzp"))]:
        try:
            part = ElementTree.parse(path).getroot()
        except ElementTree.ParseError:
            yield Skip("malformed part file")
            continue
        layers = part.find("./views/breadboardView/layers")
        image = layers.get("image", "") if layers is not None else ""
        drawing = parts / "svg" / path.parent.name / image
        title = clean(part.findtext("title"))
        if not image.endswith(".svg") or not drawing.is_file() or not title:
            yield Skip("no drawing or title")
            continue
        if drawing in seen:
            yield Skip("drawing of another part")
            continue
        seen.add(drawing)
        yield fritzing_sample(path.stem, read_loose(drawing), title, part)


def fritzing_sample(key: str, markup: str, title: str, part: ElementTree.Element) -> Sample:
    """The sample of one part."""
    families = (item.text for item in part.iter("property") if item.get("name") == "family" and item.text)
    tags = (tag.text for tag in part.iter("tag") if tag.text and "fritzing" not in tag.text)
    description = plain(re.sub(r"&\w+;", " ", part.findtext("description") or ""))
    return Sample(
        key=key,
        picture=markup,
        caption=title,
        concept=title.lower(),
        keywords=tuple(clean(tag) for tag in tags),
        description=description[:LONGEST_DESCRIPTION],
        group=clean(next(families, "")),
        crop=True,
    )
