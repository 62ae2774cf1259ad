"""Ctrl-C and a scheduler's SIGTERM: once, they end a run behind its next step; a second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# The last, of a terminal that closes, is not known everywhere.
WATCHED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A run that a signal has ended in good order.

    `status` is the exit status that says so: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.status = 128 + number


class Signals:
    """The signal that has come, if one has."""

    def __init__(self) -> None:
        self.number = 0
        """Of the first signal; 0 while there is none."""

    def come(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number


@contextmanager
def watched() -> Iterator[Signals]:
    """Keep signals from ending the process within; outside of the main thread, where Python takes none, they end it."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.come) for number in WATCHED}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
