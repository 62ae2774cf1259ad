"""Fetches the packages with the npm and apt clients and unpacks them; what is already there is skipped.

python -m experiments.data.fetch --raw RAW
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .packages import APT, NPM, DataError, Raw


def require(client: str) -> None:
    """Raises DataError unless the program `client` can be run."""
    if shutil.which(client) is None:
        raise DataError(f"{client} is not installed (needed to fetch; --kind npm or --kind apt fetches one kind only)")


def run(command: list[str], folder: Path) -> str:
    """What the command prints on standard output; a failure raises DataError with its first complaints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise DataError(f"`{' '.join(command)}` failed: {'; '.join(lines[:3]) or 'no message'}")
    return done.stdout


def unpack_npm(spec: str, work: Path) -> Path:
    """Packs `name@version` into `work` and returns the folder it was unpacked to."""
    archive = run(["npm", "pack", "--loglevel=error", spec], work).split()[-1]
    with tarfile.open(work / archive) as tar:
        tar.extractall(work / "tree", filter="data")
    # npm tarballs hold one top folder, usually but not always called `package`.
    (top,) = (work / "tree").iterdir()
    return top


def unpack_apt(name: str, work: Path) -> Path:
    """Downloads a Debian package into `work` and returns the folder it was unpacked to."""
    run(["apt-get", "download", name], work)
    (archive,) = work.glob("*.deb")
    run(["dpkg-deb", "--raw-extract", archive.name, "tree"], work)
    return work / "tree"


def place(target: Path, unpack: Callable[[Path], Path]) -> None:
    """Unpacks beside the target and moves it there last, so that a folder that exists is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as work:
        tree = unpack(Path(work))
        if target.exists():
            shutil.rmtree(target)
        tree.rename(target)


def fetch(raw: Raw, kinds: tuple[str, ...], latest: bool) -> None:
    """Brings every package of the given kinds ("npm", "apt") into `raw`."""
    if "npm" in kinds:
        require("npm")
        for name, pinned in NPM.items():
            wanted = "" if latest else pinned
            have = raw.version(name)
            if have is None or (wanted and have != wanted):
                spec = f"{name}@{wanted or 'latest'}"
                place(raw.root / "npm" / name, partial(unpack_npm, spec))
            report(raw, name, have)
    if "apt" in kinds:
        require("apt-get")
        require("dpkg-deb")
        for name in APT:
            have = raw.version(name)
            if have is None:
                place(raw.root / "apt" / name, partial(unpack_apt, name))
            report(raw, name, have)


def report(raw: Raw, name: str, before: str | None) -> None:
    """Prints the version that is there now and whether it was there before."""
    now = raw.version(name)
    print(f"{name} {now} {'(already there)' if now == before else ''}".rstrip(), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.data.fetch", description="Fetches and unpacks the packages."
    )
    parser.add_argument("--raw", type=Path, required=True, help="folder for the packages (2 GB)")
    parser.add_argument("--kind", choices=("npm", "apt"), action="append", help="only this kind (default: both)")
    parser.add_argument("--latest", action="store_true", help="newest npm versions instead of the pinned ones")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        fetch(Raw(options.raw.resolve()), tuple(options.kind or ("npm", "apt")), options.latest)
    except (DataError, OSError) as error:
        print(f"fetch: {error}", file=sys.stderr)
        return 2
    print(f"done in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
