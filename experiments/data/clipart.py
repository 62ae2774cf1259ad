"""Clip art, stamps and word pictures from Debian packages."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .captions import clean, words
from .packages import Raw
from .rcc import members
from .sample import Found, Sample, Skip, unique

ICONS_FOLDER = "computer/icons/"
# Hundreds of drawings that differ in a number only.
OPENCLIPART_LEFT_OUT = ("shapes/stars/", "recreation/games/cards/")
OPENCLIPART_STOP = frozenset(
    ("clip_art", "clipart", "unsorted", "svg", "raster", "png", "image", "media", "theme", "public domain")
)
NO_TITLE = re.compile(
    r"^(untitled|unknown|drawing|svg|image|new document|clipart by|part of the)|\d\d:\d\d", re.IGNORECASE
)
LONGEST_TITLE = 120
# A title on more files than this names a collection, not a picture.
MOST_FILES_A_TITLE = 4

WORDS_FOLDER = "gcompris/src/activities/lang/resource/"


@dataclass(frozen=True)
class Metadata:
    """What an Open Clip Art file says about itself."""

    title: str
    description: str
    keywords: tuple[str, ...]


def files(folder: Path, suffix: str) -> list[str]:
    """Paths of the files below a folder with that suffix, relative to it and sorted as text."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{suffix}"))


def read_loose(path: Path) -> str:
    """The text of an old file whose encoding may be wrong in places."""
    return path.read_text(encoding="utf8", errors="replace")


def openclipart(raw: Raw, package: str, icons: bool = False) -> Found:
    """Open Clip Art: titles as captions, or file names where titles say nothing; its computer icons apart."""
    base = raw.apt(package) / "usr" / "share" / "openclipart" / "svg"
    chosen = [name for name in files(base, ".svg") if name.startswith(ICONS_FOLDER) == icons]
    chosen = [name for name in chosen if not (base / name).is_symlink()]
    chosen = [name for name in chosen if not name.startswith(OPENCLIPART_LEFT_OUT)]
    entries = {name: openclipart_metadata(read_loose(base / name)) for name in chosen}
    uses = Counter(entry.title.lower() for entry in entries.values())
    for name, entry in entries.items():
        *folders, file_name = name.removesuffix(".svg").split("/")
        title, description = entry.title, entry.description
        if not title or uses[title.lower()] > MOST_FILES_A_TITLE or NO_TITLE.search(title):
            title, description = words(strip_numbers(file_name)), ""
        if len(re.findall("[A-Za-z]", title)) < 3 or len(title) > LONGEST_TITLE:
            yield Skip("no usable title")
            continue
        yield Sample(
            key=name.removesuffix(".svg"),
            picture=read_loose(base / name),
            caption=title,
            concept=title.lower(),
            keywords=entry.keywords,
            # A description that only repeats the title adds nothing.
            description=description if len(description) > len(title) + 8 else "",
            group=folders[0],
            subgroup="/".join(folders[1:]),
            crop=True,
        )


def openclipart_metadata(markup: str) -> Metadata:
    """Title, description and keywords of an SVG file; searched as text, for many are not well-formed."""
    block = re.search(r"<metadata.*?</metadata>", markup, re.DOTALL)
    inside = block[0] if block else ""
    subject = element(inside, "subject")
    terms = unique(clean(term) for term in re.findall(r"<rdf:li[^>]*>(.*?)</rdf:li>", subject, re.DOTALL))
    keywords = [term for term in terms if term and term.lower() not in OPENCLIPART_STOP]
    title = html.unescape(plain(element(inside, "title"))).replace("_", " ")
    return Metadata(
        title=re.sub(r"[_\- ]*\d+$", "", title).strip(),
        description=html.unescape(plain(element(inside, "description"))),
        keywords=tuple(term for term in keywords if not term.lower().startswith("hash")),
    )


def element(markup: str, name: str) -> str:
    """The content of the first `dc:name` element, or nothing."""
    found = re.search(rf"<dc:{name}[^>]*>(.*?)</dc:{name}>", markup, re.DOTALL)
    return found[1] if found else ""


def plain(markup: str) -> str:
    """The text of a piece of markup."""
    return clean(re.sub(r"<[^>]+>", " ", markup))


def strip_numbers(name: str) -> str:
    """A file name without the numbers at its end: `ship_03b_` becomes `ship`."""
    return re.sub(r"([_\- ]*\d+)+[a-z]?_*$", "", name)


def tuxpaint(raw: Raw, package: str) -> Found:
    """Tux Paint's stamps, photographs among them: a sentence in a text file beside each."""
    base = raw.apt(package) / "usr" / "share" / "tuxpaint" / "stamps"
    for name in sorted(files(base, ".png") + files(base, ".svg")):
        path = base / name
        text = path.with_suffix(".txt")
        if re.search(r"_(mirror|flip)(_|\.|$)", name):
            yield Skip("mirrored copy")
            continue
        caption = clean(read_loose(text).partition("\n")[0]) if text.is_file() else ""
        if not caption:
            yield Skip("no caption")
            continue
        *folders, file_name = name.rpartition(".")[0].split("/")
        yield Sample(
            key=name.rpartition(".")[0],
            picture=read_loose(path) if path.suffix == ".svg" else path.read_bytes(),
            caption=caption,
            concept=caption.lower().rstrip("."),
            keywords=(words(file_name), *folders[1:]),
            group=folders[0],
            subgroup="/".join(folders[1:]),
            crop=True,
        )


def art4apps(raw: Raw, package: str) -> Found:
    """Art4Apps word pictures as pysiogame ships them: one word each, in folders by theme."""
    base = raw.apt(package) / "usr/share/games/pysiogame/res/images/art4apps"
    for path in sorted(base.glob("*/*.*")):
        caption = words(path.stem)
        group = path.parent.name
        yield Sample(f"{group}/{path.stem}", path.read_bytes(), caption, concept=caption.lower(), group=group)


def gcompris(raw: Raw, package: str) -> Found:
    """GCompris's sample of word pictures, packed as a Qt resource; its chapters are the groups."""
    archive = raw.apt(package) / "usr" / "share" / "gcompris-qt" / "rcc" / "lang.rcc"
    content = dict(members(archive, WORDS_FOLDER))
    chapters = read_chapters(content)
    for name in sorted(content):
        folder, _, file_name = name.rpartition("/")
        if folder != "words_sample" or not file_name.endswith(".webp"):
            continue
        word = file_name.removesuffix(".webp")
        caption = words(word)
        yield Sample(word, content[name], caption, concept=caption, group=chapters.get(word, ""), crop=True)


def read_chapters(content: dict[str, bytes]) -> dict[str, str]:
    """Picture name to the chapter that teaches it, from GCompris's `words_sample.json`."""
    table: dict[str, str] = {}
    for chapter in json.loads(content["words_sample.json"]):
        for lesson in chapter.get("content", []):
            for item in lesson.get("content", []):
                table[Path(item["image"]).stem] = chapter["name"]
    return table
