"""Who is gone, when the ranks of a job lose each other.

What gloo or NCCL say names an address at best, and a rank that waits for one that waits for the dead one hears nothing
at all. So each rank has a thread that answers while the rank itself is stuck, in a store that all of them can read.
"""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from typing import Any

SECONDS = 3.0
"""That a roll call takes."""
EVERY = 1.0
"""Seconds between two looks at the store; a third of a roll call."""


class RollCall:
    """A rank's part in it.

    Args:
        store: with `set`, `get` and `check`, as torch's stores; RuntimeError where it has gone with its process.
        rank: this one, of 0 to `world` - 1.
    """

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self._store, self._rank, self._others = store, rank, [other for other in range(world) if other != rank]
        self._over = threading.Event()
        threading.Thread(target=self._answer, daemon=True).start()

    def end(self) -> None:
        self._over.set()

    def confess(self, error: BaseException) -> None:
        """Leave the others the cause of this rank's end."""
        with suppress(RuntimeError):
            self._store.set(f"cause/{self._rank}", first_words(error))

    def gone(self) -> dict[int, str]:
        """The ranks that are gone, or if there are none, those that do not come; with their cause, where they left one.

        {} where everybody has come and stopped: nobody knows why.
        """
        try:
            self._store.set(f"stopped/{self._rank}", "")
            self._store.set("called", "")
            self._over.wait(SECONDS)
            for sign in ("alive", "stopped"):
                if absent := [rank for rank in self._others if not self._store.check([f"{sign}/{rank}"])]:
                    return {rank: self._cause(rank) for rank in absent}
        except RuntimeError:
            # Without torchrun, which keeps the store in a process of its own, it is rank 0's.
            return {0: ""}
        finally:
            # For the same reason rank 0 stays until the others have looked.
            self._over.wait(0 if self._rank else SECONDS)
        return {}

    def _cause(self, rank: int) -> str:
        key = f"cause/{rank}"
        return str(self._store.get(key).decode()) if self._store.check([key]) else ""

    def _answer(self) -> None:
        with suppress(RuntimeError):
            while not self._store.check(["called"]):
                if self._over.wait(EVERY):
                    return
            self._store.set(f"alive/{self._rank}", "")


def first_words(error: BaseException) -> str:
    """The kind of an error and its first sentence, without the places in C++ that torch puts in front."""
    lines = re.sub(r"\[\S+:\d+\] ", "", str(error)).strip().splitlines()
    return ": ".join([type(error).__name__, *(line.split(". ")[0] for line in lines[:1])])
