"""Writes and reads WebDataset shards: tar files in which the members of a sample share a name."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType


class ShardWriter:
    """Writes samples of one source to `<source>-000.tar`, `<source>-001.tar` and so on, `per_shard` to each.

    Shards get their names when all are complete, and replace those of an earlier build; an exception leaves
    the earlier ones as they were. The same samples give the same bytes.
    """

    def __init__(self, folder: Path, source: str, per_shard: int) -> None:
        self.folder = folder
        self.source = source
        self.per_shard = per_shard
        self.samples = 0
        self._tar: tarfile.TarFile | None = None
        self._written: list[Path] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tar:
            self._tar.close()
        if error is None:
            for old in shards_of(self.folder, self.source):
                old.unlink()
        for path in self._written:
            if error is None:
                path.rename(path.with_suffix(""))
            else:
                path.unlink()

    def write(self, members: dict[str, bytes]) -> None:
        """Adds a sample; `members` maps endings such as "png" to contents."""
        name = f"{self.source}_{self.samples:06d}"
        tar = self._tar_for_next()
        for ending, content in members.items():
            entry = tarfile.TarInfo(f"{name}.{ending}")
            entry.size = len(content)
            # The time of building would make every build differ.
            entry.mtime = 0
            tar.addfile(entry, io.BytesIO(content))
        self.samples += 1

    def _tar_for_next(self) -> tarfile.TarFile:
        if self._tar is None or self.samples % self.per_shard == 0:
            if self._tar:
                self._tar.close()
            path = self.folder / f"{self.source}-{self.samples // self.per_shard:03d}.tar.partial"
            self._tar = tarfile.open(path, "w")  # noqa: SIM115 - closed on leaving
            self._written.append(path)
        return self._tar


def shards_of(folder: Path, source: str) -> list[Path]:
    """The shards of a source in order; another source whose name begins alike is not taken for it."""
    return sorted(folder.glob(f"{source}-[0-9][0-9][0-9].tar"))


def read_samples(folder: Path, source: str) -> Iterator[dict[str, bytes]]:
    """Every sample of a source, in the order of writing: endings to contents."""
    for path in shards_of(folder, source):
        name = ""
        sample: dict[str, bytes] = {}
        with tarfile.open(path) as tar:
            for entry in tar:
                stem, _, ending = entry.name.partition(".")
                if sample and stem != name:
                    yield sample
                    sample = {}
                name = stem
                content = tar.extractfile(entry)
                sample[ending] = content.read() if content else b""
        if sample:
            yield sample
