"""Cleans texts and gives every emoji its caption, keywords and place in the Unicode order."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .packages import Raw, read_json
from .sample import Sample, unique

# Packages whose `chars.json` maps code points to icon names.
NAMED_BY_CODE = (
    "@iconify-json/noto",
    "@iconify-json/twemoji",
    "@iconify-json/openmoji",
    "@iconify-json/fluent-emoji-flat",
)


def clean(text: str | None) -> str:
    """The text in NFC with single spaces; empty for None."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text or "")).strip()


def words(name: str) -> str:
    """A file or icon name as words: `credit-card_2` becomes `credit card 2`."""
    return clean(re.sub(r"[-_]+", " ", name))


def slug(text: str) -> str:
    """Lower-case ASCII letters and digits joined by hyphens; apostrophes vanish."""
    plain = unicodedata.normalize("NFKD", re.sub("['\N{RIGHT SINGLE QUOTATION MARK}]", "", text.lower()))
    return re.sub(r"[^a-z0-9]+", "-", plain.encode("ascii", "ignore").decode()).strip("-")


def squash(text: str) -> str:
    """A slug without its hyphens: some vendors write `whitemediumsquare`."""
    return slug(text).replace("-", "")


def without_number(name: str) -> str:
    """An icon name without the number that tells variants apart: `bird-2` becomes `bird`."""
    return re.sub(r"-\d+$", "", name)


def split_of(concept: str) -> str:
    """train, val or test (80/10/10) by a hash, so that a concept is in one split in every source."""
    digit = int(hashlib.md5(concept.encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "val"}.get(digit, "train")


def code_of(hexcode: str) -> str:
    """Code points as upper-case hex joined by hyphens, without the variation selector that some leave out."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


@dataclass(frozen=True)
class EmojiName:
    """The texts of one emoji; `concept` is the caption without skin tone."""

    caption: str
    concept: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    skin: bool = False

    def sample(self, key: str, picture: str | bytes) -> Sample:
        """A sample of this emoji as some vendor drew it."""
        return Sample(
            key=key,
            picture=picture,
            caption=self.caption,
            concept=self.concept,
            keywords=self.keywords,
            group=self.group,
            subgroup=self.subgroup,
            skin=self.skin,
        )


@dataclass(frozen=True)
class EmojiNames:
    """by_code: code points to texts; codes: every name that some vendor uses, to code points."""

    by_code: dict[str, EmojiName]
    codes: dict[str, str]

    def find(self, icon: str) -> EmojiName | None:
        """The emoji that an icon name means, trying the spellings that vendors use."""
        bare = without_number(icon)
        spellings = (
            icon,
            icon.replace("flag-for-flag-", "flag-"),
            icon.replace("flag-for-", "flag-"),
            squash(icon),
            "flag" + squash(icon),
            bare,
            squash(bare),
        )
        for spelling in spellings:
            found = self.by_code.get(self.codes.get(spelling, ""))
            if found:
                return found
        return None


@cache
def emoji_names(raw: Raw) -> EmojiNames:
    """The table of emoji: emojibase labels and tags, Unicode CLDR keywords, the vendors' names."""
    by_code = read_emojibase(raw.npm("emojibase-data"), read_cldr(raw.npm("cldr-annotations-full")))
    codes: dict[str, str] = {}
    # A name belongs to the first that claims it, so the vendors' own tables go before derived spellings.
    for package in NAMED_BY_CODE:
        for hexcode, name in read_json(raw.npm(package) / "chars.json").items():
            codes.setdefault(name, code_of(hexcode))
    for code, emoji in by_code.items():
        codes.setdefault(slug(emoji.caption), code)
        codes.setdefault(squash(emoji.caption), code)
    for entry in read_json(raw.npm("emoji-datasource-google") / "emoji.json"):
        code = code_of(entry["unified"])
        if code not in by_code:
            continue
        for name in (entry["name"], *entry["short_names"]):
            if name:
                codes.setdefault(slug(name), code)
                codes.setdefault(squash(name), code)
    return EmojiNames(by_code, codes)


def read_cldr(folder: Path) -> dict[str, list[str]]:
    """Emoji (without variation selector) to its English CLDR keywords."""
    table = read_json(folder / "annotations" / "en" / "annotations.json")["annotations"]["annotations"]
    return {emoji: entry.get("default", []) for emoji, entry in table.items()}


def read_emojibase(folder: Path, cldr: dict[str, list[str]]) -> dict[str, EmojiName]:
    """Code points to texts, skin-tone variants included."""
    order = read_json(folder / "meta" / "groups.json")
    table: dict[str, EmojiName] = {}
    for entry in read_json(folder / "en" / "data.json"):
        tags = entry.get("tags", []) + cldr.get(entry["emoji"].replace("\N{VARIATION SELECTOR-16}", ""), [])
        keywords = unique(clean(tag) for tag in tags)
        group = order["groups"].get(str(entry.get("group")), "component")
        subgroup = order["subgroups"].get(str(entry.get("subgroup")), "component")
        for variant in (entry, *entry.get("skins", [])):
            table[code_of(variant["hexcode"])] = EmojiName(
                caption=emoji_caption(variant["label"]),
                concept=clean(entry["label"]).lower(),
                keywords=keywords,
                group=group,
                subgroup=subgroup,
                skin=variant is not entry,
            )
    return table


def emoji_caption(label: str) -> str:
    """The label in lower case, but the names of countries on flags keep theirs."""
    return clean(label) if label.startswith("flag") else clean(label).lower()
