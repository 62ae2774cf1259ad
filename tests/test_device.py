"""What the machine tells, and what happens where it does not."""

from pathlib import Path

import pytest
import torch

from oblique_clip import device
from oblique_clip.device import forget_peak_memory, peak_memory_mib

CPU = torch.device("cpu")


def test_a_system_that_tells_no_peak_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose /proc lacks a line, or cannot be written to."""
    status = tmp_path / "status"
    monkeypatch.setattr(device, "_LINUX_STATUS", status)
    assert peak_memory_mib(CPU) is None
    status.write_text("Name: python\n")
    monkeypatch.setattr(Path, "write_text", lambda *args: (_ for _ in ()).throw(PermissionError("read-only")))
    forget_peak_memory(CPU)
    assert peak_memory_mib(CPU) is None
