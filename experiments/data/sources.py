"""The table of sources: where each comes from, under which licence, and the function that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from . import clipart, games, iconify, icons
from .packages import NPM, DataError, Raw, read_json
from .sample import Found

PUBLIC_DOMAIN = "Public-Domain"


@dataclass(frozen=True)
class Source:
    """Where a source is read from. family: sources that share artwork have one name; mono: black drawings."""

    package: str
    family: str
    licence: str
    read: Callable[[Raw, str], Found]
    mono: bool = False

    def found(self, raw: Raw) -> Found:
        """Its samples, and the skips with their causes, always in the same order."""
        self.check_licence(raw)
        return self.read(raw, self.package)

    def check_licence(self, raw: Raw) -> None:
        """Raises DataError when a fetched npm package declares another licence than this table does."""
        if self.package in NPM:
            declared = read_json(raw.npm(self.package) / "package.json").get("license", "none")
            if self.licence not in declared:
                raise DataError(f"{self.package} declares the licence {declared}, not {self.licence}")


NUMBERED = partial(iconify.icons, numbered=True)

SOURCES: dict[str, Source] = {
    "noto": Source("@iconify-json/noto", "emoji-noto", "Apache-2.0", iconify.emoji),
    "noto-v1": Source("@iconify-json/noto-v1", "emoji-noto", "Apache-2.0", iconify.emoji),
    "twemoji": Source("@iconify-json/twemoji", "emoji-twemoji", "CC-BY-4.0", iconify.emoji),
    "openmoji": Source("@iconify-json/openmoji", "emoji-openmoji", "CC-BY-SA-4.0", partial(iconify.emoji, extras=True)),
    "openmoji-black": Source("openmoji", "emoji-openmoji", "CC-BY-SA-4.0", iconify.openmoji_black, mono=True),
    "fluent-color": Source("@iconify-json/fluent-emoji", "emoji-fluent", "MIT", iconify.emoji),
    "fluent-flat": Source("@iconify-json/fluent-emoji-flat", "emoji-fluent", "MIT", iconify.emoji),
    "fluent-3d": Source("@lobehub/fluent-emoji-3d", "emoji-fluent", "MIT", iconify.fluent_3d),
    "emojione": Source("@iconify-json/emojione", "emoji-emojione", "CC-BY-4.0", iconify.emoji),
    "emojione-v1": Source("@iconify-json/emojione-v1", "emoji-emojione", "CC-BY-SA-4.0", iconify.emoji),
    "fxemoji": Source("@iconify-json/fxemoji", "emoji-fxemoji", "Apache-2.0", iconify.emoji),
    "streamline-emojis": Source("@iconify-json/streamline-emojis", "emoji-streamline", "CC-BY-4.0", iconify.emoji),
    "openclipart": Source("openclipart-svg", "openclipart", PUBLIC_DOMAIN, clipart.openclipart),
    "openclipart-icons": Source(
        "openclipart-svg", "openclipart", PUBLIC_DOMAIN, partial(clipart.openclipart, icons=True)
    ),
    "tuxpaint": Source("tuxpaint-stamps-default", "tuxpaint", "GPL-2.0", clipart.tuxpaint),
    "art4apps": Source("pysiogame", "art4apps", "CC-BY-SA-3.0", clipart.art4apps),
    "gcompris": Source("gcompris-qt-data", "art4apps", "CC-BY-SA-3.0", clipart.gcompris),
    # The libraries differ: CC-BY-3.0 or CC0-1.0, given with each sample.
    "sweethome3d": Source("sweethome3d-furniture", "sweethome3d", "CC-BY-3.0", games.sweethome3d),
    "wesnoth": Source("wesnoth-1.16-data", "wesnoth", "GPL-2.0+", games.wesnoth),
    "fritzing": Source("fritzing-parts", "fritzing", "CC-BY-SA-3.0", games.fritzing),
    "icons-game": Source("@iconify-json/game-icons", "icons-game-icons", "CC-BY-3.0", iconify.icons, mono=True),
    "icons-iconpark": Source("@iconify-json/icon-park", "icons-icon-park", "Apache-2.0", iconify.icons),
    "icons-flatcolor": Source("@iconify-json/flat-color-icons", "icons-flat-color-icons", "MIT", iconify.icons),
    "icons-freehand": Source(
        "@iconify-json/streamline-freehand-color", "icons-streamline-freehand-color", "CC-BY-4.0", NUMBERED
    ),
    "icons-ultimate": Source(
        "@iconify-json/streamline-ultimate-color", "icons-streamline-ultimate-color", "CC-BY-4.0", NUMBERED
    ),
    "icons-fluentcolor": Source("@iconify-json/fluent-color", "icons-fluent-color", "MIT", NUMBERED),
    "icons-mdi": Source("@mdi/svg", "icons-mdi", "Apache-2.0", icons.material, mono=True),
    "icons-lucide": Source("lucide-static", "icons-lucide", "ISC", icons.lucide, mono=True),
    "icons-tabler": Source("@tabler/icons", "icons-tabler", "MIT", icons.tabler, mono=True),
    "icons-phosphor": Source("@phosphor-icons/core", "icons-phosphor", "MIT", icons.phosphor, mono=True),
    "icons-fontawesome": Source(
        "@fortawesome/fontawesome-free", "icons-fontawesome", "CC-BY-4.0", icons.font_awesome, mono=True
    ),
    "icons-health": Source("healthicons", "icons-health", "MIT", icons.health, mono=True),
    "icons-carbon": Source("@carbon/pictograms", "icons-carbon", "Apache-2.0", icons.carbon, mono=True),
}
