"""`oblique-clip bench`: every suite in turn, one table, and a JSON file on request."""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import re
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..cli import command_line
from ..config import check_ranges, to_json, write_json
from ..device import pick_device, versions
from ..errors import UserError
from ..plan import plan, print_plan
from .measure import BenchConfig, RivalDied, Row

# Suite: what it measures. Each is a module beside this one with `rows(config, device) -> list[Row]`.
SUITES = {
    "step": "training step against open_clip's",
    "flags": "a training step with --patch-dropout and --compile",
    "profile": "where a step goes, and how near it comes to the machine's matrix products",
    "loss": "time and memory of the tiled losses against open_clip's",
    "micro": "a large batch by micro-batches against the same in one piece",
    "optimizer": "optimiser step with points against AdamW and geoopt's RiemannianAdam",
    "classifier": "zero-shot classifier against open_clip's and CLIP_benchmark's",
    "retrieval": "recall@k against scoring and sorting the whole matrix",
    "start": "import and --help in a fresh interpreter",
}

VERDICTS = {None: "", True: "reached", False: "not reached"}


def bench(config: BenchConfig) -> dict[str, Any]:
    """Run the suites, print their table and return the report, which also goes to `config.json`.

    Raises:
        UserError: for an unknown suite, or a device that this machine lacks.
    """
    unknown = [name for name in config.only if name not in SUITES]
    if unknown:
        raise UserError(f"unknown suite {unknown[0]!r}; there is {', '.join(SUITES)}")
    check_ranges(config)
    if config.json is not None and Path(config.json).is_dir():
        raise UserError(f"--json {config.json} is a folder; name a file, such as {Path(config.json) / 'bench.json'}")
    if config.plan:
        return _planned(config)
    device = pick_device(config.device)
    # For the processes of single measurements: geoopt's use of torch is nothing that a reader of figures could mend.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    if config.threads:
        torch.set_num_threads(config.threads)
    report: dict[str, Any] = {
        "format_version": 1,
        "command": command_line(),
        "date": datetime.date.today().isoformat(),
        "settings": to_json(config),
        "machine": machine(device),
        "left_out": {},
        "rows": [],
    }
    _keep(report, config)
    rows: list[Row] = []
    for name in config.only or SUITES:
        print(f"{name}: {SUITES[name]} ...", flush=True)
        try:
            rows += importlib.import_module(f".{name}", __package__).rows(config, device)
        except (RivalDied, torch.OutOfMemoryError) as error:
            print(f"  left out: {' '.join(str(error).split())}", flush=True)
            report["left_out"][name] = str(error)
        report["rows"] = [{**asdict(row), "reached": row.reached} for row in rows]
        _keep(report, config)
    print_rows(rows, report["machine"])
    return report


def _keep(report: dict[str, Any], config: BenchConfig) -> None:
    """Written before the first suite, to tell at once where that cannot be, and after each, lest the next fail."""
    if config.json is not None:
        Path(config.json).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(config.json), report)


def _planned(config: BenchConfig) -> dict[str, Any]:
    print_plan(config.step)
    report = {"format_version": 1, "step": asdict(config.step), "plan": [line._asdict() for line in plan(config.step)]}
    _keep(report, config)
    return report


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures come from: processor, cores, threads and versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    peers = ("geoopt", "open_clip_torch", "timm", "clip_benchmark")
    found = {peer: _version(peer) for peer in peers}
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": str(device) if name is None else f"{device} ({name})",
        "versions": {**versions(), **{peer: version for peer, version in found.items() if version}},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    facts = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", info.read_text().split("\n\n")[0], re.M))
    # A rented machine often tells its maker alone; family and model say which generation it is.
    numbers = ", ".join(
        f"{name} {facts[key]}" for name, key in (("family", "cpu family"), ("model", "model")) if key in facts
    )
    return f"{facts.get('model name', platform.machine())} ({numbers})" if numbers else platform.machine()


def print_rows(rows: list[Row], where: dict[str, Any]) -> None:
    """The table, and the machine it was measured on."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Ratios against peers", title_justify="left")
    for heading in ("what", "peer"):
        table.add_column(heading)
    for heading in ("ours", "peer's", "ratio", "aim", ""):
        table.add_column(heading, justify="right")
    for row in rows:
        figures = (figure(row.ours, row.unit), figure(row.peer, row.unit), f"{row.ratio:.3g}", row.aim)
        table.add_row(row.what, row.peer_name, *figures, VERDICTS[row.reached])
    console = Console()
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"{row.what}: {row.note}", style="dim", highlight=False)
    versions_text = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    console.print(
        f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads, {where['instructions']}, "
        f"{where['device']}; {versions_text}"
    )


def figure(value: float, unit: str) -> str:
    """A figure with its unit, seconds below one in milliseconds."""
    if unit == "s":
        return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"
    return f"{value:,.1f} {unit}"
