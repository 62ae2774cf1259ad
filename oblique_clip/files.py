"""Files that are whole or not there: written under another name, synced, then renamed."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str) -> None:
    """Write a text, complete or not at all; what was there before stays until then.

    Raises:
        OSError: where it cannot be written.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip.files import write_whole
        >>> path = Path(tempfile.mkdtemp()) / "notes.txt"
        >>> write_whole(path, "first")
        >>> path.read_text(), [other.name for other in path.parent.iterdir()]
        ('first', ['notes.txt'])
    """
    # Two processes may write the same file.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def put_in_place(unfinished: Path, path: Path) -> None:
    """Give a synced file its name; the name is safe once its folder is, where the system can sync one (not Windows)."""
    unfinished.replace(path)
    if os.name == "posix":
        opened = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
