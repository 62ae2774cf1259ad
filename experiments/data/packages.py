"""The packages that the pictures and names come from, and where each lies once fetched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Name and the version that the figures in the README were measured with; `fetch --latest` ignores it.
NPM: dict[str, str] = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/openmoji": "1.2.29",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/emojione-v1": "1.2.3",
    "@iconify-json/fxemoji": "1.2.2",
    "@iconify-json/streamline-emojis": "1.2.4",
    "@iconify-json/game-icons": "1.2.4",
    "@iconify-json/icon-park": "1.2.4",
    "@iconify-json/flat-color-icons": "1.2.3",
    "@iconify-json/streamline-freehand-color": "1.2.2",
    "@iconify-json/streamline-ultimate-color": "1.2.2",
    "@iconify-json/fluent-color": "1.2.21",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "openmoji": "17.0.0",
    "emojibase-data": "17.0.0",
    "cldr-annotations-full": "48.2.0",
    "emoji-datasource-google": "16.0.0",
    "@mdi/svg": "7.4.47",
    "lucide-static": "1.62.0",
    "@tabler/icons": "3.51.0",
    "@phosphor-icons/core": "2.1.1",
    "@fortawesome/fontawesome-free": "7.3.1",
    "healthicons": "2.0.0",
    "@carbon/pictograms": "12.82.0",
}

# A Debian archive holds one version at a time, so these are not pinned.
APT: tuple[str, ...] = (
    "openclipart-svg",
    "tuxpaint-stamps-default",
    "pysiogame",
    "gcompris-qt-data",
    "sweethome3d-furniture",
    "wesnoth-1.16-data",
    "fritzing-parts",
)


class DataError(Exception):
    """A mistake that the user can mend; shown as one line."""


@dataclass(frozen=True)
class Raw:
    """A folder of unpacked packages: `npm/<name>/` and `apt/<name>/`, the latter with `DEBIAN/control`."""

    root: Path

    def npm(self, name: str) -> Path:
        """The folder of an unpacked npm package; raises DataError when it is missing."""
        return self._present(self.root / "npm" / name, name)

    def apt(self, name: str) -> Path:
        """The folder of an unpacked Debian package; raises DataError when it is missing."""
        return self._present(self.root / "apt" / name, name)

    def version(self, name: str) -> str | None:
        """The version of a fetched package, or None when it is not there."""
        manifest = self.root / "npm" / name / "package.json"
        if manifest.is_file():
            return str(read_json(manifest)["version"])
        control = self.root / "apt" / name / "DEBIAN" / "control"
        if control.is_file():
            fields = (line.partition(": ") for line in control.read_text(encoding="utf8").splitlines())
            return next(value for field, _, value in fields if field == "Version")
        return None

    def _present(self, folder: Path, name: str) -> Path:
        if not folder.is_dir():
            raise DataError(f"package {name} is not in {self.root}: run `python -m experiments.data.fetch` first")
        return folder


def read_json(path: Path) -> Any:
    """The parsed content of a UTF-8 JSON file."""
    return json.loads(path.read_text(encoding="utf8"))
